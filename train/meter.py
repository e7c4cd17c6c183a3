"""What training steps cost: time, items per second, arithmetic; a step's scalars and an epoch's line in the log."""

import time
from collections import deque
from collections.abc import Sequence

import torch

from .config import ModelConfig
from .data import SegmentBatch, TextMelBatch
from .flops import matrix_rate, training_flops
from .stopwatch import StepTime, Stopwatch


class StepMeter:
    """Measures the steps of this process.

    Args:
        device: that computes.
        model_config: of the model, for its arithmetic.
        dtype: of the matrix products.
        passes: how often a batch goes through the model.

    Attributes:
        watch: whose laps are "data" (waiting for batches), "model" (forward and backward) and "optimizer".
    """

    def __init__(self, device: torch.device, model_config: ModelConfig, dtype: torch.dtype, passes: int = 1):
        self.device = device
        self.passes = passes
        self.model_config = model_config
        self.dtype = dtype
        self.watch = Stopwatch(device)
        self.start_epoch()

    @property
    def updates(self) -> int:
        """Of the epoch, by this process."""
        return int(self._totals["updates"])

    def start_epoch(self) -> None:
        self.watch.reset()
        self._totals = {"updates": 0.0, "loss": 0.0, "items": 0.0, "flops": 0.0, "skipped": 0.0}
        self._laps: dict[str, float] = {}
        self._flops: deque[int] = deque()  # of the steps that were launched and not yet measured
        self._times: deque[StepTime] = deque()

    def finish_step(self, batches: Sequence[TextMelBatch | SegmentBatch]) -> None:
        """Ends a step, without waiting for the device.

        Args:
            batches: that this process read.
        """
        self.watch.stop()
        flops = sum(training_flops(self.model_config, batch) for batch in batches)
        self._flops.append(self.passes * flops)

    def measure(self, scalars: dict[str, float]) -> tuple[dict[str, float], float]:
        """The next of the finished steps, once the device has done all of them.

        Args:
            scalars: of `TrainStep.results`.

        Returns:
            (`scalars` with rates instead of the number of items: items_per_second of all processes, seconds_<lap>, and
            flop_utilisation: FLOPs per second over what this device does in large matrix products, measured once;
            when the step ended, in seconds since 1970).
        """
        if not self._times:
            self._times.extend(self.watch.steps())
        (seconds, ago), flops = self._times.popleft(), self._flops.popleft()
        values = {name: value for name, value in scalars.items() if name != "items"}
        values["items_per_second"] = scalars["items"] / sum(seconds.values())
        values |= {f"seconds_{name}": value for name, value in seconds.items()}
        values["flop_utilisation"] = self._utilisation(flops, seconds)
        done = {"updates": 1.0, "flops": flops, **scalars}
        if scalars.get("skipped"):
            done["loss"] = 0.0  # often not finite; left out of the mean
        self._totals = {name: total + done.get(name, 0.0) for name, total in self._totals.items()}
        self._laps = {name: self._laps.get(name, 0.0) + value for name, value in seconds.items()}
        return values, time.time() - ago

    def epoch_line(self) -> str:
        """The epoch's means so far, for the log."""
        totals, seconds = self._totals, sum(self._laps.values())
        used = self._utilisation(totals["flops"], self._laps)
        shares = ", ".join(f"{value / seconds:.0%} {name}" for name, value in self._laps.items())
        made = totals["updates"] - totals["skipped"]
        loss = f"{totals['loss'] / made:.4f}" if made else "unknown"
        skipped = f" ({totals['skipped']:.0f} skipped)" if totals["skipped"] else ""
        rate = matrix_rate(self.device, self.dtype)
        return (
            f"{self.updates} updates{skipped}, mean loss {loss}, "
            f"{totals['items'] / seconds:,.0f} items/s; time: {shares}; {used:.0%} of {rate / 1e12:.3g} TFLOP/s"
        )

    def _utilisation(self, flops: float, seconds: dict[str, float]) -> float:
        return flops / sum(seconds.values()) / matrix_rate(self.device, self.dtype)
