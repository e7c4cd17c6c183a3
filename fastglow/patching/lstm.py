"""torch.nn.LSTMCell, wherever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fastglow import kernels

from .adapter import Adapter, Call


def _forward(
    module: nn.Module,
    original: Callable[..., tuple[Tensor, Tensor]],
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    assert isinstance(module, nn.LSTMCell)
    if hx is None or input.dim() != 2 or hx[0].dim() != 2 or hx[1].dim() != 2:
        return original(input, hx)
    h, c = hx
    weight_ih, weight_hh = module.weight_ih, module.weight_hh
    fits = input.shape[1] == weight_ih.shape[1] and h.shape == c.shape == (len(input), module.hidden_size)
    if not fits:
        return original(input, hx)  # whose error names the sizes
    return kernels.lstm_cell(input, h, c, weight_ih, weight_hh, module.bias_ih, module.bias_hh)


def _difference(module: nn.Module) -> str | None:
    assert isinstance(module, nn.LSTMCell)
    if type(module).forward is not nn.LSTMCell.forward:
        return f"{type(module).__name__} has a forward of its own"
    return None


def _calls(module: nn.Module) -> Iterator[Call]:
    assert isinstance(module, nn.LSTMCell)
    x = torch.randn(3, module.input_size)
    h = torch.randn(3, module.hidden_size)
    yield lambda cell: cell(x, (h, h.flip(1)))
    yield lambda cell: cell(x)


LSTM_CELL = Adapter(
    name="lstm_cell",
    op="lstm_cell",
    kind="a torch.nn.LSTMCell",
    claims=lambda module: isinstance(module, nn.LSTMCell),
    difference=_difference,
    variants={"as it is": {"forward": _forward}},
    calls=_calls,
    only_kernels=True,
)
