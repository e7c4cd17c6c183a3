"""WaveGlow's WaveNet-like coupling network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels.arguments import check_integers, check_shape
from fastglow.kernels.cpu.wavenet import PackedWaveNet, pack_wavenet, run_wavenet, supports
from fastglow.kernels.cpu.wavenet_training import train_wavenet
from fastglow.kernels.launch import uncompiled

from .bypassing import may_bypass
from .convolution import UnnormedConv1d, WeightNormConv1d, length_mask, remove_weight_norm
from .module_lists import modules_of_type
from .parameter_cache import ParameterCache, Refreshable, parameters_of
from .wn_names import unify_layers

_LAYERS: frozenset[type[nn.Module]] = frozenset({nn.ModuleList, WeightNormConv1d, UnnormedConv1d})
_END: frozenset[type[nn.Module]] = frozenset({nn.Conv1d})


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
        self.start: WeightNormConv1d | UnnormedConv1d = WeightNormConv1d(n_in_channels, n_channels, 1)
        # Zero weights: the coupling starts as the identity, which keeps early training stable.
        self.end = nn.Conv1d(n_channels, 2 * n_in_channels, 1)
        for parameter in self.end.parameters():
            nn.init.zeros_(parameter)
        for i in range(n_layers):
            last = i == n_layers - 1
            dilation = 2**i
            self.in_layers.append(
                WeightNormConv1d(
                    n_channels, 2 * n_channels, kernel_size, dilation=dilation, padding=dilation * (kernel_size // 2)
                )
            )
            self.cond_layers.append(WeightNormConv1d(n_mel_channels, 2 * n_channels, 1))
            self.res_skip_layers.append(WeightNormConv1d(n_channels, n_channels if last else 2 * n_channels, 1))

        self._folded: ParameterCache[WNWeights] = ParameterCache()
        self._packed: ParameterCache[PackedWaveNet] = ParameterCache()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_packed": ParameterCache(), **state})  # absent in pickles of older versions
        for i, conv in enumerate(modules_of_type(WeightNormConv1d, self.in_layers)):
            if "dilation" not in vars(conv):  # a pickle of an older version
                conv.dilation, conv.padding = 2**i, 2**i * (conv.weight_v.shape[2] // 2)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kw: Any) -> None:
        """Loads the tensors of every version of NVIDIA's code."""
        own = {key.removeprefix(prefix): state_dict.pop(key) for key in [*state_dict] if key.startswith(prefix)}
        try:
            own = unify_layers(own, prefix)
        except FastglowError as error:
            error_messages: list[str] = args[-1]
            error_messages.append(str(error))
        state_dict.update((prefix + key, tensor) for key, tensor in own.items())
        super()._load_from_state_dict(state_dict, prefix, *args, **kw)

    def remove_weight_norm(self) -> None:
        """Gives its convolutions the weights that they have now as the parameter `weight`. Twice is once."""
        self.start = remove_weight_norm(self.start)
        for layers in (self.in_layers, self.cond_layers, self.res_skip_layers):
            for i, conv in enumerate(modules_of_type(WeightNormConv1d, layers)):
                layers[i] = remove_weight_norm(conv)

    def forward(
        self,
        audio: Tensor | tuple[Tensor, Tensor],
        spect: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """b and log s of the affine coupling.

        Args:
            audio: [B, n_in_channels, T]; or both, (audio, spect), as in NVIDIA/waveglow.
            spect: [B, n_mel_channels, T].
            mask: [B, 1, T], 1 inside an item and 0 in its padding, or None.
            lengths: [B] integers; has the effect of a mask, and positions beyond are not computed.

        Returns:
            [B, 2 * n_in_channels, T], b first; undefined beyond an item's length.
        """
        if isinstance(audio, tuple):
            audio, spect = audio
        if spect is None:
            raise FastglowError("WN got no spect: pass wn(audio, spect) or wn((audio, spect))")
        layers = self.start, self.in_layers, self.cond_layers, self.res_skip_layers
        if not (may_bypass(layers, _LAYERS, biased=True) and may_bypass((self.end,), _END, biased=True)):
            return self._by_module(audio, spect, mask, lengths)
        autocast = kernels.backend.autocast_dtype(self.end.weight)
        if mask is None and self._runs_packed(audio, spect, autocast):
            return self._run_packed(audio, spect, lengths, autocast)
        if mask is None and lengths is None and self._trains_on_rows(audio, spect):
            return self._train_on_rows(audio, spect)
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

    def _by_module(self, audio: Tensor, spect: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
        """`forward` in calls of the layers: some have hooks, have no bias, or were replaced by other code."""
        audio, spect = (kernels.backend.fitting(x, next(self.parameters())) for x in (audio, spect))
        outside = None if lengths is None else ~length_mask(lengths, audio.shape[2]).unsqueeze(1)
        h, output = self.start(audio), None
        for i, (in_layer, cond_layer, res_skip_layer) in enumerate(
            zip(self.in_layers, self.cond_layers, self.res_skip_layers, strict=True)
        ):
            h = h if mask is None else h * mask
            h = h if outside is None else h.masked_fill(outside, 0.0)
            skip = res_skip_layer(kernels.gated_activation(in_layer(h), cond_layer(spect)))
            if i < self.n_layers - 1:
                residual, skip = skip[:, : self.n_channels], skip[:, self.n_channels :]
                h = h + residual
            output = skip if output is None else output + skip
        return self.end(output)

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

    def _trains_on_rows(self, audio: Tensor, spect: Tensor) -> bool:
        weight = self.end.weight
        return kernels.backend.trains_on_cpu(weight, audio, spect) and len(weight) <= self.n_channels

    def _train_on_rows(self, audio: Tensor, spect: Tensor) -> Tensor:
        weights = self._normalised()
        assert self.start.bias is not None and self.end.bias is not None
        return train_wavenet(
            audio,
            spect,
            (weights.start, self.start.bias),
            list(zip(weights.in_layers, weights.in_biases, strict=True)),
            list(zip(weights.cond_layers, weights.cond_biases, strict=True)),
            list(zip(weights.res_skip_layers, weights.res_skip_biases, strict=True)),
            (self.end.weight, self.end.bias),
        )

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
        weights = _weights(convolutions, kernels.backend.autocast_dtype(self.end.weight))
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


def _weights(convolutions: Sequence[nn.Module], dtype: torch.dtype | None) -> list[Tensor]:
    """The weight of each, [out, in, k] with the channels of a tap side by side in memory."""
    normed = [[(conv.weight_v, conv.weight_g)] for conv in convolutions if isinstance(conv, WeightNormConv1d)]
    matrices = iter(kernels.weight_norm_packed(normed, dtype) if normed else ())
    weights = []
    for conv in convolutions:
        if isinstance(conv, WeightNormConv1d):
            rows, channels, taps = conv.weight_v.shape
            weight = next(matrices).view(rows, taps, channels)
        else:
            assert isinstance(conv, UnnormedConv1d)
            weight = conv.weight.to(dtype or conv.weight.dtype).transpose(1, 2).contiguous()
        weights.append(weight.transpose(1, 2))
    return weights


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
