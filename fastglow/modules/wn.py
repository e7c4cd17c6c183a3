"""WaveGlow's WaveNet-like coupling network."""

import torch
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError

from .convolution import WeightNormConv1d


class WN(nn.Module):
    """Dilated gated convolutions conditioned on the mel spectrogram (WN in NVIDIA's waveglow/model.py).

    Args:
        n_in_channels: channels of the half that conditions the coupling.
        n_mel_channels: channels of the grouped, upsampled mel spectrogram.
        n_layers: layers; the dilation of layer i is 2^i.
        n_channels: hidden channels, even.
        kernel_size: odd.

    Raises:
        FastglowError: even kernel_size or odd n_channels.
    """

    def __init__(
        self,
        n_in_channels: int,
        n_mel_channels: int,
        n_layers: int,
        n_channels: int,
        kernel_size: int,
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise FastglowError(f"WN kernel_size {kernel_size} is even: use an odd one")
        if n_channels % 2 == 1:
            raise FastglowError(f"WN n_channels {n_channels} is odd: use an even number")
        self.n_layers = n_layers
        self.n_channels = n_channels
        self.in_layers = nn.ModuleList()
        self.res_skip_layers = nn.ModuleList()
        self.cond_layers = nn.ModuleList()
        self.start = WeightNormConv1d(n_in_channels, n_channels, 1)
        # Zero at first: the coupling starts as the identity, which keeps early training stable.
        self.end = nn.Conv1d(n_channels, 2 * n_in_channels, 1)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)
        for i in range(n_layers):
            last = i == n_layers - 1
            self.in_layers.append(WeightNormConv1d(n_channels, 2 * n_channels, kernel_size))
            self.cond_layers.append(WeightNormConv1d(n_mel_channels, 2 * n_channels, 1))
            self.res_skip_layers.append(WeightNormConv1d(n_channels, n_channels if last else 2 * n_channels, 1))

    def forward(self, audio: Tensor, spect: Tensor, mask: Tensor | None = None) -> Tensor:
        """b and log s of the affine coupling.

        Args:
            audio: [B, n_in_channels, T].
            spect: [B, n_mel_channels, T].
            mask: [B, 1, T], 1 inside an item and 0 in its padding, or None.

        Returns:
            [B, 2 * n_in_channels, T], b first.
        """
        h = self.start(audio)
        if mask is not None:
            h = h * mask
        output = torch.zeros_like(h)
        for i, (in_layer, cond_layer, res_skip_layer) in enumerate(
            zip(self.in_layers, self.cond_layers, self.res_skip_layers, strict=True)
        ):
            h, skip = kernels.wavenet_layer(
                h,
                spect,
                in_layer.weight,
                in_layer.bias,
                cond_layer.weight,
                cond_layer.bias,
                res_skip_layer.weight,
                res_skip_layer.bias,
                dilation=2**i,
                mask=mask,
            )
            output = output + skip
        return self.end(output)
