"""Whether a module may compute from the parameters of its parts without calling them."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def may_bypass(modules: Iterable[nn.Module | None], kinds: frozenset[type[nn.Module]]) -> bool:
    """Whether calling `modules` has no other effect than their parameters have.

    So it is unless one of them, or of the modules in them, has a hook or a `forward` of its own, or is not of one of
    the `kinds`: other code has replaced it.
    """
    remaining = [*modules]
    while remaining:
        one = remaining.pop()
        if one is None:
            continue
        attributes = one.__dict__
        if (
            type(one) not in kinds
            or attributes["_forward_hooks"]
            or attributes["_forward_pre_hooks"]
            or attributes["_backward_hooks"]
            or attributes["_backward_pre_hooks"]
            or "forward" in attributes
        ):
            return False
        remaining += attributes["_modules"].values()
    return not _has_any_global_hook()
