"""Runs an operation as it runs on this machine, and compares it with its reference in float64."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fastglow.errors import FastglowError
from fastglow.kernels import backend
from fastglow.kernels.cpu import fast_dtype

from .comparison import Error
from .findings import OPEN_AN_ISSUE, Finding
from .operations import OPERATIONS, Call, Case
from .rounding import perturbed

KINDS = ("forward", "backward")
MULTIPLES = (2, 3)
"""How many times PyTorch's error outputs and gradients may have."""

CAPS = {torch.float32: (1e-5, 2e-5), torch.float16: (2e-2, 4e-2), torch.bfloat16: (1e-1, 3e-1)}
"""Largest errors of outputs and of gradients, relative to the largest exact value. In the calls of the table, the
multiples of PyTorch's errors are smaller: this catches references that are wrong themselves."""

RUNS = 8
"""Runs with random rounding errors from which PyTorch's error is taken."""

REFERENCE_REMEDY = "reinstall torch; if that does not help, " + OPEN_AN_ISSUE
KERNEL_REMEDY = f"set {backend.VARIABLE}=reference, and {OPEN_AN_ISSUE}"


class Mode(NamedTuple):
    """What the self-tests run on this machine.

    Attributes:
        kernels: whether it is Triton's kernels; else the references.
        dtypes: those to test.
        reason: why, in words.
        remedy: if something else would be better.
    """

    kernels: bool
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    reason: str
    remedy: str = ""

    @classmethod
    def here(cls) -> "Mode":
        """
        Raises:
            FastglowError: FASTGLOW_BACKEND is unknown, or forces the kernels where they cannot run.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu, tensor = device.type == "cuda", torch.zeros(1, device=device)
        references = cls(False, device, (torch.float32,), "")
        if backend.backend_name() == backend.REFERENCE:
            remedy = f"unset {backend.VARIABLE} to use the kernels" if on_gpu else ""
            return references._replace(reason=f"{backend.VARIABLE}={backend.REFERENCE}", remedy=remedy)
        runs = backend.picks_triton("the self-test", tensor)
        against = backend.reason_against(tensor)
        if against is not None:
            return references._replace(reason=f"the kernels are for GPUs; {against}")
        if backend.interprets():
            reason = "TRITON_INTERPRET is set, so they are interpreted, thousands of times slower"
            reason += "" if runs else f"; outside the self-tests the references run, {backend.VARIABLE} is not triton"
            # Products of bfloat16 are wrong in the interpreter.
            remedy = "unset TRITON_INTERPRET to compile the kernels" if on_gpu else ""
            return cls(True, device, (torch.float32, torch.float16), reason, remedy)
        return cls(True, device, backend.KERNEL_DTYPES, f"compiled for {torch.cuda.get_device_name(device)}")

    @property
    def what(self) -> str:
        return "Triton kernels" if self.kernels else "PyTorch reference"


class Results(NamedTuple):
    """The tensors that a call returns, and the gradients of its leaves."""

    outputs: list[Tensor]
    gradients: list[Tensor]


def what_runs() -> list[Finding]:
    """Whether the kernels or the references run here, and why."""
    mode = Mode.here()
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in mode.dtypes)
    detail = f"{mode.what} on {mode.device} in {dtypes}: {mode.reason}"
    if not mode.kernels and backend.backend_name() == backend.AUTOMATIC:
        detail += f"; inference has packed forms, by default in {str(fast_dtype()).removeprefix('torch.')}"
    return [Finding("what runs", "warning" if mode.remedy else "ok", detail, mode.remedy)]


def self_test(operation: str, dtype_name: str) -> list[Finding]:
    """The operation's calls in this dtype against float64; nothing where the dtype is not tested here."""
    dtype = getattr(torch, dtype_name)
    try:
        mode = Mode.here()
    except FastglowError:
        return [Finding(f"{operation}, {dtype_name}", "skipped", "nothing can run: see 'what runs' above")]
    if dtype not in mode.dtypes:
        return []
    name, worst = f"{operation}, {dtype_name}", dict[str, float]()
    for case in OPERATIONS[operation]:
        title = case.__name__.lstrip("_")
        before = backend.launches[operation]
        actual, references, exact = run_case(case, dtype, mode)
        if mode.kernels and backend.launches[operation] == before:
            return [_not_launched(name, title, operation)]
        for kind, multiple, i in zip(KINDS, MULTIPLES, range(2), strict=True):
            for x, pytorchs, truth in zip(actual[i], references[i], exact[i], strict=True):
                fault, ratio = _compare(x, pytorchs, truth, multiple, i)
                if fault:
                    remedy = KERNEL_REMEDY if mode.kernels else REFERENCE_REMEDY
                    return [Finding(name, "failed", f"{title}, {kind}: {fault}", remedy)]
                worst[kind] = max(worst.get(kind, 0.0), ratio)
    errors = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in worst.items())
    return [Finding(name, "ok", f"{mode.what}: {errors} times PyTorch's error")]


