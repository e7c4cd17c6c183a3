"""Runs a call whose programs run in several orders, on memory with several poisons, and requires equal bits."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .bounds import Bounds
from .memory import HUGE, NAN, Memory, Poison
from .programs import Choose, Grid, Observer, Program, every_program, run_programs
from .races import Recorder, find_races

Results = Mapping[str, Tensor]

Call = Callable[[Memory], Results]
"""Makes its tensors by the memory's `place`, from the seed that PyTorch's generator has, and returns all results."""


class Order(NamedTuple):
    name: str
    choose: Callable[[], Choose]  # for one run


def _backwards(kernel: str, grid: Grid) -> list[Program]:
    return every_program(kernel, grid)[::-1]


def _shuffled(seed: int) -> Order:
    def choose() -> Choose:
        draw = random.Random(seed)
        return lambda kernel, grid: draw.sample(programs := every_program(kernel, grid), len(programs))

    return Order(f"shuffle {seed}", choose)


ASCENDING = Order("ascending", lambda: every_program)
REVERSED = Order("reversed", lambda: _backwards)

OTHER_RUNS: Sequence[tuple[Order, Poison]] = (
    (REVERSED, HUGE),
    (_shuffled(1), NAN),
    (_shuffled(2), HUGE),
)
"""Compared with the first one: ascending, with NaN."""


@dataclass
class Executed(Observer):
    """Counts programs: of each kernel, the most along each axis of a grid, and the axes on which it finds itself."""

    most: dict[str, Grid] = field(default_factory=dict)
    axes: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _kernel: str = ""

    def launched(self, kernel: str, grid: Grid) -> None:
        self._kernel = kernel
        x, y, z = (max(n) for n in zip(grid, self.most.get(kernel, (1, 1, 1)), strict=True))
        self.most[kernel] = (x, y, z)

    def identified(self, axis: int) -> None:
        self.axes[self._kernel].add(axis)

    def add(self, other: "Executed") -> None:
        for kernel, grid in other.most.items():
            self.launched(kernel, grid)
            self.axes[kernel] |= other.axes[kernel]

    def missing(self, kernels: Iterable[str]) -> list[str]:
        """Kernels that were not executed, and axes along which there was never more than one program."""
        return [f"{kernel} was not executed" for kernel in sorted(set(kernels) - self.most.keys())] + [
            f"{kernel} had one program along axis {axis}"
            for kernel in sorted(set(kernels) & self.most.keys())
            for axis in sorted(self.axes[kernel])
            if self.most[kernel][axis] == 1
        ]


@dataclass
class First:
    """The first run, that all others must equal."""

    results: Results
    executed: Executed


def first_run(call: Call) -> First:
    """In ascending order, with NaN in uninitialised memory.

    Raises:
        AssertionError: an access outside a launch's tensors, programs of a launch that touch the same memory, or a
            result that is not finite.
    """
    memory, recorder, executed = Memory(NAN), Recorder(), Executed()
    results = run(call, memory, ASCENDING, Bounds(memory), recorder, executed)
    races = [race for launch in recorder.launches for race in find_races(launch)]
    assert not races, "\n".join(map(str, races))
    for name, x in results.items():
        assert not x.is_floating_point() or bool(x.isfinite().all()), f"{name} is not finite"
    return First(results, executed)


def assert_equals_first(call: Call, first: First, runs: Sequence[tuple[Order, Poison]] = OTHER_RUNS) -> None:
    """All other runs have the first one's bits."""
    for order, poison in runs:
        memory = Memory(poison)
        results = run(call, memory, order, Bounds(memory))
        assert results.keys() == first.results.keys()
        for name, x in results.items():
            expected = first.results[name]
            assert x.dtype == expected.dtype and x.shape == expected.shape, name
            assert _bits(x) == _bits(expected), f"{name} changes with programs {order.name}, {poison.name} in memory"


def run(call: Call, memory: Memory, order: Order, *observers: Observer) -> Results:
    """The call's results, from the same seed each time."""
    torch.manual_seed(0)
    with memory, run_programs(order.choose(), *observers):
        return call(memory)


def _bits(x: Tensor) -> bytes:
    return x.detach().contiguous().numpy().tobytes()
