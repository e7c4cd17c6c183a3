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
