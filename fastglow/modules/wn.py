"""WaveGlow's WaveNet-like coupling network."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels.arguments import check_integers, check_shape
from fastglow.kernels.cpu.wavenet import PackedWaveNet, pack_wavenet, run_wavenet, supports
from fastglow.kernels.launch import uncompiled

from .convolution import WeightNormConv1d
from .module_lists import modules_of_type
from .parameter_cache import ParameterCache, Refreshable, parameters_of


class WN(Refreshable):
    """Dilated gated convolutions conditioned on the mel spectrogram (WN in NVIDIA's waveglow/model.py).

    Args:
        n_in_channels: channels of the half that conditions the coupling.
        n_mel_channels: channels of the grouped, upsampled mel spectrogram.
        n_layers: number of layers; layer i has dilation 2^i.
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
            raise FastglowError(f"WN kernel_size={kernel_size} must be odd")
        if n_channels % 2 == 1:
            raise FastglowError(f"WN n_channels={n_channels} must be even")
        self.n_layers = n_layers
        self.n_channels = n_channels
        self.in_layers = nn.ModuleList()
        self.res_skip_layers = nn.ModuleList()
        self.cond_layers = nn.ModuleList()
        self.start = WeightNormConv1d(n_in_channels, n_channels, 1)
        # Zero weights: the coupling starts as the identity, which keeps early training stable.
        self.end = nn.Conv1d(n_channels, 2 * n_in_channels, 1)
        for parameter in self.end.parameters():
            nn.init.zeros_(parameter)
        for i in range(n_layers):
            last = i == n_layers - 1
            self.in_layers.append(WeightNormConv1d(n_channels, 2 * n_channels, kernel_size))
            self.cond_layers.append(WeightNormConv1d(n_mel_channels, 2 * n_channels, 1))
            self.res_skip_layers.append(WeightNormConv1d(n_channels, n_channels if last else 2 * n_channels, 1))

        self._folded: ParameterCache[WNWeights] = ParameterCache()
        self._packed: ParameterCache[PackedWaveNet] = ParameterCache()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_packed": ParameterCache(), **state})  # absent in pickles of older versions

    def forward(
        self, audio: Tensor, spect: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> Tensor:
        """b and log s of the affine coupling.

        Args:
            audio: [B, n_in_channels, T].
            spect: [B, n_mel_channels, T].
            mask: [B, 1, T], 1 inside an item and 0 in its padding, or None.
            lengths: [B] integers; has the effect of a mask, and positions beyond are not computed.

        Returns:
            [B, 2 * n_in_channels, T], b first; undefined beyond an item's length.
        """
        autocast = kernels.backend.autocast_dtype(self.end.weight)
        if mask is None and self._runs_packed(audio, spect, autocast):
            return self._run_packed(audio, spect, lengths, autocast)
        if torch.is_grad_enabled():
            weights = self._normalised()
        else:
            weights = self._folded.get(parameters_of(self), self._fold, autocast)
            audio, spect = (kernels.backend.fitting(x, weights.start) for x in (audio, spect))
        start = F.conv1d(audio, weights.start, self.start.bias)
        h: Tensor | None = start if mask is None else start * mask
        skip = None
        if weights.skip_bias is not None:
            skip = weights.skip_bias.view(1, -1, 1).expand(len(audio), -1, audio.shape[2])
        for i in range(self.n_layers):
            assert h is not None  # only the last layer has no residual
            h, skip = kernels.wavenet_layer(
                h,
                spect,
                weights.in_layers[i],
                weights.in_biases[i],
                weights.cond_layers[i],
                weights.cond_biases[i],
                weights.res_skip_layers[i],
                weights.res_skip_biases[i],
                dilation=2**i,
                mask=mask,
                lengths=lengths,
                skip=skip,
            )
        assert skip is not None
        return self.end(skip) if weights.skip_bias is None else skip.to(start.dtype)

    def _runs_packed(self, audio: Tensor, spect: Tensor, autocast: torch.dtype | None) -> bool:
        weight = self.end.weight
        return (
            kernels.backend.picks_cpu(weight, audio, spect)
            and supports(autocast or weight.dtype)
            and len(weight) <= self.n_channels
        )

    @uncompiled
    def _run_packed(self, audio: Tensor, spect: Tensor, lengths: Tensor | None, autocast: torch.dtype | None) -> Tensor:
        kernels.backend.cpu_calls["wavenet_layer"] += self.n_layers
        packed = self._packed.get(parameters_of(self), lambda: self._pack(autocast), autocast)
        return _run_packed(audio, spect, lengths, packed)

    def _pack(self, autocast: torch.dtype | None) -> PackedWaveNet:
        weights = self._fold()
        assert weights.skip_bias is not None and self.start.bias is not None
        return pack_wavenet(
            (weights.start, self.start.bias),
            list(zip(weights.in_layers, weights.in_biases, strict=True)),
            list(zip(weights.cond_layers, weights.cond_biases, strict=True)),
            list(zip(weights.res_skip_layers, weights.res_skip_biases, strict=True)),
            weights.skip_bias,
            autocast or self.end.weight.dtype,
        )

    def _normalised(self) -> "WNWeights":
        """The weights after weight normalisation, in one launch and in autocast's dtype."""
        in_layers, cond_layers, res_skip_layers = (
            modules_of_type(WeightNormConv1d, layers)
            for layers in (self.in_layers, self.cond_layers, self.res_skip_layers)
        )
        convolutions = [self.start, *in_layers, *cond_layers, *res_skip_layers]
        dtype = kernels.backend.autocast_dtype(self.end.weight)
        packed = kernels.weight_norm_packed([[(conv.weight_v, conv.weight_g)] for conv in convolutions], dtype)
        weights = []
        for conv, matrix in zip(convolutions, packed, strict=True):
            rows, channels, taps = conv.weight_v.shape
            weights.append(matrix.view(rows, taps, channels).transpose(1, 2))
        start, *layers = weights
        n = self.n_layers
        in_biases, cond_biases, res_skip_biases = (
            [layer.bias for layer in kind] for kind in (in_layers, cond_layers, res_skip_layers)
        )
        return WNWeights(
            start, layers[:n], in_biases, layers[n : 2 * n], cond_biases, layers[2 * n :], res_skip_biases, None
        )

    @torch.no_grad()
    def _fold(self) -> "WNWeights":
        """The weights for inference: `end` is linear, so it is folded into each layer's skip half.

        The sum of skips is then the result, 2 * n_in_channels wide, in float32, and starts with all biases.
        """
        plain = self._normalised()
        if len(self.end.weight) > self.n_channels:
            return plain  # folding would make the sum of skips wider
        wide = torch.promote_types(plain.start.dtype, torch.float32)
        weights, biases = [], []
        with torch.autocast(self.end.weight.device.type, enabled=False):
            end = self.end.weight[:, :, 0].to(wide)  # [2 * n_in_channels, n_channels]
            assert self.end.bias is not None
            skip_bias = self.end.bias.to(wide)
            for weight, bias in zip(plain.res_skip_layers, plain.res_skip_biases, strict=True):
                n_residual = len(weight) - self.n_channels
                skip_weight = (end @ weight[n_residual:, :, 0].to(wide)).to(weight.dtype).unsqueeze(2)
                weights.append(torch.cat((weight[:n_residual], skip_weight)))
                biases.append(torch.cat((bias[:n_residual], bias.new_zeros(len(end)))))
                skip_bias = skip_bias + end @ bias[n_residual:].to(wide)
        return replace(plain, res_skip_layers=weights, res_skip_biases=biases, skip_bias=skip_bias)


def _run_packed(audio: Tensor, spect: Tensor, lengths: Tensor | None, packed: PackedWaveNet) -> Tensor:
    """[B, n_in, T], [B, D, T] -> [B, S, T]: item by item, so that padding costs nothing and changes no bit."""
    check_shape("audio", audio, ("B", len(packed.start), "T"))
    B, _, T = audio.shape
    check_shape("spect", spect, (B, packed.layers[0].conditioning.shape[1], T), beside=("audio", audio))
    ends = [T] * B
    if lengths is not None:
        check_shape("lengths", lengths, (B,), beside=("audio", audio))
        check_integers("lengths", lengths)
        ends = lengths.clamp(0, T).tolist()
    out = audio.new_zeros(B, T, len(packed.skip_bias))
    with kernels.backend.without_autocast(audio):
        for i, n in enumerate(ends):
            if n:
                out[i, :n] = run_wavenet(audio[i, :, :n].t(), spect[i, :, :n].t(), packed)
    return out.transpose(1, 2)


@dataclass(frozen=True)
class WNWeights:
    """Weights as `kernels.wavenet_layer` takes them, one per layer."""

    start: Tensor
    in_layers: list[Tensor]
    in_biases: list[Tensor]
    cond_layers: list[Tensor]
    cond_biases: list[Tensor]
    res_skip_layers: list[Tensor]
    res_skip_biases: list[Tensor]
    skip_bias: Tensor | None  # initial value of the sum of skips, if `end` is folded into the layers
