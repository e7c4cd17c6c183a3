"""Looking at the structure of foreign modules."""

from __future__ import annotations

from torch import nn


def module_lists(module: nn.Module) -> set[str]:
    """Names of the children that are ModuleLists."""
    return {name for name, part in module.named_children() if isinstance(part, nn.ModuleList)}


def conv_difference(
    name: str, conv: nn.Module, in_channels: int, out_channels: int, *, dilated: bool = False
) -> str | None:
    """How a module is not a Conv1d of these sizes that keeps the length: of one tap, or dilated with an odd number."""
    if not isinstance(conv, nn.Conv1d):
        return f"{name} is a {type(conv).__name__}, must be a Conv1d"
    sizes = f"{conv.in_channels} to {conv.out_channels}"
    if (conv.in_channels, conv.out_channels) != (in_channels, out_channels):
        return f"{name} has {sizes} channels, must have {in_channels} to {out_channels}"
    (taps,), (dilation,) = conv.kernel_size, conv.dilation
    if taps % 2 == 0 or (taps > 1 and not dilated):
        return f"{name} has kernel_size={taps}, must be {'odd' if dilated else 1}"
    padding = dilation * (taps - 1) // 2
    expected = {"stride": (1,), "groups": 1, "padding_mode": "zeros", "padding": (padding,)}
    for option, value in expected.items():
        if getattr(conv, option) != value:
            return f"{name} has {option}={getattr(conv, option)}, must be {value}"
    return None
