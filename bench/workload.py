"""What a benchmark computes, and the check of its result that must pass before it is timed."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch._functorch.config
from torch import Tensor

from fastglow.kernels import backend
from fastglow.kernels.arguments import dtype_name

from .environment import has_gpu
from .peers import DLE

FORWARD, BACKWARD, TRAIN_STEP, INFERENCE = "forward", "backward", "train_step", "inference"
FORWARD_BACKWARD = "forward_backward"  # both in one call
EPOCH = "epoch"  # of a loader

FASTGLOW, EAGER, COMPILE, PEER = "fastglow", "eager", "compile", "peer"
ORDINARY = "ordinary"

FACTORS = {FORWARD: 2, BACKWARD: 3, FORWARD_BACKWARD: 3, TRAIN_STEP: 2, INFERENCE: 2, EPOCH: 0}
"""Largest error of a result, in multiples of the error of PyTorch's operations in the same dtype."""


@dataclass(frozen=True)
class Cost:
    """Lower bounds of a computation's work.

    Attributes:
        bytes: each input read once, each output written once.
        flops: additions plus multiplications.
        reread: the bytes that are read again and again, which a cache may hold a part of; None: `bytes` are copied.
    """

    bytes: int
    flops: int
    reread: int | None = None


@dataclass(frozen=True)
class Implementation:
    """'fastglow' as users run it, 'eager' (its PyTorch reference), 'compile' (torch.compile of plain PyTorch), 'peer'
    (NVIDIA's own code), or 'ordinary' (fastglow without what a workload `varies`)."""

    name: str
    dle: DLE | None = None

    @property
    def nvidia(self) -> DLE:
        """NVIDIA's code; only for the peer."""
        if self.dle is None:
            raise RuntimeError("the peer runs with --peer-dle PATH only")
        return self.dle

    def active(self) -> AbstractContextManager:
        """The context to run the implementation in."""
        if self.name == EAGER:
            return backend.use_backend(backend.REFERENCE)
        if self.name == COMPILE:
            # A backward that reuses the buffers saved by its forward cannot run twice.
            return torch._functorch.config.patch(donated_buffer=False)
        return nullcontext()


class Workload(ABC):
    """One computation at one size and dtype, in one or more directions.

    Attributes:
        op: the operation's name.
        case: names the size.
        dtype: of the computation.
        directions: keys of FACTORS.
        composed: made of other workloads, which are tuned and predicted instead.
        bounded: its times are held against the machine's ceilings, which a CPU measures again in each round.
        small: its sizes are for verifying on a CPU, which is not timed.
        varies: it has an option of fastglow's, and is compared with fastglow without it.
        in_turn: its implementations are timed in turn, on a GPU too, by the host's clock.
    """

    op: str
    case: str
    dtype: torch.dtype
    composed = False
    bounded = True
    small: bool
    varies = False
    in_turn = False

    @property
    @abstractmethod
    def directions(self) -> tuple[str, ...]: ...

    @property
    def name(self) -> str:
        return f"{self.case}-{self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        return dtype_name(self.dtype)

    @property
    def ceiling(self) -> str:
        """Its matrix products' rate: a key of `Ceilings.flops_per_second`."""
        return self.dtype_name

    @abstractmethod
    def supports(self, implementation: str) -> bool:
        """Whether the implementation provides this computation."""

    def offers(self, implementation: str) -> bool:
        """`supports`, of any implementation."""
        return self.varies if implementation == ORDINARY else self.supports(implementation)

    def runs(self, small: bool) -> bool:
        """Whether a run includes it; `small`: on a CPU, the run has the small sizes, else the published ones."""
        return has_gpu() or small == self.small

    def beside(self) -> "Sequence[Workload]":
        """The same in other precisions: on a CPU they are timed in turn with it."""
        return ()

    @abstractmethod
    def shapes(self) -> dict[str, list[int]]:
        """Shapes of the inputs, by name."""

    @abstractmethod
    def cost(self, direction: str) -> Cost: ...

    @abstractmethod
    def call(self, implementation: Implementation, direction: str) -> Callable[[], object]:
        """A repeatable call on new random inputs; any preparation is done beforehand."""

    def passes(self, implementation: Implementation) -> Callable[[], object] | None:
        """A repeatable forward and backward pass, to measure the memory of activations; None: it is of no interest."""
        return None

    @abstractmethod
    def verify(self, implementation: Implementation, direction: str) -> float:
        """The result's relative error.

        Raises:
            AssertionError: the error is too large.
        """

    def capturable(self, direction: str) -> bool:
        """False if the call syncs with the host."""
        return True

    def samples(self, direction: str) -> int | None:
        """Audio samples per call."""
        return None

    def audio_seconds(self, direction: str) -> float | None:
        """Of the speech that a call makes."""
        return None

    def frames(self, direction: str) -> int | None:
        """Mel frames per call, over the batch."""
        return None

    def steps(self, direction: str) -> int | None:
        """Sequential decoder steps per call."""
        return None

    def item(self, direction: str, alone: bool) -> Sequence[Tensor]:
        """fastglow's results of one item, computed in a batch or alone, from the same inputs after the same seed; none
        where items have no results of their own."""
        return ()

    def targets(self, direction: str) -> dict[str, float]:
        """Targets by metric, a key of `targets.FORMATS`; bench/README.md lists them."""
        return {}

    def details(self) -> dict[str, Any]:
        """More to record."""
        return {}


