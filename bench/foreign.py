"""Other people's models before and after `fastglow.accelerate`: what is built, called, verified and recorded."""

import importlib
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from fastglow import accelerate
from fastglow.patching import Report

from .environment import device, has_gpu
from .peers import DLE
from .precision import FP16, OFF
from .workload import (
    EAGER,
    FASTGLOW,
    FORWARD_BACKWARD,
    INFERENCE,
    Cost,
    Implementation,
    Workload,
    launching,
    relative_error,
    upstream_gradients,
)

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Largest relative difference of a result after and before, in Euclidean norms: rounding, not another computation."""

SEED = 20180612  # before every call that is compared: accelerate keeps the random numbers


class Extent(NamedTuple):
    """How much one call computes."""

    batch: int
    frames: int
    symbols: int = 0


class Extents(NamedTuple):
    inference: Extent
    training: Extent


class Target(ABC):
    """One module of somebody else's package.

    Attributes:
        case: names it in the suite.
        package: its distribution on the package index, or where the code is from.
        module: the class, with what makes it one of several.
        small, cpu, gpu: extents to verify on a CPU with small widths, and to time with the published ones.
        asks_for_cuda: makes tensors by `torch.cuda.FloatTensor` and the like, also on a CPU.
    """

    case: str
    package: str
    module: str
    small: Extents
    cpu: Extents
    gpu: Extents
    asks_for_cuda = False

    @abstractmethod
    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        """As its users prepare it, with random weights. Skips the benchmark if the package is missing."""

    @abstractmethod
    def inputs(self, small: bool, extent: Extent) -> dict[str, Tensor]:
        """Random inputs by name."""

    @abstractmethod
    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any: ...

    @abstractmethod
    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """The outputs that a loss is computed from."""

    def imported(self, name: str) -> ModuleType:
        """The package's module of this name; skips the benchmark if it is missing or does not import here."""
        if find_spec(name.partition(".")[0]) is None:
            pytest.skip(f"{self.package} is not installed")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a shared library of another torch
            first = next(iter(str(error).splitlines()), type(error).__name__)
            pytest.skip(f"{self.package} does not import here: {first}")

    def version(self) -> str:
        """The package, with its version where it has one."""
        try:
            return f"{self.package} {metadata.version(self.package)}"
        except metadata.PackageNotFoundError:
            return self.package

    def on_this_machine(self) -> AbstractContextManager:
        """The context to call it in."""
        if not self.asks_for_cuda or has_gpu():
            return nullcontext()
        stack = ExitStack()
        for name in ("FloatTensor", "LongTensor"):
            stack.enter_context(mock.patch.object(torch.cuda, name, getattr(torch, name)))
        return stack


class Pair(NamedTuple):
    """A model and its accelerated copy."""

    before: nn.Module
    after: nn.Module
    report: Report


_pairs: dict["Acceleration", Pair] = {}  # the last one only: models are large


@dataclass(frozen=True)
class Acceleration(Workload):
    """A target in inference or in training: 'eager' is the model as it is, 'fastglow' the accelerated copy.

    Attributes:
        dtype: float32, or float16 by autocast.
    """

    target: Target
    training: bool
    dtype: torch.dtype
    small: bool = False

    op = "accelerate"
    composed = True
    bounded = False

    @property
    def case(self) -> str:  # type: ignore[override]  # a field in other workloads
        return f"{self.target.case}-small" if self.small else self.target.case

    @property
    def directions(self) -> tuple[str, ...]:
        return (FORWARD_BACKWARD if self.training else INFERENCE,)

    def supports(self, implementation: str) -> bool:
        return implementation in (FASTGLOW, EAGER)

    def capturable(self, direction: str) -> bool:
        return False  # users launch these models from the host, which is a part of the time

    def shapes(self) -> dict[str, list[int]]:
        return {name: list(x.shape) for name, x in self._inputs().items()}

    def cost(self, direction: str) -> Cost:
        """Of the pair built last; its arithmetic is not counted."""
        tensors = [*_pairs[self].before.parameters(), *self._inputs().values()]
        return Cost(sum(x.nbytes for x in tensors), 0)

    def details(self) -> dict[str, Any]:
        report = _pairs[self].report
        swapped = Counter(entry.op for entry in report.swapped)
        return {
            "package": self.target.version(),
            "module": self.target.module,
            "swapped": dict(swapped),
            "left": [str(entry) for entry in report.left],
        }

    def call(self, implementation: Implementation, direction: str) -> Callable[[], list[Tensor]]:
        pair = self._pair(implementation)
        inputs = self._inputs()
        return lambda: self._results(pair.after if implementation.name == FASTGLOW else pair.before, inputs)

    def verify(self, implementation: Implementation, direction: str) -> float:
        """The largest relative difference of a result after and before, for the same random numbers; the gradients
        count as one vector. In float32, without TF32."""
        pair = self._pair(implementation)
        if implementation.name == EAGER:
            return 0.0
        pair.after.load_state_dict(pair.before.state_dict())  # timed calls change statistics
        inputs = self._inputs()
        with OFF.products() if self.dtype == torch.float32 else nullcontext():
            expected = self._compared(pair.before, inputs)
            with launching(implementation) if pair.report.swapped else nullcontext():
                found = self._compared(pair.after, inputs)
        differences = list(map(relative_error, found, expected))
        worst = max(differences)
        assert [x.shape for x in found] == [x.shape for x in expected]
        assert worst <= TOLERANCES[self.dtype], f"results differ by {worst:.2g} after accelerate: {differences}"
        return worst

    def _pair(self, implementation: Implementation) -> Pair:
        if self not in _pairs:
            _pairs.clear()
            before, after = (self._build(implementation.dle) for _ in range(2))
            with self.target.on_this_machine():  # accelerate calls the model
                _pairs[self] = Pair(before, after, accelerate(after))
        return _pairs[self]

    def _build(self, dle: DLE | None) -> nn.Module:
        torch.manual_seed(SEED)
        with warnings.catch_warnings(), torch.device(device()), self.target.on_this_machine():
            warnings.simplefilter("ignore")  # most of this code is older than PyTorch
            model = self.target.build(self.small, self.training, dle)
        return vary(model).to(device()).train(self.training)

    def _inputs(self) -> dict[str, Tensor]:
        extents = self.target.small if self.small else self.target.gpu if has_gpu() else self.target.cpu
        inputs = self.target.inputs(self.small, extents.training if self.training else extents.inference)
        return {name: x.to(device()) for name, x in inputs.items()}

    def _compared(self, model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        torch.manual_seed(SEED)
        return self._results(model, inputs)

    def _results(self, model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        """The outputs and, in training, the gradients of all parameters as one vector."""
        autocast = FP16.autocast() if self.dtype == torch.float16 else nullcontext()
        with self.target.on_this_machine():
            if not self.training:
                with torch.no_grad(), autocast:
                    return list(_floats(self.target.infer(model, inputs)))
            with autocast:
                outputs = [x for x in _floats(self.target.train(model, inputs)) if x.requires_grad]
            parameters = list(model.parameters())
            upstream = upstream_gradients(outputs, self.dtype)
            gradients = torch.autograd.grad(outputs, parameters, upstream, materialize_grads=True, allow_unused=True)
        return [*(x.detach() for x in outputs), torch.cat([x.flatten() for x in gradients])]


def vary(model: nn.Module) -> nn.Module:
    """Other values than a new model's: zeros, such as those that end a new coupling network, would hide what comes
    before them, and rotations have no log-determinant."""
    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
            else:
                parameter.mul_(1.1)
    return model


def _floats(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from _floats(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _floats(part)
