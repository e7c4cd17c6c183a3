"""WaveGlow's WaveNet-like coupling network."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError

from .convolution import WeightNormConv1d
from .parameter_cache import ParameterCache, Refreshable


class WN(Refreshable):
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

        self._folded: ParameterCache[WNWeights] = ParameterCache()

    def forward(
        self, audio: Tensor, spect: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> Tensor:
        """b and log s of the affine coupling.

        Args:
            audio: [B, n_in_channels, T].
            spect: [B, n_mel_channels, T].
            mask: [B, 1, T], 1 inside an item and 0 in its padding, or None.
            lengths: [B] integers: what lies beyond is as if it were not there, as with a mask, but not computed.

        Returns:
            [B, 2 * n_in_channels, T], b first; beyond an item's length it has no meaning.
        """
        if torch.is_grad_enabled():
            weights = self._normalised()
        else:
            autocast = kernels.backend.autocast_dtype(self.end.weight)
            weights = self._folded.get(list(self.parameters()), self._fold, autocast)
        h = F.conv1d(audio, weights.start, self.start.bias)
        dtype = h.dtype
        h = h if mask is None else h * mask
        skip = None
        if weights.skip_bias is not None:
            skip = weights.skip_bias.view(1, -1, 1).expand(len(audio), -1, audio.shape[2])
        for i, (in_layer, cond_layer) in enumerate(zip(self.in_layers, self.cond_layers, strict=True)):
            h, skip = kernels.wavenet_layer(
                h,
                spect,
                weights.in_layers[i],
                in_layer.bias,
                weights.cond_layers[i],
                cond_layer.bias,
                weights.res_skip_layers[i],
                weights.res_skip_biases[i],
                dilation=2**i,
                mask=mask,
                lengths=lengths,
                skip=skip,
            )
        return self.end(skip) if weights.skip_bias is None else skip.to(dtype)

    def _normalised(self) -> "WNWeights":
        """The weights under weight normalisation, all in one launch, in autocast's dtype if it is on."""
        convolutions = [self.start, *self.in_layers, *self.cond_layers, *self.res_skip_layers]
        dtype = kernels.backend.autocast_dtype(self.end.weight)
        packed = kernels.weight_norm_packed([[(conv.weight_v, conv.weight_g)] for conv in convolutions], dtype)
        weights = []
        for conv, matrix in zip(convolutions, packed, strict=True):
            rows, channels, taps = conv.weight_v.shape
            weights.append(matrix.view(rows, taps, channels).transpose(1, 2))
        start, *layers = weights
        n = self.n_layers
        biases = [layer.bias for layer in self.res_skip_layers]
        return WNWeights(start, layers[:n], layers[n : 2 * n], layers[2 * n :], biases, None)

    @torch.no_grad()
    def _fold(self) -> "WNWeights":
        """The weights of inference: `end` is linear, so it goes into each layer's skip half.

        What is added up is then the result, 2 * n_in_channels wide, in float32: it begins as all skips' biases.
        """
        plain = self._normalised()
        if len(self.end.weight) > self.n_channels:
            return plain  # folding would widen the sums
        wide = torch.promote_types(plain.start.dtype, torch.float32)
        weights, biases = [], []
        with torch.autocast(self.end.weight.device.type, enabled=False):
            end = self.end.weight[:, :, 0].to(wide)  # [2 * n_in_channels, n_channels]
            skip_bias = self.end.bias.to(wide)
            for weight, bias in zip(plain.res_skip_layers, plain.res_skip_biases, strict=True):
                n_residual = len(weight) - self.n_channels
                skip_weight = (end @ weight[n_residual:, :, 0].to(wide)).to(weight.dtype).unsqueeze(2)
                weights.append(torch.cat((weight[:n_residual], skip_weight)))
                biases.append(torch.cat((bias[:n_residual], bias.new_zeros(len(end)))))
                skip_bias = skip_bias + end @ bias[n_residual:].to(wide)
        return replace(plain, res_skip_layers=weights, res_skip_biases=biases, skip_bias=skip_bias)


@dataclass(frozen=True)
class WNWeights:
    """Weights as `kernels.wavenet_layer` takes them, one a layer; skip_bias: what the sum of skips begins with,
    if `end` is folded into the layers."""

    start: Tensor
    in_layers: list[Tensor]
    cond_layers: list[Tensor]
    res_skip_layers: list[Tensor]
    res_skip_biases: list[Tensor]
    skip_bias: Tensor | None
