"""The WN of VITS, Glow-TTS and their descendants: dilated, gated convolutions with a mask and a global conditioning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastglow import kernels
from fastglow.kernels import backend

from .adapter import Adapter, Call, Method
from .structure import conv_difference, module_lists
from .weights import bias_of, prepared, weight_of


class _Layer(NamedTuple):
    in_weight: Tensor
    in_bias: Tensor | None
    res_skip_weight: Tensor
    res_skip_bias: Tensor | None


def _packed(weight: Tensor) -> Tensor:
    """Contiguous in the input channels, as the kernels read it, without gradients; else as it is."""
    return weight if torch.is_grad_enabled() else weight.transpose(1, 2).contiguous().transpose(1, 2)


def _layers(module: nn.Module) -> list[_Layer]:
    def build() -> list[_Layer]:
        return [
            _Layer(_packed(weight_of(a)), bias_of(a), _packed(weight_of(b)), bias_of(b))
            for a, b in zip(*_convolutions(module), strict=True)
        ]

    return prepared(module, build)


def _convolutions(module: nn.Module) -> tuple[Sequence[nn.Conv1d], Sequence[nn.Conv1d]]:
    return module.in_layers, module.res_skip_layers  # type: ignore[return-value]


def _dropout_of(module: nn.Module) -> nn.Dropout | None:
    found = [part for name, part in module.named_children() if isinstance(part, nn.Dropout)]
    return found[0] if found else None


def _run(module: nn.Module, x: Tensor, mask: Tensor | None, g: Tensor | None, drops_before: bool) -> Tensor:
    """[B, C, T], with mask [B or 1, 1, T] and g [B, D, T or 1] -> [B, C, T]."""
    width, dropout = 2 * x.shape[1], _dropout_of(module)
    conditioning = None if g is None else module.cond_layer(g)  # type: ignore[operator]
    whole_mask = None if mask is None else mask.expand(len(x), 1, x.shape[2])
    # Under autocast these modules add up in the signal's dtype.
    skip: Tensor | None = None if backend.autocast_dtype(x) is None else torch.zeros_like(x)
    h: Tensor | None = x
    drops = dropout is not None and dropout.training and dropout.p > 0
    in_layers, _ = _convolutions(module)
    layers = [None] * len(in_layers) if drops else _layers(module)
    for i, layer in enumerate(layers):
        assert h is not None  # only the last layer has no residual
        g_l = None if conditioning is None else conditioning[:, width * i : width * (i + 1)]
        if layer is None:
            h, skip = _layer_with_dropout(module, i, h, g_l, whole_mask, skip, drops_before)
        else:
            h, skip = kernels.wavenet_layer(
                h, g_l, layer.in_weight, layer.in_bias, None, None, layer.res_skip_weight, layer.res_skip_bias,
                in_layers[i].dilation[0], whole_mask, skip=skip,
            )  # fmt: skip
    assert skip is not None
    return skip if mask is None else skip * mask


def _layer_with_dropout(
    module: nn.Module,
    i: int,
    h: Tensor,
    g: Tensor | None,
    mask: Tensor | None,
    skip: Tensor | None,
    drops_before: bool,
) -> tuple[Tensor | None, Tensor]:
    """With the module's own dropout and convolutions: the mask that it draws depends on the layout in memory, too."""
    channels, drop = h.shape[1], _dropout_of(module)
    assert drop is not None
    in_layers, res_skip_layers = _convolutions(module)
    a = in_layers[i](h)
    acts = kernels.gated_activation(drop(a), g) if drops_before else drop(kernels.gated_activation(a, g))
    res_skip = res_skip_layers[i](acts)
    if res_skip.shape[1] == channels:
        return None, res_skip if skip is None else skip + res_skip
    next_h = h + res_skip[:, :channels]
    new_skip = res_skip[:, channels:]
    return next_h if mask is None else next_h * mask, new_skip if skip is None else skip + new_skip


def _fits(x: Tensor, mask: Tensor | None, g: Tensor | None) -> bool:
    """Whether x is [B, C, T], mask [B or 1, 1, T or 1] and g [B or 1, D, T or 1]."""
    return x.dim() == 3 and all(
        y is None
        or (
            isinstance(y, Tensor)
            and y.dim() == 3
            and y.shape[0] in (1, len(x))
            and y.shape[1] == (1 if y is mask else y.shape[1])
            and y.shape[2] in (1, x.shape[2])
        )
        for y in (mask, g)
    )


