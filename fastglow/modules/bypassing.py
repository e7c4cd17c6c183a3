"""How a module uses its parts, which other code may have replaced."""

from collections.abc import Iterable
from inspect import signature

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def may_bypass(modules: Iterable[nn.Module | None], kinds: frozenset[type[nn.Module]], biased: bool = False) -> bool:
    """Whether calling `modules` has no other effect than their parameters have.

    So it is unless one of them, or of the modules in them, has a hook or a `forward` of its own, or is not of one of
    the `kinds`: other code has replaced it. If `biased`, none of their biases may be None either.
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
            or biased
            and attributes["_parameters"].get("bias", one) is None
        ):
            return False
        remaining += attributes["_modules"].values()
    return not _has_any_global_hook()


def accepts(module: nn.Module, kind: type[nn.Module], *args: object, **kw: object) -> bool:
    """Whether the module's `forward` takes these arguments, as that of a `kind` does.

    A module that has replaced it may have NVIDIA's call, without the arguments that are fastglow's.
    """
    if type(module) is kind and "forward" not in module.__dict__:
        return True
    try:
        signature(module.forward).bind(*args, **kw)
    except TypeError:
        return False
    return True
