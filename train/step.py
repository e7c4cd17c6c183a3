"""One update of the weights: forward and backward passes of all processes, then the optimizer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastglow.errors import FastglowError

from .config import TrainConfig
from .data import SegmentBatch, TextMelBatch
from .device_step import DeviceStep
from .precision import DTYPES
from .ranks import Ranks
from .recorded_step import RecordedStep
from .state import TrainState
from .stopwatch import Stopwatch
from .tasks import Task

# Of the items that an error names.
MAX_NAMED = 100

INTERVAL_ON_A_GPU = 10


class StepResult(NamedTuple):
    """
    Attributes:
        iteration: updates so far, this one included.
        scalars: the same in all processes: the losses; grad_norm; learning_rate; skipped, 1 if there was no update;
            items, read by all processes; loss_scale under float16.
    """

    iteration: int
    scalars: dict[str, float]


class _Launched(NamedTuple):
    """What the host knows of a step whose results it has not seen."""

    iteration: int
    batch: int
    epoch: int
    ids: list[str]
    n_items: int
    learning_rate: float


class TrainStep:
    """Updates the weights with a step's batches, without waiting for the device until `results`.

    Args:
        state: what it updates.
        task: computes the losses.
        config: the run's options; its `amp` is one of `precision.DTYPES`.
        ranks: this process among those of the run.
        watch: measures the parts of a step.
    """

    def __init__(self, state: TrainState, task: Task, config: TrainConfig, ranks: Ranks, watch: Stopwatch):
        self.state = state
        self.task = task
        self.config = config
        self.ranks = ranks
        self.watch = watch
        self.interval = config.log_interval or (INTERVAL_ON_A_GPU if state.device.type == "cuda" else 1)
        if config.compile:
            task.compile(state.model)
        self.model = ranks.parallel(state.model, config.accumulate)
        self.on_device = DeviceStep(
            state.model,
            state.optimizer,
            state.scaler,
            state.ema,
            config.grad_clip_thresh,
            self.interval,
            ranks.world_size,
        )
        self.recorded: RecordedStep | None = None
        if config.cuda_graph:
            self.recorded = RecordedStep(lambda batches, weights: self._run(batches, weights), state)
        self._launched: list[_Launched] = []

    @property
    def is_due(self) -> bool:
        """Whether `results` must be read before the next step."""
        return len(self._launched) >= self.interval

    def __call__(self, batches: Sequence[TextMelBatch | SegmentBatch], weights: Sequence[float]) -> None:
        """Launches an update.

        Args:
            batches: of this process, one for each pass.
            weights: of their mean losses in the step; they add up to 1 over all processes.
        """
        assert not self.is_due
        state = self.state
        self.watch.lap("model")
        for group in state.optimizer.param_groups:
            if not self.config.use_saved_learning_rate:
                group["lr"] = self.config.learning_rate_at(state.epoch, state.iteration)
        if self.recorded is None:
            self._run(batches, weights, self.watch.lap)
        else:
            self.recorded([batch.to(state.device) for batch in batches], weights)
            self.watch.lap("optimizer")  # is part of the graph
        n_items = sum(batch.n_items for batch, weight in zip(batches, weights, strict=True) if weight)
        ids = [name for batch in batches for name in batch.ids]
        learning_rate = state.optimizer.param_groups[0]["lr"]
        self._launched.append(_Launched(state.iteration, state.batch, state.epoch, ids, n_items, learning_rate))

    def _run(
        self,
        batches: Sequence[TextMelBatch | SegmentBatch],
        weights: Sequence[float],
        lap: Callable[[str], None] = lambda name: None,
    ) -> None:
        """All that the device does; a CUDA graph records it."""
        self.on_device.begin()
        for i, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            with self._communicates(i == len(batches) - 1):
                self.on_device.backward(self.losses(self.model, batch), weight)
        lap("optimizer")
        self.on_device.update()

    def results(self) -> Iterator[StepResult]:
        """The steps since the last call, after waiting for the device once; collective: every process exhausts it.

        Raises:
            FastglowError: a loss or a norm that is not finite, with the items of the processes where the loss is not;
                under float16 when nothing is left to try. The weights are those of an earlier step, and no later
                result follows.
        """
        launched, self._launched = self._launched, []
        if not launched:
            return
        own = self.on_device.read(len(launched))
        names = self.on_device.losses
        n_items = torch.tensor([[one.n_items] for one in launched], dtype=torch.float64)
        totals = self.ranks.sum(torch.cat([own[:, : len(names)], n_items], dim=1)).tolist()
        others = own[:, len(names) :].tolist()
        for one, mine, (*losses, items), (norm, skipped, scale) in zip(
            launched, own[:, names.index("loss")].tolist(), totals, others, strict=True
        ):
            scalars = dict(zip(names, losses, strict=True))
            self._judge(one, scalars["loss"], norm, bool(skipped), scale, isfinite(mine))
            if self.state.scaler.enabled:
                scalars["loss_scale"] = scale
            scalars |= {"grad_norm": norm, "learning_rate": one.learning_rate, "skipped": skipped, "items": items}
            yield StepResult(one.iteration + 1, scalars)

    def losses(self, model: nn.Module, batch: TextMelBatch | SegmentBatch) -> dict[str, torch.Tensor]:
        """Of a batch, in the run's precision."""
        device = self.state.device
        with torch.autocast(device.type, DTYPES[self.config.amp], enabled=self.config.amp != "off"):
            return self.task.losses(model, batch.to(device))

    def _communicates(self, last: bool) -> AbstractContextManager:
        """Gradients are exchanged in the last pass only."""
        model = self.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def _judge(self, one: _Launched, loss: float, norm: float, skipped: bool, scale: float, innocent: bool) -> None:
        """
        Args:
            innocent: whether the loss of this process is finite.

        Raises:
            FastglowError: the run cannot go on after this step.
        """
        if skipped and not self.state.scaler.enabled:
            what = self._not_finite(one, loss, norm, innocent)
            raise FastglowError(f"{what}: look at these items, or lower the learning rate and resume")
        try:
            self.state.scaler.judge(skipped, scale)
        except FastglowError as error:
            last = self._not_finite(one, loss, norm, innocent)
            raise FastglowError(f"{error}; the last: {last}") from None

    def _not_finite(self, one: _Launched, loss: float, norm: float, innocent: bool) -> str:
        """One line; collective: every process calls it."""
        what = f"the norm of the gradient is {norm}" if isfinite(loss) else f"loss is {loss}"
        gathered = self.ranks.gather((one.ids, innocent))
        guilty = [names for names, innocent in gathered if not innocent] or [names for names, _ in gathered]
        names = [name for names in guilty for name in names]
        listed = ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if names[MAX_NAMED:] else "")
        return f"{what} at iteration {one.iteration}, batch {one.batch} of epoch {one.epoch}, items {listed}"
