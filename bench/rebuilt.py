"""Code that is not on the package index, rebuilt from what is documented of it: names, signatures and results."""

import warnings

import torch
from torch import Tensor, nn


def _gate(a: Tensor, b: Tensor, n_channels: Tensor) -> Tensor:
    """`commons.fused_add_tanh_sigmoid_multiply`: a [B, 2C, T], b [B, 2C, T or 1] -> [B, C, T]."""
    n = int(n_channels[0])
    total = a + b
    return torch.tanh(total[:, :n]) * torch.sigmoid(total[:, n:])


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch has deprecated TorchScript, which published code still uses here
    fused_add_tanh_sigmoid_multiply = torch.jit.script(_gate)


class VitsWN(nn.Module):
    """`modules.WN` of jaywalnut310's VITS (dropout after the gate) and Glow-TTS (before it), under weight norm.

    Args:
        channels: of the signal.
        kernel_size: taps of the dilated convolutions, odd.
        n_layers: the dilation is 1 in all of them, as in both papers' configurations.
        gin_channels: of the global conditioning.
        p_dropout: probability.
        drops_before: where.
    """

    def __init__(
        self, channels: int, kernel_size: int, n_layers: int, gin_channels: int, p_dropout: float, drops_before: bool
    ):
        super().__init__()
        norm = torch.nn.utils.weight_norm
        self.hidden_channels, self.drops_before = channels, drops_before
        self.drop = nn.Dropout(p_dropout)
        self.cond_layer = norm(nn.Conv1d(gin_channels, 2 * channels * n_layers, 1))
        self.in_layers = nn.ModuleList(
            norm(nn.Conv1d(channels, 2 * channels, kernel_size, padding=kernel_size // 2)) for _ in range(n_layers)
        )
        self.res_skip_layers = nn.ModuleList(
            norm(nn.Conv1d(channels, channels * (1 if i == n_layers - 1 else 2), 1)) for i in range(n_layers)
        )

    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, **kwargs: object) -> Tensor:
        """x [B, C, T], x_mask [B, 1, T], g [B, D, 1] -> [B, C, T]."""
        output = torch.zeros_like(x)
        channels = self.hidden_channels
        n_channels = torch.IntTensor([channels])
        conditioning = None if g is None else self.cond_layer(g)
        for i, (in_layer, res_skip_layer) in enumerate(zip(self.in_layers, self.res_skip_layers, strict=True)):
            x_in = in_layer(x)
            if self.drops_before:
                x_in = self.drop(x_in)
            rows = slice(2 * channels * i, 2 * channels * (i + 1))
            g_l = torch.zeros_like(x_in) if conditioning is None else conditioning[:, rows]
            acts = fused_add_tanh_sigmoid_multiply(x_in, g_l, n_channels)
            if not self.drops_before:
                acts = self.drop(acts)
            res_skip = res_skip_layer(acts)
            if i < len(self.in_layers) - 1:
                x = (x + res_skip[:, :channels]) * x_mask
                output = output + res_skip[:, channels:]
            else:
                output = output + res_skip
        return output * x_mask
