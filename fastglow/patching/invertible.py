"""Invertible 1x1 convolutions: WaveGlow's, RAD-TTS's with and without an LU decomposition, and Glow-TTS'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from fastglow import kernels

from .adapter import Adapter, Call, Method
from .structure import conv_difference
from .weights import prepared


def _inverse_of(module: nn.Module, weight: Callable[[], Tensor]) -> Tensor | None:
    """W^-1 [c, c], kept until the parameters change; None where gradients are needed."""
    if torch.is_grad_enabled():
        return None
    return prepared(module, lambda: kernels.invertible_conv1x1_factors([weight()])[0][0])


_STRETCH = 1.5

# WaveGlow and RAD-TTS: `conv` [c, c, 1]


def _weight(module: nn.Module) -> Tensor:
    return module.conv.weight  # type: ignore[union-attr, return-value]


def _forward(module: nn.Module, z: Tensor, scaled: bool) -> tuple[Tensor, Tensor]:
    z, log_det = kernels.invertible_conv1x1(z, _weight(module))
    return z, (len(z) * z.shape[2] * log_det if scaled else log_det)


def _inverse(module: nn.Module, z: Tensor) -> Tensor:
    return kernels.invertible_conv1x1_inverse(z, _weight(module), _inverse_of(module, lambda: _weight(module)))


def _by_flag(flag: str, scaled: bool) -> Method:
    """forward(z, reverse=False), NVIDIA's, or forward(z, inverse=False), RAD-TTS'."""

    def forward(module: nn.Module, original: Callable[..., Any], z: Tensor, *args: bool, **kw: bool) -> Any:
        if z.dim() != 3:
            return original(z, *args, **kw)
        inverted = args[0] if args else kw.get(flag, False)
        return _inverse(module, z) if inverted else _forward(module, z, scaled)

    return forward


def _by_method() -> Mapping[str, Method]:
    """forward(z) and infer(z), DeepLearningExamples'."""
    return {
        "forward": lambda module, original, z: _forward(module, z, scaled=True) if z.dim() == 3 else original(z),
        "infer": lambda module, original, z: _inverse(module, z) if z.dim() == 3 else original(z),
    }


def _flag_of(module: nn.Module) -> str | None:
    """Name of the second argument, which asks for the inverse."""
    names = list(signature(module.forward).parameters)
    return names[1] if len(names) == 2 and names[1] in ("reverse", "inverse") else None


