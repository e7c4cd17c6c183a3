"""LSTM cell (Hochreiter & Schmidhuber 1997) with PyTorch's gate order i, f, g, o."""

import torch
from torch import Tensor


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM.

    Args:
        x: input, [B, n_in]; h, c: hidden and cell state, [B, n].
        weight_ih: [4n, n_in]; weight_hh: [4n, n]; bias_ih, bias_hh: [4n], both or neither.

    Returns:
        (h', c'), each [B, n].
    """
    return torch.lstm_cell(x, (h, c), weight_ih, weight_hh, bias_ih, bias_hh)
