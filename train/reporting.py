"""Output of a run: scalars as JSON lines and for TensorBoard, pictures and audio."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from fastglow.errors import FastglowError
from fastglow.plotting import plot_synthesis, require_matplotlib

from .history import LOG, RUN, HistoryWriter
from .tasks import Sample

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_SAMPLE = re.compile(r"\d{8,}\.(png|wav)")


class Reporter:
    """Writes to OUT/log.jsonl (see `history`), OUT/logs (TensorBoard) and OUT/samples (PNG and WAV)."""

    def __init__(self, out: Path, tensorboard: bool, keep_samples: int = 0, draws_samples: bool = True):
        self.samples = out / "samples"
        self.history = HistoryWriter(out / LOG)
        self.keep_samples = keep_samples
        self.writer: SummaryWriter | None = None
        if draws_samples:
            require_matplotlib()
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise FastglowError(
                    "training logs need tensorboard: pip install 'fastglow[train]', or pass --no-tensorboard"
                ) from error
            self.writer = SummaryWriter(str(out / "logs"))

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.history.close()
        if self.writer is not None:
            self.writer.close()

    def started(self, description: str, epoch: int, iteration: int) -> None:
        """A process begins or resumes a run."""
        self.history.write(RUN, epoch, iteration, {"description": description})

    def scalars(
        self, group: str, values: dict[str, float], epoch: int, iteration: int, when: float | None = None
    ) -> None:
        """`when`: seconds since 1970; None: now."""
        self.history.write(group, epoch, iteration, values, when)
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, iteration, walltime=when)

    def sample(self, sample: Sample, sampling_rate: int, iteration: int) -> None:
        """Writes a validation item as picture and audio; deletes all but the newest `keep_samples` (0: keeps all)."""
        from fastglow.audio import write_audio  # training itself needs none of the audio files' libraries

        figure = plot_synthesis(sample.mels, sample.alignment, sample.text)
        self.samples.mkdir(exist_ok=True)
        stem = self.samples / f"{iteration:08d}"
        figure.savefig(stem.with_suffix(".png"), dpi=80)
        write_audio(stem.with_suffix(".wav"), sample.audio, sampling_rate)
        if self.writer is not None:
            self.writer.add_figure("validation/mel", figure, iteration)
            self.writer.add_audio("validation/audio", sample.audio[None], iteration, sample_rate=sampling_rate)
            self.writer.flush()
        if self.keep_samples > 0:
            self._remove_samples(iteration)

    def _remove_samples(self, newest: int) -> None:
        """Deletes all but the newest `keep_samples` of the samples up to an iteration."""
        paths = [path for path in self.samples.iterdir() if _SAMPLE.fullmatch(path.name) and int(path.stem) <= newest]
        kept = sorted({int(path.stem) for path in paths})[-self.keep_samples :]
        for path in paths:
            if int(path.stem) not in kept:
                path.unlink()
