"""Choice of the implementation of an operation: its Triton kernels or its PyTorch reference.

By default CUDA tensors use the kernels, and all others the references; whole models on a CPU have forms of their own
(`kernels.cpu`). ``FASTGLOW_BACKEND=triton|reference``, or `use_backend` in code, forces one. No other
file of the kernels reads environment variables.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

import torch
import triton
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _transforms_active
from torch._C import _len_torch_dispatch_stack as _n_dispatch_modes
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

from fastglow.errors import FastglowError

from .arguments import dtype_name

VARIABLE = "FASTGLOW_BACKEND"
AUTOMATIC, TRITON, REFERENCE = "auto", "triton", "reference"

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

launches: Counter[str] = Counter()
"""Kernel launches by operation: shows which implementation ran."""

cpu_calls: Counter[str] = Counter()
"""Calls of the forms for CPUs by operation."""

Function = TypeVar("Function", bound=Callable)

_logger = logging.getLogger("fastglow")
_forced: ContextVar[str | None] = ContextVar("fastglow_backend", default=None)

# The compiler cannot read a ContextVar, but checks at each call that a global is what it was when it compiled.
_forced_by_any_thread: str | None = None
_in_force: dict[object, str] = {}

logged: set[tuple[str, str]] = set()
"""(op, reason) of the warnings given so far: each is given once."""


def constant_when_compiled(function: Function) -> Function:
    """torch.compile calls the function, while it compiles, with arguments that are no tensors, and keeps the result."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler's decorator imports sympy
    return function


def backend_name() -> str:
    """'auto', 'triton' or 'reference'.

    Raises:
        FastglowError: FASTGLOW_BACKEND is something else.
    """
    name = _forced_by_any_thread if torch.compiler.is_dynamo_compiling() else _forced.get()
    return _backend_of_environment() if name is None else name


@constant_when_compiled
def _backend_of_environment() -> str:
    name = os.environ.get(VARIABLE) or AUTOMATIC
    _check(name, VARIABLE)
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend, as FASTGLOW_BACKEND does, for the calls inside (in this thread or task).

    Functions that torch.compile has compiled are compiled again for another backend; they follow the last one that was
    forced in any thread. Not for use inside a function that is compiled as one graph.

    Args:
        name: 'auto', 'triton' or 'reference'.

    Raises:
        FastglowError: another name.
    """
    global _forced_by_any_thread
    _check(name, "backend")
    token, entry = _forced.set(name), object()
    _in_force[entry] = _forced_by_any_thread = name
    try:
        yield
    finally:
        _forced.reset(token)
        del _in_force[entry]
        _forced_by_any_thread = next(reversed(_in_force.values()), None)


def picks_triton(op: str, *tensors: Tensor | None, unsupported: str | None = None) -> bool:
    """Whether a call of `op` runs on its Triton kernels.

    Args:
        op: the operation's name.
        tensors: every tensor argument; None for an absent one.
        unsupported: why the kernels do not support this call, apart from devices and dtypes; or None.

    Raises:
        FastglowError: the Triton backend is forced and does not support the call.
    """
    name = backend_name()
    if name == REFERENCE:
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    on_gpu = all(tensor.is_cuda for tensor in present)
    if name == AUTOMATIC and not on_gpu:
        return False
    reason = unsupported or reason_against(*present) or _other_derivative()
    if reason is None:
        return True
    if name == TRITON:
        raise FastglowError(f"{op}: the Triton backend does not support this call: {reason} (unset {VARIABLE}?)")
    _warn_once(op, reason)
    return False


def _other_derivative() -> str | None:
    """Why no kernel runs inside a derivative that operators do not have: PyTorch would take it for zero or fail."""
    if forward_ad._current_level >= 0:  # torch.func.jvp's too
        return "it has no forward-mode derivative"
    if not torch.compiler.is_dynamo_compiling() and _transforms_active():
        if any(transform.key() == TransformType.Grad for transform in get_interpreter_stack() or ()):
            return "torch.func does not differentiate operators"
    return None


@constant_when_compiled
def _warn_once(op: str, reason: str) -> None:
    if (op, reason) not in logged:
        logged.add((op, reason))
        _logger.warning("%s runs on the PyTorch reference: %s", op, reason)


def wants_kernels(device: torch.device) -> bool:
    """Whether an implementation of fastglow's is to run rather than other code as good as its references: on a GPU, or
    because a backend is forced."""
    return device.type == "cuda" or backend_name() != AUTOMATIC


CPU_DTYPES = (torch.float32, torch.bfloat16)


def picks_cpu(weight: Tensor, *inputs: Tensor) -> bool:
    """Whether an inference runs in its form for CPUs: no backend is forced, nothing traces the operations, and all is
    float32 or bfloat16 there.

    Args:
        weight: one of the weights.
        inputs: of the weight's dtype, or float32 for a bfloat16 weight, or under autocast either; else it is left to
            PyTorch whether they fit.
    """
    taken = CPU_DTYPES if weight.dtype == torch.bfloat16 else (weight.dtype,)
    return not torch.is_grad_enabled() and fits_cpu(taken, weight, *inputs)


def trains_on_cpu(weight: Tensor, *inputs: Tensor) -> bool:
    """As `picks_cpu`, where gradients are wanted; without autocast, inputs must have the weight's dtype."""
    return torch.is_grad_enabled() and _other_derivative() is None and fits_cpu((weight.dtype,), weight, *inputs)


