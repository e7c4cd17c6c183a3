"""Convolutions and linear layers with the reference's parameter names."""

from typing import Literal

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

    PyTorch's parametrisation saves `parametrizations.weight.original0/1`, which the published code cannot load.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        initial = nn.Conv1d(in_channels, out_channels, kernel_size)
        assert initial.bias is not None
        self.bias = initial.bias
        self.weight_g = nn.Parameter(initial.weight.detach().norm(dim=(1, 2), keepdim=True))
        self.weight_v = initial.weight

    @property
    def weight(self) -> Tensor:
        """g * v / |v|, [out_channels, in_channels, kernel_size]."""
        return kernels.weight_norm(self.weight_v, self.weight_g)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, T] -> [B, out_channels, T - kernel_size + 1]."""
        return F.conv1d(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel_size = self.weight_v.shape
        return f"{in_channels}, {out_channels}, kernel_size={kernel_size}"


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """[B] lengths -> [B, max_length] bool, True where a position is inside its item."""
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)
