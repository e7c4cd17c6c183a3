"""WaveGlow's coupling network WN, with one `cond_layer` for all layers or `cond_layers`, one each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from fastglow import kernels
from fastglow.kernels import backend
from fastglow.modules import WN, WeightNormConv1d
from fastglow.modules.module_lists import modules_of_type

from .adapter import Adapter, Call
from .structure import conv_difference, module_lists
from .weights import bias_of, prepared, weight_norm_of, weight_of


def _run(module: Any, audio: Tensor, spect: Tensor) -> Tensor:
    """[B, n_in, T], [B, D, T] -> [B, 2 n_in, T], b first."""
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        output = prepared(module, lambda: _own_network(module))(audio, spect)
        return output.to(backend.autocast_dtype(audio) or output.dtype)  # the packed form is always in float32
    # In the order in which every layer would copy it otherwise.
    by_channel = backend.wants_kernels(spect.device)
    spect = spect.transpose(1, 2).contiguous().transpose(1, 2) if by_channel else spect.contiguous()
    h: Tensor | None = module.start(audio)
    skip: Tensor | None = None
    layers = zip(module.in_layers, _conditioning_weights(module), module.res_skip_layers, strict=True)
    for in_layer, (cond_weight, cond_bias), res_skip in layers:
        assert h is not None  # only the last layer has no residual
        h, skip = kernels.wavenet_layer(
            h, spect, weight_of(in_layer), bias_of(in_layer), cond_weight, cond_bias, weight_of(res_skip),
            bias_of(res_skip), in_layer.dilation[0], skip=skip,
        )  # fmt: skip
    return module.end(skip)


def _conditioning_weights(module: Any) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of every layer's conditioning."""
    if hasattr(module, "cond_layers"):
        return [(weight_of(conv), weight_of(conv, "bias")) for conv in module.cond_layers]
    width = module.in_layers[0].out_channels  # slices, one by one, would cost a whole gradient each
    parts = (weight_of(module.cond_layer, name).split(width) for name in ("weight", "bias"))
    return list(zip(*parts, strict=True))


def _own_network(module: Any) -> WN:
    """fastglow's WN with the same weights, in the same memory, for inference: it folds and packs them."""
    in_layers, n_layers = module.in_layers, len(module.in_layers)
    (taps,) = in_layers[0].kernel_size
    with torch.device("meta"):
        network = WN(module.start.in_channels, _n_conditioning(module), n_layers, in_layers[0].in_channels, taps)
    (start,) = modules_of_type(WeightNormConv1d, [network.start])
    _share(start, *weight_norm_of(module.start), weight_of(module.start, "bias"))
    for name in ("in_layers", "res_skip_layers"):
        for own, conv in zip(
            modules_of_type(WeightNormConv1d, getattr(network, name)), getattr(module, name), strict=True
        ):
            _share(own, *weight_norm_of(conv), weight_of(conv, "bias"))
    for own, parts in zip(modules_of_type(WeightNormConv1d, network.cond_layers), _conditioning(module), strict=True):
        _share(own, *parts)
    network.end.weight, network.end.bias = (
        nn.Parameter(x.detach(), requires_grad=False) for x in (weight_of(module.end), weight_of(module.end, "bias"))
    )
    return network


def _share(conv: WeightNormConv1d, v: Tensor, g: Tensor, bias: Tensor) -> None:
    conv.weight_v, conv.weight_g, conv.bias = (nn.Parameter(x.detach(), requires_grad=False) for x in (v, g, bias))


