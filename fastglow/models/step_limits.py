"""The step limit of each item, and the warning of items that reached it."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from fastglow.errors import FastglowError


class DecoderStepLimitWarning(UserWarning):
    """The stop gate of an item did not fire within max_decoder_steps."""


MaxSteps = int | Sequence[int] | None


def step_limits(max_steps: MaxSteps, batch_size: int, most: int) -> Tensor:
    """The step limit of each item, [B] int64: `max_steps`, one for all or one per item, at most `most`; None: `most`.

    Raises:
        FastglowError: the number of limits is not the number of items, or one is below 1.
    """
    if max_steps is None or isinstance(max_steps, int):
        limits = [most if max_steps is None else max_steps] * batch_size
    else:
        limits = [int(limit) for limit in max_steps]
    if len(limits) != batch_size or min(limits) < 1:
        raise FastglowError(f"max_steps={limits} must have one limit per item ({batch_size}), each at least 1")
    return torch.tensor(limits).clamp(max=most)


def warn_of_endless(steps: Tensor, limits: Tensor, stacklevel: int) -> None:
    """Issues a DecoderStepLimitWarning that names the items whose steps [B] reached their limits [B]."""
    endless = (steps >= limits).nonzero().flatten().tolist()
    if endless:
        warnings.warn(
            f"the stop gate of item(s) {endless} did not fire within "
            f"max_decoder_steps={int(limits.max())}: end the text with punctuation, or split it",
            DecoderStepLimitWarning,
            stacklevel,
        )
