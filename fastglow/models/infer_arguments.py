"""Checks of what `Tacotron2.infer` is given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastglow.errors import FastglowError
from fastglow.modules.convolution import length_mask


def check_text(text: Tensor, input_lengths: Tensor, n_symbols: int) -> None:
    """Raises FastglowError for texts [B, T_in], lengths [B] or symbol ids that do not fit."""
    if text.dim() != 2 or text.shape[0] == 0:
        raise FastglowError(f"text has shape {tuple(text.shape)}: pass a batch [B, T_in]")
    if input_lengths.shape != text.shape[:1]:
        raise FastglowError(
            f"input_lengths has shape {tuple(input_lengths.shape)} for {text.shape[0]} texts: pass one an item"
        )
    lowest, highest = int(input_lengths.min()), int(input_lengths.max())
    if lowest < 1 or highest > text.shape[1]:
        raise FastglowError(
            f"input_lengths from {lowest} to {highest} do not fit texts padded to {text.shape[1]}: "
            "every length must be from 1 to that"
        )
    ids = text[length_mask(input_lengths.to(text.device), text.shape[1])]
    if int(ids.min()) < 0 or int(ids.max()) >= n_symbols:
        raise FastglowError(
            f"symbol ids from {int(ids.min())} to {int(ids.max())}, but this model knows 0 to "
            f"{n_symbols - 1}: use the text front end it was trained with"
        )


def step_limits(max_steps: Sequence[int] | None, batch_size: int, most: int) -> Tensor:
    """The most decoder steps of each item, [B] int64: `max_steps`, but no more than `most`; None: `most`.

    Raises:
        FastglowError: the number of limits is not the number of items, or one is below 1.
    """
    limits = [most] * batch_size if max_steps is None else [int(limit) for limit in max_steps]
    if len(limits) != batch_size or min(limits) < 1:
        raise FastglowError(f"max_steps {limits} for {batch_size} items: pass one an item, each at least 1")
    return torch.tensor(limits).clamp(max=most)