def _claims(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    conv = parts.get("conv")
    return (
        list(parts) == ["conv"]
        and isinstance(conv, nn.Conv1d)
        and conv.in_channels == conv.out_channels
        and (hasattr(module, "infer") or _flag_of(module) is not None)
    )


def _difference(module: nn.Module) -> str | None:
    conv = module.conv
    assert isinstance(conv, nn.Conv1d)
    if conv.bias is not None or conv.kernel_size != (1,):
        return f"conv has kernel_size={conv.kernel_size[0]}, bias={conv.bias is not None}, must be 1, False"
    return conv_difference("conv", conv, conv.in_channels, conv.in_channels)


def _calls(module: Any) -> Iterator[Call]:
    weight = _weight(module)
    z = torch.randn(2, len(weight), 7)
    yield lambda conv: conv(z)
    if hasattr(module, "infer"):
        yield lambda conv: conv.infer(z)
    else:
        flag = _flag_of(module)
        yield lambda conv: conv(z, True)
        yield lambda conv: conv(z, **{str(flag): True})


def _prepare(module: Any) -> None:
    """Forgets the inverse of an earlier call, perhaps of other weights, and stretches the matrix: the log-determinants
    of a rotation, with which training starts, show nothing."""
    vars(module).pop("W_inverse", None)
    (module.upper_diag if hasattr(module, "upper_diag") else _weight(module)).mul_(_STRETCH)


WAVEGLOW_INVERTIBLE = Adapter(
    name="waveglow_invertible",
    op="invertible_conv1x1",
    kind="an Invertible1x1Conv of WaveGlow or RAD-TTS",
    claims=_claims,
    difference=_difference,
    variants={
        "forward and infer": _by_method(),
        "log-determinant of the signal, reverse=": {"forward": _by_flag("reverse", True)},
        "log-determinant of the signal, inverse=": {"forward": _by_flag("inverse", True)},
        "log-determinant of W, inverse=": {"forward": _by_flag("inverse", False)},
        "log-determinant of W, reverse=": {"forward": _by_flag("reverse", False)},
    },
    calls=_calls,
    prepare=_prepare,
)


# RAD-TTS: W = P L U


def _lus_weight(module: Any) -> Tensor:
    lower = torch.tril(module.lower, -1) + torch.diag(module.lower_diag)
    upper = torch.triu(module.upper, 1) + torch.diag(module.upper_diag)
    return (module.p @ (lower @ upper)).unsqueeze(2)


def _lus_forward(module: Any, original: Callable[..., Any], z: Tensor, inverse: bool = False) -> Any:
    if z.dim() != 3:
        return original(z, inverse)
    with torch.autocast(z.device.type, enabled=False):
        if inverse:
            kept = _inverse_of(module, lambda: _lus_weight(module))
            return kernels.invertible_conv1x1_inverse(z, _lus_weight(module), kept)
        log_det = module.upper_diag.abs().log().sum()
        return kernels.invertible_conv1x1(z, _lus_weight(module), log_det)


_LUS = ("p", "lower_diag", "lower", "upper_diag", "upper")

LUS_INVERTIBLE = Adapter(
    name="lus_invertible",
    op="invertible_conv1x1",
    kind="an Invertible1x1ConvLUS of RAD-TTS",
    claims=lambda module: all(isinstance(getattr(module, name, None), Tensor) for name in _LUS),
    difference=lambda module: None,
    variants={"W = P L U": {"forward": _lus_forward}},
    calls=lambda module: _lus_calls(module),
    prepare=_prepare,
)


def _lus_calls(module: Any) -> Iterator[Call]:
    z = torch.randn(2, len(module.p), 7)
    yield lambda conv: conv(z)
    yield lambda conv: conv(z, inverse=True)


# Glow-TTS and coqui: `weight` [n, n] over groups of n channels, half of each from either half of the channels


def _glow_tts_forward(
    module: Any,
    original: Callable[..., Any],
    x: Tensor,
    x_mask: Tensor | None = None,
    reverse: bool = False,
    *further: Any,
    **kw: Any,
) -> Any:
    """`kw`: the g that Glow-TTS passes to all its flows."""
    n = len(module.weight)
    if x.dim() != 3 or x.shape[1] % n or further or not kw.keys() <= {"g"}:
        return original(x, x_mask, reverse, *further, **kw)
    B, channels, T = x.shape
    groups = channels // n
    lengths = x.new_full((B,), T) if x_mask is None else x_mask.sum((1, 2))
    x = x.view(B, 2, groups, n // 2, T).transpose(2, 3).reshape(B, n, groups * T)
    weight = module.weight.unsqueeze(2)
    log_det: Any = None
    if reverse:
        stored = getattr(module, "weight_inv", None)
        inverse = stored if stored is not None else _inverse_of(module, lambda: module.weight.unsqueeze(2))
        x = kernels.invertible_conv1x1_inverse(x, weight, inverse)
    else:
        x, log_det_w = kernels.invertible_conv1x1(x, weight)
        if getattr(module, "no_jacobian", False):
            log_det = 0
        else:
            log_det = log_det_w * groups * lengths
    x = x.view(B, 2, n // 2, groups, T).transpose(2, 3).reshape(B, channels, T)
    return (x if x_mask is None else x * x_mask), log_det


def _glow_tts_claims(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, nn.Parameter)
        and weight.dim() == 2
        and weight.shape[0] == weight.shape[1]
        and (hasattr(module, "n_split") or hasattr(module, "num_splits"))
        and not list(module.children())
    )


def _glow_tts_difference(module: Any) -> str | None:
    n = len(module.weight)
    return f"weight has an odd size, {n}" if n % 2 else None


def _glow_tts_calls(module: Any) -> Iterator[Call]:
    weight = module.weight
    x = torch.randn(2, 3 * len(weight), 5)
    mask = torch.ones_like(x[:, :1])
    mask[1, :, 3:] = 0
    yield lambda conv: conv(x)
    yield lambda conv: conv(x, mask)
    yield lambda conv: conv(x, reverse=True)
    yield lambda conv: conv(x, mask, reverse=True)
    if "g" in signature(module.forward).parameters or _takes_any(module.forward):
        g = torch.randn(2, 3, 1)
        yield lambda conv: conv(x, mask, g=g)


def _takes_any(method: Callable[..., Any]) -> bool:
    """Whether it takes arguments of any name."""
    return any(p.kind is Parameter.VAR_KEYWORD for p in signature(method).parameters.values())


GLOW_TTS_INVERTIBLE = Adapter(
    name="glow_tts_invertible",
    op="invertible_conv1x1",
    kind="an InvConvNear of Glow-TTS",
    claims=_glow_tts_claims,
    difference=_glow_tts_difference,
    variants={"groups of channels": {"forward": _glow_tts_forward}},
    calls=_glow_tts_calls,
    prepare=lambda module: module.weight.mul_(_STRETCH),
)
