"""Exponential moving average of a model's weights."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastglow.errors import FastglowError


class ExponentialMovingAverage:
    """average = d * average + (1 - d) * weights after each step of the optimizer, d = min(decay, (1 + n) / (10 + n)).

    n counts the updates before this one. The ramp is TensorFlow's `ExponentialMovingAverage(num_updates=n)`; it keeps
    the random initial weights out of the average of a short run, and ends where (1 + n) / (10 + n) reaches the decay:
    after 9000 updates for 0.999. The first update copies the weights, as in `torch.optim.swa_utils`. Buffers, such as
    batch-norm statistics, are the model's own: they are averages already.

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
        # Without a device its counter is on the CPU, where reading it waits for nothing.
        self._averaged = AveragedModel(model)
        self._averaged.requires_grad_(False).eval()

    @property
    def model(self) -> nn.Module:
        """A copy of the model with the averaged weights, in evaluation mode; before the first update, with its own."""
        return self._averaged.module

    @property
    def updates(self) -> int:
        """How many updates the average has seen."""
        return int(self._averaged.n_averaged)

    def update(self, model: nn.Module) -> None:
        """Takes in the weights after a step of the optimizer. On a GPU it waits for the step.

        Args:
            model: the one that is trained, or a DistributedDataParallel of it.
        """
        n = self.updates
        self._averaged.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))
        self._averaged.update_parameters(model)

    def restore(self, state_dict: Mapping[str, Tensor], updates: int) -> None:
        """Continues from a checkpoint's `model.state_dict()` and `updates`, bit for bit.

        Raises:
            FastglowError: `updates` is not a count.
            RuntimeError: the state_dict is another model's.
        """
        if type(updates) is not int or not 0 <= updates < 2**63:
            raise FastglowError(f"updates={updates!r} of the averaged weights must be a count: the file is damaged")
        self.model.load_state_dict(state_dict)
        self._averaged.n_averaged.fill_(updates)
