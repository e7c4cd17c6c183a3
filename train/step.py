"""One update of the weights: forward and backward passes of all processes, then the optimizer."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastglow.errors import FastglowError

from .config import TrainConfig
from .data import SegmentBatch, TextMelBatch
from .precision import DTYPES
from .ranks import Ranks
from .state import TrainState
from .stopwatch import Stopwatch
from .tasks import Task

# Of the items that an error names.
MAX_NAMED = 100


class TrainStep:
    """Updates the weights with a step's batches.

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
        self.model = ranks.parallel(state.model, config.accumulate)

    def __call__(
        self, batches: Sequence[TextMelBatch | SegmentBatch], weights: Sequence[float], stop: bool
    ) -> dict[str, float]:
        """Makes an update, or skips it under float16.

        Args:
            batches: of this process, one for each pass.
            weights: of their mean losses in the step; they add up to 1 over all processes.
            stop: whether this process has been asked to stop.

        Returns:
            scalars to report, the same in all processes: the losses; items, read by all processes; grad_norm;
            learning_rate; skipped, 1 if there was no update; loss_scale under float16; stop, whether any process was
            asked to.

        Raises:
            FastglowError: a loss or a norm that is not finite, with the items of the processes where the loss is not;
                under float16 when nothing is left to try.
        """
        state, device = self.state, self.state.device
        self.watch.lap("model")
        for group in state.optimizer.param_groups:
            if not self.config.use_saved_learning_rate:
                group["lr"] = self.config.learning_rate_at(state.epoch, state.iteration)
        state.optimizer.zero_grad(set_to_none=True)
        # A pass whose update is skipped must not stay in the running statistics either, which NaN would never leave.
        statistics = [buffer.clone() for buffer in state.model.buffers()] if state.scaler.enabled else []
        local: dict[str, torch.Tensor] = {}
        for i, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            with self._communicates(i == len(batches) - 1):
                losses = self.losses(self.model, batch)
                # DistributedDataParallel divides the sum over the processes by their number.
                state.scaler.scaled(losses["loss"] * (weight * self.ranks.world_size)).backward()
            for name, loss in losses.items():
                local[name] = local.get(name, 0.0) + loss.detach().double() * weight
        self.watch.lap("optimizer")
        state.scaler.unscale(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.config.grad_clip_thresh)
        n_items = sum(batch.n_items for batch, weight in zip(batches, weights, strict=True) if weight)
        others = torch.tensor([n_items, stop], dtype=torch.float64)
        mine = torch.stack([*local.values()])
        total = self.ranks.sum(torch.cat([mine, others.to(device, non_blocking=True)]))
        # Here the host waits for a GPU.
        *values, items, stops, grad_norm = torch.cat([total, norm.detach().double().view(1)]).tolist()
        scalars = dict(zip(local, values, strict=True))
        finite = isfinite(grad_norm) and all(map(isfinite, values))
        innocent = finite or isfinite(float(local["loss"]))
        if not finite and not state.scaler.enabled:
            what = self._not_finite(scalars["loss"], grad_norm, batches, innocent)
            raise FastglowError(f"{what}: look at these items, or lower the learning rate and resume")
        if not finite:
            for buffer, before in zip(state.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
        try:
            updated = state.scaler.update(state.optimizer, finite)
        except FastglowError as error:
            last = self._not_finite(scalars["loss"], grad_norm, batches, innocent)
            raise FastglowError(f"{error}; the last: {last}") from None
        if updated and state.ema is not None:
            state.ema.update(state.model)
        if state.scaler.enabled:
            scalars["loss_scale"] = state.scaler.scale
        return {
            **scalars,
            "grad_norm": grad_norm,
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "skipped": float(not finite),
            "items": items,
            "stop": stops,
        }

    def losses(self, model: nn.Module, batch: TextMelBatch | SegmentBatch) -> dict[str, torch.Tensor]:
        """Of a batch, in the run's precision."""
        device = self.state.device
        with torch.autocast(device.type, DTYPES[self.config.amp], enabled=self.config.amp != "off"):
            return self.task.losses(model, batch.to(device))

    def _communicates(self, last: bool) -> AbstractContextManager:
        """Gradients are exchanged in the last pass only."""
        model = self.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def _not_finite(
        self, loss: float, norm: float, batches: Sequence[TextMelBatch | SegmentBatch], innocent: bool
    ) -> str:
        """One line; collective: every process calls it."""
        state = self.state
        what = f"the norm of the gradient is {norm}" if isfinite(loss) else f"loss is {loss}"
        own = [name for batch in batches for name in batch.ids]
        gathered = self.ranks.gather((own, innocent))
        guilty = [names for names, innocent in gathered if not innocent] or [names for names, _ in gathered]
        names = [name for names in guilty for name in names]
        listed = ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if names[MAX_NAMED:] else "")
        return f"{what} at iteration {state.iteration}, batch {state.batch} of epoch {state.epoch}, items {listed}"