def fits_cpu(taken: Sequence[torch.dtype], weight: Tensor, *inputs: Tensor) -> bool:
    """What `picks_cpu` and `trains_on_cpu` have in common; `taken`: the inputs' dtypes without autocast."""
    if traced() or backend_name() != AUTOMATIC:
        return False
    autocast = autocast_dtype(weight)
    taken = CPU_DTYPES if autocast else taken
    return (autocast or weight.dtype) in CPU_DTYPES and all(
        type(x) in (Tensor, Parameter) and x.is_cpu and (x.dtype in taken or not x.is_floating_point())
        for x in (weight, *inputs)
    )


def traced() -> bool:
    """Whether operations are recorded, transformed or watched (torch.export, torch.jit.trace, torch.func, a dispatch
    mode): of tensors that may have no memory, and by what knows PyTorch's own operations only.

    Not by torch.compile, which breaks its graph at functions that are `launch.uncompiled`.
    """
    return transformed() or (not torch.compiler.is_dynamo_compiling() and _n_dispatch_modes() > 0)


def transformed() -> bool:
    """`traced`, but not because of a dispatch mode alone, which sees every operation as it runs."""
    # is_exporting() is True in all that PyTorch 2.7 compiles; the flag is the process's, what follows this thread's.
    if torch.compiler.is_dynamo_compiling():
        return torch.compiler._is_exporting_flag
    exporting = torch.compiler._is_exporting_flag and _n_dispatch_modes() > 0
    return exporting or torch.jit.is_tracing() or _transforms_active()


def fitting(signal: Tensor, weight: Tensor) -> Tensor:
    """A float32 signal in bfloat16 for such weights on a CPU, where models pass signals on in float32; others as they
    are."""
    narrows = signal.is_cpu and (signal.dtype, weight.dtype) == (torch.float32, torch.bfloat16)
    return signal.to(weight.dtype) if narrows else signal


@constant_when_compiled
def interprets() -> bool:
    """Whether the kernels run in Triton's interpreter, which TRITON_INTERPRET decides when they are defined."""
    return not isinstance(_probe, triton.JITFunction)


@triton.jit
def _probe():
    pass


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype of matrix products under autocast on the tensor's device; None if autocast is off."""
    kind = tensor.device.type
    available = torch.amp.is_autocast_available(kind)  # False on the meta device, where the calls below would fail
    return torch.get_autocast_dtype(kind) if available and torch.is_autocast_enabled(kind) else None


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Inside, autocast is off on the tensor's device."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def reason_against(*tensors: Tensor) -> str | None:
    """Why no kernel takes these tensors, whichever backend is chosen; None: kernels may."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in KERNEL_DTYPES:
            return f"{dtype_name(tensor.dtype)} is not among float32, float16 and bfloat16"
    if len({tensor.device for tensor in tensors}) > 1:
        return f"its tensors are on {', '.join(sorted({str(tensor.device) for tensor in tensors}))}"
    if tensors and not (tensors[0].is_cuda or tensors[0].is_meta or interprets()):
        return f"{tensors[0].device} tensors need TRITON_INTERPRET=1, set before fastglow is imported"
    return None


def _check(name: str, source: str) -> None:
    if name not in (AUTOMATIC, TRITON, REFERENCE):
        raise FastglowError(f"{source}={name!r} must be {AUTOMATIC}, {TRITON} or {REFERENCE}")