def _conditioning(module: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(v, g, bias) of every layer's conditioning."""
    if hasattr(module, "cond_layers"):
        for conv in module.cond_layers:
            yield *weight_norm_of(conv), weight_of(conv, "bias")
        return
    chunks = (
        x.chunk(len(module.in_layers))
        for x in (*weight_norm_of(module.cond_layer), weight_of(module.cond_layer, "bias"))
    )
    yield from zip(*chunks, strict=True)


def _n_conditioning(module: Any) -> int:
    conv = module.cond_layers[0] if hasattr(module, "cond_layers") else module.cond_layer
    return conv.in_channels


def _one_tuple(module: nn.Module, original: Callable[..., Tensor], *args: Any, **kw: Any) -> Tensor:
    """The name of the argument differs."""
    (forward_input,) = (*args, *kw.values())
    return _run(module, *forward_input) if _fits(*forward_input) else original(forward_input)


def _two_arguments(
    module: nn.Module, original: Callable[..., Tensor], audio: Tensor, spect: Tensor, *further: Any, **kw: Any
) -> Tensor:
    if further or kw or not _fits(audio, spect):
        return original(audio, spect, *further, **kw)
    return _run(module, audio, spect)


def _fits(audio: Tensor, spect: Tensor) -> bool:
    return (
        audio.dim() == spect.dim() == 3
        and len(audio) == len(spect)
        and audio.shape[2] == spect.shape[2]
        and audio.dtype == spect.dtype
    )


def _claims(module: nn.Module) -> bool:
    return {"in_layers", "res_skip_layers"} <= module_lists(module) and {"start", "end"} <= module._modules.keys()


def _difference(module: Any) -> str | None:
    in_layers, res_skip_layers, start, end = module.in_layers, module.res_skip_layers, module.start, module.end
    conditioned = isinstance(getattr(module, "cond_layer", None), nn.Conv1d) or hasattr(module, "cond_layers")
    if not conditioned:
        return "it has neither a cond_layer nor cond_layers"
    if not len(in_layers) or len(in_layers) != len(res_skip_layers):
        return f"it has {len(in_layers)} in_layers and {len(res_skip_layers)} res_skip_layers, must be as many"
    if not isinstance(start, nn.Conv1d):
        return f"start is a {type(start).__name__}, must be a Conv1d"
    channels, n_in, n_layers = start.out_channels, start.in_channels, len(in_layers)
    checks: list[str | None] = [
        conv_difference("start", start, n_in, channels),
        conv_difference("end", end, channels, 2 * n_in),
    ]
    for i, (a, b) in enumerate(zip(in_layers, res_skip_layers, strict=True)):
        checks.append(conv_difference(f"in_layers.{i}", a, channels, 2 * channels, dilation=2**i))
        rows = channels if i == n_layers - 1 else 2 * channels
        checks.append(conv_difference(f"res_skip_layers.{i}", b, channels, rows))
    if hasattr(module, "cond_layers"):
        if len(module.cond_layers) != n_layers:
            return f"it has {len(module.cond_layers)} cond_layers and {n_layers} in_layers, must be as many"
        for i, conv in enumerate(module.cond_layers):
            checks.append(conv_difference(f"cond_layers.{i}", conv, None, 2 * channels))
    else:
        checks.append(conv_difference("cond_layer", module.cond_layer, None, 2 * channels * n_layers))
    conditioning = module.cond_layers if hasattr(module, "cond_layers") else [module.cond_layer]
    convolutions = [start, end, *in_layers, *res_skip_layers, *conditioning]
    if any(getattr(conv, "bias", None) is None for conv in convolutions):
        checks.append("a convolution has no bias")
    return next((check for check in checks if check), None)


def _calls(module: Any) -> Iterator[Call]:
    audio, spect = torch.randn(2, module.start.in_channels, 9), torch.randn(2, _n_conditioning(module), 9)
    if len(signature(module.forward).parameters) == 1:
        yield lambda wn: wn((audio, spect))
    else:
        yield lambda wn: wn(audio, spect)
        yield lambda wn: wn(audio=audio, spect=spect)


WAVEGLOW_WN = Adapter(
    name="waveglow_wn",
    op="wavenet_layer",
    kind="a WN of WaveGlow",
    claims=_claims,
    difference=_difference,
    variants={"WN((audio, spect))": {"forward": _one_tuple}, "WN(audio, spect)": {"forward": _two_arguments}},
    calls=_calls,
)