WorkloadT = TypeVar("WorkloadT", bound=Workload)


@dataclass(frozen=True)
class Operation(Workload):
    """A function of `fastglow.kernels`.

    Attributes:
        inputs: makes new random tensors by argument name, in argument order; gradients are taken for those that
            require one.
        function: fastglow's.
        reference: plain PyTorch with the same arguments.
        costs: by direction.
        per_item: the inputs whose first dimension is the batch.
        peer: picks NVIDIA's function from its code, or None.
        layout: converts the inputs to the memory layout that fastglow's modules use, or None.
        bandwidth_target: % of the copy bandwidth, or None.
    """

    op: str
    case: str
    dtype: torch.dtype
    small = True  # on a CPU it is its reference
    inputs: Callable[[], dict[str, Tensor]]
    function: Callable[..., Any]
    reference: Callable[..., Any]
    costs: Mapping[str, Cost]
    per_item: Sequence[str] = ()
    peer: Callable[[DLE], Callable[..., Any]] | None = None
    layout: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    bandwidth_target: float | None = None

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(self.costs)

    def supports(self, implementation: str) -> bool:
        return implementation != PEER or self.peer is not None

    def shapes(self) -> dict[str, list[int]]:
        return {name: list(tensor.shape) for name, tensor in self.inputs().items()}

    def cost(self, direction: str) -> Cost:
        return self.costs[direction]

    def targets(self, direction: str) -> dict[str, float]:
        return {} if self.bandwidth_target is None else {"percent_of_ceiling": self.bandwidth_target}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], list[Tensor]]:
        inputs = self._laid_out(self.inputs(), implementation)
        return self._prepared(self._function(implementation), inputs, direction)

    def verify(self, implementation: Implementation, direction: str) -> float:
        inputs = self.inputs()
        doubles = {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in inputs.items()}
        with launching(implementation):
            laid_out = self._laid_out(inputs, implementation)
            actual = self._prepared(self._function(implementation), laid_out, direction)()
        usual = self._prepared(self.reference, inputs, direction)()
        exact = self._prepared(self.reference, doubles, direction)()
        return largest_error(actual, usual, exact, direction)

    def item(self, direction: str, alone: bool) -> Sequence[Tensor]:
        """A batch of one is doubled. Scalars, and gradients that are sums over the batch, are no item's."""
        if not self.per_item:
            return ()
        inputs = self.inputs()
        for name in self.per_item:
            x = inputs[name].detach()
            x = x[:1] if alone else torch.cat((x, x)) if len(x) == 1 else x
            inputs[name] = x.requires_grad_(inputs[name].requires_grad)
        B = len(inputs[self.per_item[0]])
        arguments = self._laid_out(inputs, Implementation(FASTGLOW))
        outputs = [x for x in tensors_in(self.function(*arguments.values())) if x.dim() and len(x) == B]
        if direction == FORWARD:
            return [x[:1].detach() for x in outputs]
        outputs = [x for x in outputs if x.requires_grad]
        upstream = upstream_gradients([x[:1] for x in outputs], self.dtype)
        gradients = [x.expand_as(y) for x, y in zip(upstream, outputs, strict=True)]
        wanted = [arguments[name] for name in self.per_item if arguments[name].requires_grad]
        return [x[:1] for x in torch.autograd.grad(outputs, wanted, gradients)] if wanted else ()

    def _function(self, implementation: Implementation) -> Callable[..., Any]:
        if implementation.name == COMPILE:
            return torch.compile(self.reference, dynamic=False)
        if implementation.name == PEER and self.peer is not None:
            return self.peer(implementation.nvidia)
        return self.function

    def _laid_out(self, inputs: dict[str, Tensor], implementation: Implementation) -> dict[str, Tensor]:
        if self.layout is None or implementation.name != FASTGLOW:
            return inputs
        wanted = {name: x.requires_grad for name, x in inputs.items()}
        with torch.no_grad():
            return {name: x.detach().requires_grad_(wanted[name]) for name, x in self.layout(inputs).items()}

    def _prepared(
        self, function: Callable[..., Any], inputs: dict[str, Tensor], direction: str
    ) -> Callable[[], list[Tensor]]:
        arguments = list(inputs.values())
        if direction == FORWARD:
            return lambda: list(tensors_in(function(*arguments)))
        outputs = [output for output in tensors_in(function(*arguments)) if output.requires_grad]
        gradients = upstream_gradients(outputs, self.dtype)
        wanted = [tensor for tensor in arguments if tensor.requires_grad]
        return lambda: list(torch.autograd.grad(outputs, wanted, gradients, retain_graph=True))


