"""Checks of the arguments of `Tacotron2.infer`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastglow.errors import FastglowError
from fastglow.modules.convolution import length_mask


def check_text(text: Tensor, input_lengths: Tensor, n_symbols: int) -> None:
    """Raises FastglowError unless the text is [B, T_in], the lengths fit it, and the model knows the symbol ids."""
    if text.dim() != 2 or text.shape[0] == 0:
        raise FastglowError(f"text has shape {list(text.shape)}, must be [B, T_in] with B > 0")
    if input_lengths.shape != text.shape[:1]:
        raise FastglowError(
            f"input_lengths has shape {list(input_lengths.shape)}, must be {[text.shape[0]]}: one per text"
        )
    lowest, highest = int(input_lengths.min()), int(input_lengths.max())
    if lowest < 1 or highest > text.shape[1]:
        raise FastglowError(
            f"input_lengths from {lowest} to {highest} must be between 1 and {text.shape[1]}, to which the texts are "
            "padded"
        )
    ids = text[length_mask(input_lengths.to(text.device), text.shape[1])]
    if int(ids.min()) < 0 or int(ids.max()) >= n_symbols:
        raise FastglowError(
            f"symbol ids from {int(ids.min())} to {int(ids.max())} must be between 0 and {n_symbols - 1}: use the text "
            "front end that this model was trained with"
        )


def step_limits(max_steps: Sequence[int] | None, batch_size: int, most: int) -> Tensor:
    """The step limit of each item, [B] int64: `max_steps`, at most `most`; None: `most`.

    Raises:
        FastglowError: the number of limits is not the number of items, or one is below 1.
    """
    limits = [most] * batch_size if max_steps is None else [int(limit) for limit in max_steps]
    if len(limits) != batch_size or min(limits) < 1:
        raise FastglowError(f"max_steps={limits} must have one limit per item ({batch_size}), each at least 1")
    return torch.tensor(limits).clamp(max=most)