def run_case(case: Case, dtype: torch.dtype, mode: Mode) -> tuple[Results, Results, Results]:
    """The results as they are computed on this machine; of PyTorch's operations with random rounding errors, as
    `perturbed` gives them; and of the reference in float64. The last two are computed on the CPU."""
    call = case(_RandomTensors(dtype))
    with backend.use_backend(backend.REFERENCE):
        with torch.no_grad():
            outputs = tree_leaves(call.function(**call.arguments))
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in outputs]
        references = perturbed(lambda: _differentiate(call, upstream), RUNS)
        exact = _differentiate(_converted(call, dtype=torch.float64), upstream)
    forced = backend.backend_name() == backend.REFERENCE
    interpreted = mode.kernels and mode.device.type != "cuda"
    with backend.use_backend(backend.REFERENCE if forced else backend.TRITON if interpreted else backend.AUTOMATIC):
        actual = _differentiate(_converted(call, device=mode.device), upstream)
    return Results(*([x.cpu() for x in xs] for xs in actual)), references, exact


class _RandomTensors:
    """Draws the same values for every dtype, apart from rounding."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(0)

    def constant(self, *shape: int, scale: float = 1.0, dtype: str | None = None) -> Tensor:
        x = scale * torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return x.to(getattr(torch, dtype) if dtype else self._dtype)

    def leaf(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self.constant(*shape, scale=scale).requires_grad_()

    def near_identity(self, c: int) -> Tensor:
        return (torch.eye(c) + self.constant(c, c, scale=0.2 / c)).to(self._dtype).unsqueeze(2).requires_grad_()

    def integers(self, *values: int) -> Tensor:
        return torch.tensor(values)


def _converted(call: Call, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Call:
    """The call with copies of its tensors on another device, or with floating-point tensors of another dtype."""

    def convert(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return (
            x.detach().to(device, dtype if x.is_floating_point() else None, copy=True).requires_grad_(x.requires_grad)
        )

    return call._replace(arguments=tree_map(convert, call.arguments))


def _differentiate(call: Call, upstream: list[Tensor]) -> Results:
    """The call's results with these gradients of its outputs."""
    leaves = [x for x in tree_leaves(call.arguments) if isinstance(x, Tensor) and x.requires_grad]
    with torch.set_grad_enabled(bool(leaves)):  # what is for inference has another form on a CPU
        outputs = tree_leaves(call.function(**call.arguments))
    gradients: list[Tensor] = []
    if leaves:
        reached = [
            (x, d.to(x)) for x, d in zip(outputs, upstream, strict=True) if x.requires_grad and x.shape == d.shape
        ]
        xs, ds = zip(*reached, strict=True)
        found = torch.autograd.grad(xs, leaves, ds, allow_unused=True)
        gradients = [torch.zeros_like(x) if d is None else d for x, d in zip(leaves, found, strict=True)]
    return Results([x.detach() for x in outputs], gradients)


def _compare(x: Tensor, pytorchs: Tensor, exact: Tensor, multiple: int, i_kind: int) -> tuple[str | None, float]:
    """What is wrong with a tensor, if anything, and its error as a multiple of PyTorch's."""
    if x.shape != exact.shape:
        return f"shape {list(x.shape)} instead of {list(exact.shape)}", 0.0
    if not x.is_floating_point():
        return None if torch.equal(x, exact) else "other integers than the reference", 0.0
    if not x.isfinite().all():
        return "not finite", 0.0
    error = Error.of(x, pytorchs, exact)
    if error.actual > multiple * error.pytorchs:
        return f"error {error.actual:.3g}, more than {multiple} times PyTorch's {error.pytorchs:.3g}", error.ratio
    if error.actual > CAPS[x.dtype][i_kind] * error.largest:
        return f"error {error.actual:.3g} of {error.largest:.3g} is too large, as is PyTorch's", error.ratio
    return None, error.ratio


def _not_launched(name: str, title: str, operation: str) -> Finding:
    reasons = [reason for logged, reason in backend.logged if logged == operation]
    if reasons:
        return Finding(name, "skipped", f"{title} runs on the PyTorch reference: {reasons[-1]}")
    return Finding(name, "failed", f"{title} launched no kernel, for no known reason", OPEN_AN_ISSUE)
