"""Exponential moving average of a model's weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastglow.errors import FastglowError


class ExponentialMovingAverage:
    """average = d * average + (1 - d) * weights after each step of the optimizer, d = min(decay, (1 + n) / (10 + n)).

    n counts the updates before this one. The ramp is TensorFlow's `ExponentialMovingAverage(num_updates=n)`; it keeps
    the random initial weights out of the average of a short run, and ends where (1 + n) / (10 + n) reaches the decay:
    after 9000 updates for 0.999. The first update copies the weights, as in `torch.optim.swa_utils`. Buffers, such as
    batch-norm statistics, are the model's own: they are averages already.

    n is on the device, because under float16 only the device knows which steps were made.

    Args:
        model: whose weights to average; float32 or float64, in which small changes are not rounded away.
        decay: d in the long run, from 0 (no average) to below 1; DeepLearningExamples' FastPitch takes 0.999.

    Raises:
        FastglowError: a decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:  # NaN fails too
            raise FastglowError(f"ema={decay} must be at least 0 and below 1, such as 0.999")
        self.decay = decay
        self._averaged = copy.deepcopy(model).requires_grad_(False).eval()
        self._parameters: list[Tensor] = list(self._averaged.parameters())
        self._buffers = list(self._averaged.buffers())
        self._updates = torch.zeros((), dtype=torch.int64, device=self._parameters[0].device)

    @property
    def model(self) -> nn.Module:
        """A copy of the model with the averaged weights, in evaluation mode; before the first update, with its own."""
        return self._averaged

    @property
    def updates(self) -> int:
        """How many updates the average has seen. On a GPU, reading it waits for them."""
        return int(self._updates)

    @torch.no_grad()
    def update(self, model: nn.Module, skipped: Tensor | None = None) -> None:
        """Takes in the weights after a step of the optimizer, without waiting for it.

        Args:
            model: the one that is trained.
            skipped: 0-d on its device: 1 if the step was not made, and this changes nothing; else 0.
        """
        n = self._updates.double()
        decay = ((1 + n) / (10 + n)).clamp(max=self.decay) * (n > 0)
        if skipped is not None:
            decay = torch.where(skipped > 0, 1.0, decay)
        dtype = self._parameters[0].dtype
        shares: list[Tensor] = list(torch._foreach_mul(list(model.parameters()), (1 - decay).to(dtype)))
        torch._foreach_mul_(self._parameters, decay.to(dtype))
        torch._foreach_add_(self._parameters, shares)
        if self._buffers:
            torch._foreach_copy_(self._buffers, list(model.buffers()))
        self._updates.add_(1 if skipped is None else 1 - skipped.long())

    def restore(self, state_dict: Mapping[str, Tensor], updates: int) -> None:
        """Continues from a checkpoint's `model.state_dict()` and `updates`, bit for bit.

        Raises:
            FastglowError: `updates` is not a count.
            RuntimeError: the state_dict is another model's.
        """
        if type(updates) is not int or not 0 <= updates < 2**63:
            raise FastglowError(f"updates={updates!r} of the averaged weights must be a count: the file is damaged")
        self.model.load_state_dict(state_dict)
        self._updates.fill_(updates)