def _vits(drops_before: bool) -> Method:
    def forward(
        module: nn.Module,
        original: Callable[..., Tensor],
        x: Tensor,
        x_mask: Tensor | None = None,
        g: Tensor | None = None,
        *further: Any,
        **kw: Any,
    ) -> Tensor:
        if further or kw or not _fits(x, x_mask, g):  # what published code ignores, other code may not
            return original(x, x_mask, g, *further, **kw)
        return _run(module, x, x_mask, g, drops_before)

    return forward


def _transformers(drops_before: bool) -> Method:
    def forward(
        module: nn.Module,
        original: Callable[..., Tensor],
        inputs: Tensor,
        padding_mask: Tensor | None,
        global_conditioning: Tensor | None = None,
        *further: Any,
        **kw: Any,
    ) -> Tensor:
        if further or kw or not _fits(inputs, padding_mask, global_conditioning):
            return original(inputs, padding_mask, global_conditioning, *further, **kw)
        return _run(module, inputs, padding_mask, global_conditioning, drops_before)

    return forward


_ARGUMENTS = {False: ("x", "x_mask", "g"), True: ("inputs", "padding_mask", "global_conditioning")}


def _is_transformers(module: nn.Module) -> bool:
    return "padding_mask" in signature(module.forward).parameters


def _claims(module: nn.Module) -> bool:
    lists = module_lists(module)
    return {"in_layers", "res_skip_layers"} <= lists and "cond_layers" not in lists and not hasattr(module, "start")


def _difference(module: nn.Module) -> str | None:
    in_layers, res_skip_layers = _convolutions(module)
    if len(in_layers) != len(res_skip_layers) or not len(in_layers):
        return f"it has {len(in_layers)} in_layers and {len(res_skip_layers)} res_skip_layers, must be as many"
    channels = getattr(res_skip_layers[-1], "in_channels", None)
    if channels is None:
        return f"res_skip_layers hold {type(res_skip_layers[-1]).__name__}, must be Conv1d"
    last = len(in_layers) - 1
    for i, (a, b) in enumerate(zip(in_layers, res_skip_layers, strict=True)):
        difference = conv_difference(f"in_layers.{i}", a, channels, 2 * channels, dilation=None)
        difference = difference or conv_difference(
            f"res_skip_layers.{i}", b, channels, channels if i == last else 2 * channels
        )
        if difference:
            return difference
    cond_layer = getattr(module, "cond_layer", None)
    expected = 2 * channels * len(in_layers)
    if cond_layer is not None and getattr(cond_layer, "out_channels", None) != expected:
        return f"cond_layer has {getattr(cond_layer, 'out_channels', 'no')} channels, must have {expected}"
    return None


def _calls(module: nn.Module) -> Iterator[Call]:
    in_layers, _ = _convolutions(module)
    channels = in_layers[0].in_channels
    x = torch.randn(2, channels, 11)
    mask = torch.ones_like(x[:, :1])
    mask[1, :, 7:] = 0
    x_name, mask_name, g_name = _ARGUMENTS[_is_transformers(module)]
    yield lambda wn: wn(x, mask)
    yield lambda wn: wn(**{x_name: x, mask_name: mask})
    cond_layer = getattr(module, "cond_layer", None)
    if cond_layer is not None:
        g = torch.randn(2, cond_layer.in_channels, 1)
        yield lambda wn: wn(x, mask, **{g_name: g})


def _prepare(module: nn.Module) -> None:
    """Shows the place of dropout, also where it is 0 now and may be set later, in a module or in a number."""
    dropout = _dropout_of(module)
    if dropout is not None:
        dropout.p = 0.5
    for name, value in vars(module).items():
        if "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(module, name, 0.5)


VITS_WN = Adapter(
    name="vits_wn",
    op="wavenet_layer",
    kind="a WN of VITS or Glow-TTS",
    claims=lambda module: _claims(module) and not _is_transformers(module),
    difference=_difference,
    variants={
        "dropout after the gate": {"forward": _vits(False)},
        "dropout before the gate": {"forward": _vits(True)},
    },
    calls=_calls,
    prepare=_prepare,
)

TRANSFORMERS_WN = Adapter(
    name="transformers_wn",
    op="wavenet_layer",
    kind="a VitsWaveNet of transformers",
    claims=lambda module: _claims(module) and _is_transformers(module),
    difference=_difference,
    variants={
        "dropout after the gate": {"forward": _transformers(False)},
        "dropout before the gate": {"forward": _transformers(True)},
    },
    calls=_calls,
    prepare=_prepare,
)