def on_this_machine(gpu: list[WorkloadT], cpu: list[WorkloadT]) -> list[WorkloadT]:
    """Published sizes on a GPU, small ones on a CPU."""
    return gpu if has_gpu() else cpu


def all_workloads() -> list[Workload]:
    """The suite's workloads, single operations before the whole model."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("test_bench_*.py"))
    names.sort(key=lambda name: name == "test_bench_waveglow")
    return [workload for name in names for workload in importlib.import_module(f"bench.{name}").WORKLOADS]


def cases(workloads: Sequence[Workload]) -> list:
    """Parameters for `pytest.mark.parametrize("workload, direction", ...)`."""
    return [
        pytest.param(workload, direction, id=f"{workload.name}-{direction}")
        for workload in workloads
        for direction in workload.directions
    ]


def tensors_in(result: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples and lists, skipping None."""
    if isinstance(result, Tensor):
        yield result
    elif result is not None:
        for part in result:
            yield from tensors_in(part)


def upstream_gradients(outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Random gradients representable in `dtype`, the same for outputs of the same shapes."""
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    return [torch.randn(x.shape, generator=generator, device=x.device).to(dtype).to(x.dtype) for x in outputs]


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """|actual - exact| / |exact| in the Euclidean norm."""
    difference = (actual.detach().double() - exact.detach()).norm().item()
    return difference / max(exact.detach().double().norm().item(), torch.finfo(torch.float64).tiny)


def largest_error(actual: Sequence[Tensor], usual: Sequence[Tensor], exact: Sequence[Tensor], direction: str) -> float:
    """The largest relative error among results.

    Args:
        actual: results under test.
        usual: results of PyTorch's operations in the same dtype.
        exact: the same in a wider dtype.
        direction: picks the bound from FACTORS.

    Raises:
        AssertionError: an error exceeds its bound.
    """
    errors = []
    for i, (a, u, e) in enumerate(zip(actual, usual, exact, strict=True)):
        assert a.shape == e.shape, f"result {i} has shape {tuple(a.shape)}, not {tuple(e.shape)}"
        error = relative_error(a, e)
        rounding = 2 * torch.finfo(torch.promote_types(a.dtype, u.dtype)).eps
        allowed = max(FACTORS[direction] * relative_error(u, e), rounding)
        assert error <= allowed, f"result {i} has a relative error of {error:.2g}, more than {allowed:.2g}"
        errors.append(error)
    return max(errors)


@contextmanager
def launching(implementation: Implementation) -> Iterator[None]:
    """Fails if fastglow launches no kernel on a GPU: the reference would be compared with itself."""
    before = backend.launches.total()
    yield
    if implementation.name == FASTGLOW and has_gpu():
        assert backend.launches.total() > before, "no kernel was launched"
