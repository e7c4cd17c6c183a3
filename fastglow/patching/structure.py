"""Looking at the structure of foreign modules."""

from __future__ import annotations

from torch import nn


def module_lists(module: nn.Module) -> set[str]:
    """Names of the children that are ModuleLists."""
    return {name for name, part in module.named_children() if isinstance(part, nn.ModuleList)}


def conv_difference(
    name: str, conv: nn.Module, in_channels: int | None, out_channels: int, *, dilation: int | None = 1
) -> str | None:
    """How a module is not a Conv1d of these sizes that keeps the length, with an odd number of taps.

    Args:
        in_channels: None: any number.
        dilation: None: any.
    """
    if not isinstance(conv, nn.Conv1d):
        return f"{name} is a {type(conv).__name__}, must be a Conv1d"
    (taps,), (step,) = conv.kernel_size, conv.dilation
    if taps % 2 == 0:
        return f"{name} has kernel_size={taps}, must be odd"
    expected = {
        "in_channels": conv.in_channels if in_channels is None else in_channels,
        "out_channels": out_channels,
        "dilation": (step if dilation is None or taps == 1 else dilation,),
        "padding": (step * (taps - 1) // 2,),
        "stride": (1,),
        "groups": 1,
        "padding_mode": "zeros",
    }
    for option, value in expected.items():
        if getattr(conv, option) != value:
            return f"{name} has {option}={getattr(conv, option)}, must be {value}"
    return None


def unwrapped(module: nn.Module) -> nn.Module:
    """The Linear or Conv1d in a LinearNorm, ConvNorm or another module with only that; else the module itself."""
    parts = module._modules
    inner = parts.get("linear_layer") or parts.get("conv")
    return inner if inner is not None and len(parts) == 1 else module


def linear_difference(
    name: str, linear: nn.Module, out_features: int | None, *, bias: bool | None = None
) -> str | None:
    """How a module is not a Linear.

    Args:
        out_features: None: any number.
        bias: whether it must have one; None: either.
    """
    if not isinstance(linear, nn.Linear):
        return f"{name} is a {type(linear).__name__}, must be a Linear"
    if out_features is not None and linear.out_features != out_features:
        return f"{name} has out_features={linear.out_features}, must be {out_features}"
    if bias is not None and (linear.bias is not None) != bias:
        return f"{name} has {'no' if bias else 'a'} bias"
    return None
