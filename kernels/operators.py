"""Operations as PyTorch operators, `torch.ops.fastglow.<op>`: what eager code, torch.compile and torch.export all call.

How an operation is registered: kernels/README.md.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import backend
from .launch import compiles_only

# "fastglow"; "kernels" where transformers finds this folder in a checkout and takes it for Hugging Face's package. An
# operator can be registered once only.
_NAMESPACE = __name__.partition(".")[0]

_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")
_implementations: dict[OpOverload, Callable[..., Any]] = {}


def operator(
    name: str,
    schema: str,
    *,
    kernel: Callable[..., Any],
    empty: Callable[..., Any],
    reference: Callable[..., Any] | None,
    tags: Sequence[torch.Tag] = (),
) -> OpOverload:
    """Registers `torch.ops.fastglow.<name>`, for every device. Results must not alias arguments or each other.

    Args:
        schema: "(arguments) -> results" in PyTorch's schema language; all functions below take these arguments by
            position and return these results.
        kernel: computes them by Triton kernels, wherever those run: on a GPU, or in the interpreter.
        empty: uninitialised results, with the shapes, dtypes and strides of the kernel's. It is all that compilers
            know of the operator.
        reference: computes them elsewhere, by PyTorch's operations and in any memory order; None: `kernel` does.
        tags: of the operator, beside pt2_compliant_tag.
    """

    def run(*arguments: Any) -> Any:
        _refuse_tangents(name, arguments)
        if reference is None or _runs_kernels(arguments):
            return kernel(*arguments)
        results = empty(*arguments)
        for result, value in zip(_listed(results), _listed(reference(*arguments)), strict=True):
            result.copy_(value)
        return results

    def fake(*arguments: Any) -> Any:
        return kernel(*arguments) if compiles_only() else empty(*arguments)

    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_LIBRARY)
    op = getattr(getattr(torch.ops, _NAMESPACE), name).default
    _implementations[op] = run
    return op


def differentiable(
    forward: OpOverload, setup_context: Callable[..., None], backward: Callable[..., Any], *inner: OpOverload
) -> None:
    """Registers the autograd formula of an operator.

    Args:
        setup_context: (ctx, inputs, output), saves what the backward pass needs.
        backward: (ctx, *gradients of the results) -> gradients of all arguments.
        inner: operators that `backward` calls: differentiating them, for second derivatives, is an error.
    """
    torch.library.register_autograd(forward.name(), backward, setup_context=setup_context, lib=_LIBRARY)
    for op in inner:
        not_differentiable(op, "is once_differentiable: for second derivatives force the reference backend")


def not_differentiable(op: OpOverload, reason: str) -> None:
    """Makes differentiating an operator an error. PyTorch's default would be a gradient of zero, with a warning."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{op.name()} {reason}")

    torch.library.register_autograd(op.name(), refuse, lib=_LIBRARY)


def scattered(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of the arguments that need one, as a backward operator returns them, with None for the others."""
    found = iter(gradients)
    return [next(found) if needed else None for needed in needs]


def reference_gradients(
    function: Callable[..., Any],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    upstream: Sequence[Tensor | None],
) -> list[Tensor]:
    """Gradients of the tensors that need one, through function(*tensors); `upstream`: of its results."""

    given = [None if x is None else x.detach().requires_grad_(n) for x, n in zip(tensors, needs, strict=True)]
    with _autograd(), torch.enable_grad():
        results = _listed(function(*given))
        reached = [(y, d.to(y.dtype)) for y, d in zip(results, upstream, strict=True) if d is not None]
        wanted = [x for x, needed in zip(given, needs, strict=True) if needed and x is not None]
        outputs, ds = zip(*reached, strict=True)
        return list(torch.autograd.grad(outputs, wanted, ds, allow_unused=True, materialize_grads=True))


def _autograd() -> AbstractContextManager:
    """Autograd, which is off inside an operator."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    autograd = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    return torch._C._ForceDispatchKeyGuard(included, excluded - autograd)


def run_inside(mode: TorchDispatchMode, function: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Calls the function from the mode's __torch_dispatch__. It sees what an operator of this library calls, too."""
    if function not in _implementations:
        return function(*args, **kwargs)
    with mode:
        return _implementations[function](*args)


def _refuse_tangents(name: str, arguments: Sequence[Any]) -> None:
    """Raises RuntimeError inside a forward-mode derivative, which PyTorch would take for zero."""
    if forward_ad._current_level >= 0 and any(
        isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in tree_leaves(list(arguments))
    ):
        raise RuntimeError(f"{_NAMESPACE}::{name} has no forward-mode derivative: force the reference backend")


def _runs_kernels(arguments: Sequence[Any]) -> bool:
    for x in arguments:
        x = x[0] if isinstance(x, (list, tuple)) and x else x
        if isinstance(x, Tensor) and x.is_floating_point():
            return (x.is_cuda or backend.interprets()) and x.dtype in backend.KERNEL_DTYPES
    return False


def _listed(results: Any) -> Sequence[Tensor]:
    return (results,) if isinstance(results, Tensor) else results
