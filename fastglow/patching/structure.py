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
    if (conv.in_channels, conv.out_channels) != (in_channels, out_channels):
        return (
            f"{name} has {conv.in_channels} to {conv.out_channels} channels, must have {in_channels} to {out_channels}"
        )
    (taps,), (dilation,) = conv.kernel_size, conv.dilation
    if taps % 2 == 0 or (taps > 1 and not dilated):
        return f"{name} has kernel_size={taps}, must be {'odd' if dilated else 1}"
    if conv.stride != (1,) or conv.groups != 1 or conv.padding_mode != "zeros":
        return f"{name} has stride={conv.stride[0]}, groups={conv.groups}, padding_mode={conv.padding_mode}, must be 1, 1, zeros"
    padding = dilation * (taps - 1) // 2
    if conv.padding != (padding,):
        return f"{name} has padding={conv.padding[0]}, must be {padding} to keep the length"
    return None
