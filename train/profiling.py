"""A torch.profiler trace of some training steps."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from fastglow.errors import FastglowError
from fastglow.files import replacing

logger = logging.getLogger(__name__)

SKIPPED = 5
"""Steps before the first recorded one: they compile kernels and fill caches. The profiler starts up in the last."""

LISTED = 10  # operations in the table


class StepProfiler:
    """Records `n_steps` steps and writes OUT/profile/trace_<first>-<last>.json.gz, for Perfetto or chrome://tracing.

    The log names the file and lists the costliest operations. If the block ends earlier, it writes the steps so far.

    Args:
        out: the run's folder.
        n_steps: 0 turns it off, at no cost; give it to one rank only.
        device: that is trained on.

    Raises:
        FastglowError: the trace cannot be written.
    """

    def __init__(self, out: Path, n_steps: int, device: torch.device):
        self.folder = out / "profile"
        self.n_steps = n_steps
        self._on_gpu = device.type == "cuda"
        self._profile: profile | None = None
        self._iterations: list[int] = []  # of the steps done, the skipped ones too

    def __enter__(self) -> StepProfiler:
        if self.n_steps > 0:
            self._profile = profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])],
                schedule=schedule(wait=SKIPPED - 1, warmup=1, active=self.n_steps, repeat=1),
                record_shapes=True,
            )
            self._profile.start()
        return self

    def step(self, iteration: int) -> None:
        """Ends a step; `iteration` is its number in the run."""
        if self._profile is None:
            return
        self._profile.step()
        self._iterations.append(iteration)
        if len(self._iterations) == SKIPPED + self.n_steps:
            self._finish()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._profile is None:
            return
        recorded = max(0, len(self._iterations) - SKIPPED)
        logger.warning(
            "the run ended after %d of the %d steps to profile, which begin after %d others",
            recorded,
            self.n_steps,
            SKIPPED,
        )
        try:
            self._finish()
        except FastglowError as error:
            if kind is None:
                raise
            logger.warning("%s", error)  # the run's own error must come last

    def _finish(self) -> None:
        finished, self._profile = self._profile, None
        assert finished is not None
        finished.stop()
        recorded = self._iterations[SKIPPED:]
        if recorded:
            path = self.folder / f"trace_{recorded[0]}-{recorded[-1]}.json.gz"
            _write(finished, path)
            logger.info("trace of %d steps: %s\n%s", len(recorded), path, costliest(finished, self._on_gpu))


def _write(finished: profile, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, TemporaryDirectory(prefix=".trace.", dir=path.parent) as folder:
            plain = Path(folder) / "trace.json"
            finished.export_chrome_trace(str(plain))
            if not _is_whole(plain):
                raise OSError("PyTorch's profiler wrote no whole trace: free space on the disk, or pass another --out")
            with plain.open("rb") as source, gzip.open(temporary, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target)
    except (OSError, RuntimeError) as error:
        raise FastglowError(f"{path} cannot be written: {' '.join(str(error).split())}") from error


def _is_whole(trace: Path) -> bool:
    """The profiler reports no error of the disk: it leaves a part of the JSON object, or no file."""
    if not trace.exists():
        return False
    with trace.open("rb") as file:
        file.seek(-min(64, trace.stat().st_size), os.SEEK_END)
        return file.read().rstrip().endswith(b"}")


def costliest(finished: profile, on_gpu: bool) -> str:
    """A table of what takes the most time itself: kernels of the GPU, or else PyTorch's operations."""
    # An operation's time on the GPU is that of its kernels, which are listed themselves.
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    operations = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in finished.key_averages()
        if event.device_type == device and not event.is_user_annotation
    ]
    total = sum(time for time, _, _ in operations) or 1.0
    rows = [f"{'ms':>10}  {'share':>5}  {'calls':>7}  operation"]
    for time, calls, name in sorted(operations, reverse=True)[:LISTED]:  # microseconds
        rows.append(f"{time / 1e3:>10.2f}  {time / total:>5.0%}  {calls:>7}  {name[:80]}")
    return "\n".join(rows)
