"""Checks of the arguments of `Tacotron2.infer`."""

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
