"""Convolutions and linear layers with the reference's parameter names."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import kernels

Gain = Literal["linear", "relu", "tanh", "sigmoid"]
"""The activation after a layer, which determines its initialisation; `nn.init.calculate_gain` accepts others too."""


class LinearNorm(nn.Module):
    """nn.Linear with Xavier initialisation; parameters `linear_layer.{weight,bias}`."""

    def __init__(self, in_dim: int, out_dim: int, bias: bool = True, w_init_gain: Gain = "linear"):
        super().__init__()
        self.linear_layer = nn.Linear(in_dim, out_dim, bias=bias)
        nn.init.xavier_uniform_(self.linear_layer.weight, gain=nn.init.calculate_gain(w_init_gain))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]."""
        return self.linear_layer(x)


class ConvNorm(nn.Module):
    """nn.Conv1d that keeps the length (odd kernel), with Xavier initialisation; parameters `conv.{weight,bias}`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        w_init_gain: Gain = "linear",
    ):
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, bias=bias)
        nn.init.xavier_uniform_(self.conv.weight, gain=nn.init.calculate_gain(w_init_gain))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, T] -> [B, out_channels, T]."""
        return self.conv(x)


class WeightNormConv1d(nn.Module):
    """A weight-normalised Conv1d with the parameters `weight_g`, `weight_v` and `bias`.

    PyTorch's parametrisation saves `parametrizations.weight.original0/1`, which the published code cannot load. Loads
    those too, and a plain `weight`.
    """

    dilation, padding = 1, 0  # of the class, for pickles of older versions

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1, padding: int = 0):
        super().__init__()
        initial = nn.Conv1d(in_channels, out_channels, kernel_size)
        assert initial.bias is not None
        self.dilation, self.padding = dilation, padding
        self.bias = initial.bias
        self.weight_g = nn.Parameter(initial.weight.detach().norm(dim=(1, 2), keepdim=True))
        self.weight_v = initial.weight

    @property
    def weight(self) -> Tensor:
        """g * v / |v|, [out_channels, in_channels, kernel_size]."""
        return kernels.weight_norm(self.weight_v, self.weight_g)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, T] -> [B, out_channels, T + 2 * padding - dilation * (kernel_size - 1)]."""
        return F.conv1d(x, self.weight, self.bias, padding=self.padding, dilation=self.dilation)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kw: Any) -> None:
        unify_weight_norm(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kw)

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel_size = self.weight_v.shape
        options = f", dilation={self.dilation}" if self.dilation > 1 else ""
        return f"{in_channels}, {out_channels}, kernel_size={kernel_size}{options}"


class UnnormedConv1d(nn.Conv1d):
    """What `remove_weight_norm` makes of a `WeightNormConv1d`: parameters `weight` and `bias`."""


@torch.no_grad()
def remove_weight_norm(conv: WeightNormConv1d | UnnormedConv1d) -> WeightNormConv1d | UnnormedConv1d:
    """A convolution with the weight that a `WeightNormConv1d` has now; another module is returned as it is."""
    if not isinstance(conv, WeightNormConv1d):
        return conv
    out_channels, in_channels, kernel_size = conv.weight_v.shape
    plain = UnnormedConv1d(
        in_channels, out_channels, kernel_size, padding=conv.padding, dilation=conv.dilation, device="meta"
    )
    plain.weight, plain.bias = nn.Parameter(conv.weight, conv.weight_v.requires_grad), conv.bias
    return plain.train(conv.training)


def unify_weight_norm(state: dict[str, Tensor], prefix: str) -> None:
    """Names the weight of the convolution at `prefix` `weight_g` and `weight_v`, if `state` has it in another form:
    PyTorch's parametrisation, or a plain `weight`, which is a direction, and the norm of each row its magnitude."""
    for i, name in enumerate("gv"):
        key = f"{prefix}parametrizations.weight.original{i}"
        if key in state:
            state[f"{prefix}weight_{name}"] = state.pop(key)
    weight = state.pop(f"{prefix}weight", None)
    if weight is None or f"{prefix}weight_v" in state:
        return
    g = weight.double().norm(dim=tuple(range(1, weight.dim())), keepdim=True)
    if not weight.is_meta:
        # A row of zeros has no direction: with g = 0 any v does.
        weight = torch.where(g == 0, torch.ones_like(weight), weight)
    state[f"{prefix}weight_v"], state[f"{prefix}weight_g"] = weight, g.to(weight.dtype)


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """[B] lengths -> [B, max_length] bool, True where a position is inside its item."""
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)
