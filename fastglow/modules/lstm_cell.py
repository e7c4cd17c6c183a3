"""An LSTM cell with the dropouts and zoneouts of Tacotron 2's descendants."""

from typing import TypedDict

import torch
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels.arguments import check_probability


class _Probabilities(TypedDict):
    p_dropout_h: float
    p_dropout_c: float
    p_zoneout_h: float
    p_zoneout_c: float


class LSTMCell(nn.LSTMCell):
    """Drop-in for nn.LSTMCell: same constructor, same parameters, same call.

    Args:
        input_size, hidden_size, bias, device, dtype: as for nn.LSTMCell.
        p_dropout_h, p_dropout_c: in training, probability of dropping a unit of the new hidden or cell state. NVIDIA's
            code drops h after the cell, coqui's and Mellotron's both.
        p_zoneout_h, p_zoneout_c: in training, probability that a unit keeps its previous value; in evaluation the
            expectation p * previous + (1 - p) * next is used. ESPnet's ZoneOutCell has one rate for both.

    Raises:
        FastglowError: a probability outside [0, 1).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        p_dropout_h: float = 0.0,
        p_dropout_c: float = 0.0,
        p_zoneout_h: float = 0.0,
        p_zoneout_c: float = 0.0,
    ):
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        check_probability("p_dropout_h", p_dropout_h)
        check_probability("p_dropout_c", p_dropout_c)
        check_probability("p_zoneout_h", p_zoneout_h)
        check_probability("p_zoneout_c", p_zoneout_c)
        self.probabilities: _Probabilities = {
            "p_dropout_h": p_dropout_h,
            "p_dropout_c": p_dropout_c,
            "p_zoneout_h": p_zoneout_h,
            "p_zoneout_c": p_zoneout_c,
        }

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            input: [B, input_size] or [input_size].
            hx: hidden and cell state, [B, hidden_size] or [hidden_size] each; None: zeros.

        Returns:
            (hidden state, cell state), of the shapes of `hx`.

        Raises:
            FastglowError: shapes that do not fit.
        """
        batched = input.dim() == 2
        if input.dim() not in (1, 2) or (hx is not None and any(state.dim() != input.dim() for state in hx)):
            shapes = [list(x.shape) for x in (input, *(hx or ()))]
            raise FastglowError(
                f"input and state have shapes {', '.join(map(str, shapes))}, must be [B, n] each or [n] each"
            )
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            h = c = x.new_zeros(x.shape[0], self.hidden_size)
        else:
            h, c = hx if batched else (state.unsqueeze(0) for state in hx)
        biases = (self.bias_ih, self.bias_hh) if self.bias else ()
        h, c = kernels.lstm_cell(
            x, h, c, self.weight_ih, self.weight_hh, *biases, training=self.training, **self.probabilities
        )
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))

    def extra_repr(self) -> str:
        options = "".join(f", {name}={p}" for name, p in self.probabilities.items() if p)
        return super().extra_repr() + options
