"""The work of every launch of a call, from sampled programs of the real launch in Triton's interpreter.

Programs compute addresses and read integers; floating-point loads and products give zeros, so no program costs much and
no tensor's memory is touched.
"""

import pickle
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

from fastglow.kernels.backend import use_backend
from tests.execution.programs import Grid, Observer, Program, run_programs

from .tensors import Operator, Shapes

SECTOR = 32
"""Bytes of a memory transaction: an access moves whole sectors."""

UNCOUNTED = {"offset", "seed", "start"}
"""Arguments on which no program's work depends: launches that differ in these alone are counted once."""

Sampling = Generator[Program, None, np.ndarray]
"""Yields programs to run, and returns counts."""

Piece = tuple[int, int, np.ndarray]
"""(first, last, counts of each) of a run of equal programs."""

LONG = 500
"""Fewer programs with more accesses than this are run: they take seconds each."""

MOST_PIECES, MOST_LONG_PIECES = 24, 4
"""Runs of equal programs along an axis, at most; more is a pattern, such as the rows of a flat grid."""

CHECKED, SAMPLED = 8, 48
"""Programs that check the runs; programs that are run instead where those are wrong, but CHECKED long ones."""

GOLDEN_RATIO = 0.6180339887498949

PERSISTENT = "decode_loop_kernel"  # waits for its other programs, so it is not sampled: it runs the phases' tiles

FIELDS = ("bytes", "requested", "unique", "flops", "scalar", "accesses", "products")


@dataclass(frozen=True)
class Work:
    """Totals over a launch, except for the last three, which are of its busiest program.

    Attributes:
        bytes: through the L2 cache, in whole sectors per access.
        requested: the bytes of these that the program asked for.
        unique: distinct bytes, at least what must come from or go to memory once.
        flops: of `tl.dot`.
        scalar: floating-point operations outside of products, transcendental ones as 8, and a Philox product as 8.
        accesses: of a program: loads and stores of tiles.
        products: of a program: `tl.dot`s.
        largest: share of the busiest program in bytes, in flops and in scalar operations.
    """

    grid: Grid
    programs: int
    bytes: int
    requested: int
    unique: int
    flops: int
    scalar: int
    accesses: int
    products: int
    largest: tuple[int, int, int]


@dataclass
class Launch:
    kernel: str
    work: Work | None
    source: bytes  # what `binaries.compile_launch` takes
    count: int = 1


@dataclass
class Call:
    """Everything that a call launches."""

    launches: dict[tuple, Launch] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)


class _Counter(Observer):
    """Counts what one program does."""

    def __init__(self) -> None:
        self.patterns: dict[tuple, np.ndarray] = {}

    def started(self, program: Program) -> None:
        self.counts = dict.fromkeys(FIELDS, 0)
        self.sectors: list[np.ndarray] = []
        self.extents: list[tuple[int, int]] = []

    def loaded(self, addresses: np.ndarray, itemsize: int) -> None:
        if not addresses.size:
            return
        flat = addresses.reshape(-1).astype(np.int64, copy=False)
        first = int(flat[0]) // SECTOR
        relative = flat - first * SECTOR
        key = (itemsize, relative.tobytes())
        found = self.patterns.get(key)
        if found is None:
            found = self.patterns[key] = np.unique(relative // SECTOR)
        self.counts["bytes"] += SECTOR * len(found)
        self.counts["requested"] += itemsize * flat.size
        self.counts["accesses"] += 1
        self.sectors.append(found + first)
        self.extents.append((int(found[0]) + first, int(found[-1]) + first + 1))

    stored = loaded

    def exchanged(self, addresses: np.ndarray, itemsize: int, sem: str) -> None:
        self.loaded(addresses, itemsize)

    def multiplied(self, m: int, n: int, k: int, itemsize: int) -> None:
        self.counts["flops"] += 2 * m * n * k
        self.counts["products"] += 1

    def computed(self, operations: int) -> None:
        self.counts["scalar"] += operations

    def finish(self) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """(counts in the order of FIELDS, first and last sector of each access)."""
        if self.sectors:
            self.counts["unique"] = SECTOR * len(np.unique(np.concatenate(self.sectors)))
        return np.array([self.counts[name] for name in FIELDS], dtype=np.int64), self.extents


class Recorder:
    """Records the launches and operators of `recording` calls."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.known: dict[tuple, tuple[Work | None, bytes]] = {}
        self.counter = _Counter()
        self._results: dict[Program, tuple[np.ndarray, list[tuple[int, int]]]] = {}
        self._work: Work | None = None
        self._interprets = False

    def choose(self, kernel: str, grid: Grid) -> Iterator[Program]:
        """The programs that are run, along one axis after the other: one if all are alike."""
        self._results = {}
        total = yield from self._axis(grid, (), list(range(3)))
        busiest = np.max([counts for counts, _ in self._results.values()], axis=0)
        work = dict(zip(FIELDS, map(int, total), strict=True))
        work["unique"] = min(work["unique"], _extent([extents for _, extents in self._results.values()]))
        most = dict(zip(FIELDS, map(int, busiest), strict=True))
        largest = most["bytes"], most["flops"], most["scalar"]
        work |= {"accesses": most["accesses"], "products": most["products"]}
        self._work = Work(grid, int(np.prod(grid)), **work, largest=largest)

    def _run(self, program: tuple[int, ...]) -> Sampling:
        program = (program[0], program[1], program[2])
        if program not in self._results:
            yield program
            self._results[program] = self.counter.finish()
        return self._results[program][0]

    def _axis(self, grid: Grid, fixed: tuple[int, ...], free: list[int]) -> Sampling:
        """The sum over all programs whose last coordinates are `fixed`."""
        if not free:
            return (yield from self._run(fixed))
        axis = free[-1]
        n = grid[axis]

        def at(i: int) -> Sampling:
            return (yield from self._axis(grid, (i, *fixed), free[:-1]))

        # Steps of the golden ratio hit every kind of program in its proportion, whatever the period of a flat grid.
        sampled = [int(n * (i * GOLDEN_RATIO % 1)) for i in range(SAMPLED)]
        # Uniform along this axis, as far as the middle of the others shows.
        middle = tuple(grid[a] // 2 for a in free[:-1])
        probes: list[np.ndarray] = []
        for i in (n // 2, n - 1, *sampled[:CHECKED]):
            probes.append((yield from self._run((*middle, i, *fixed))))
        if all((probe == probes[0]).all() for probe in probes):
            return n * (yield from at(n // 2))
        pieces = yield from self._pieces(at, n)
        found: list[np.ndarray] = []
        for i in sampled[:CHECKED]:
            found.append((yield from at(i)))
        if pieces and all((_at(pieces, i) == counts).all() for i, counts in zip(sampled, found, strict=False)):
            return np.sum([(high - low + 1) * counts for low, high, counts in pieces], axis=0)
        if not self._is_long():
            for i in sampled[CHECKED:]:
                found.append((yield from at(i)))
        return n * np.sum(found, axis=0) // len(found)

    def _is_long(self) -> bool:
        return max(counts[FIELDS.index("accesses")] for counts, _ in self._results.values()) > LONG

    def _pieces(self, at: Callable[[int], Sampling], n: int) -> Generator[Program, None, list[Piece]]:
        """Runs of programs whose ends and middle are equal, found by halving; none if there are too many of them."""
        pieces: list[Piece] = []
        todo = [(0, n - 1)]
        most = MOST_LONG_PIECES if self._is_long() else MOST_PIECES
        while todo:
            if len(pieces) + len(todo) > most:
                return []
            low, high = todo.pop()
            middle = (low + high) // 2
            a, b, c = (yield from at(low)), (yield from at(middle)), (yield from at(high))
            if (a == b).all() and (a == c).all():
                pieces.append((low, high, a))
            else:
                todo += [(middle + 1, high), (low, middle)]
        return pieces

    def operator(self, operator: Operator) -> None:
        if self.call is not None and not self._interprets:
            self.call.operators.append(operator)

    def launched(self, run: Callable, executor: Any, args: tuple, kwargs: dict) -> None:
        if self.call is None:
            return
        names = executor.arg_names
        given = dict(zip(names, args, strict=False)) | kwargs
        key = (executor.fn.__name__, _grid(executor.grid), *(
            (name, _signature(value)) for name, value in given.items() if name not in UNCOUNTED
        ))  # fmt: skip
        if key not in self.known:
            self._work = None
            if executor.fn.__name__ != PERSISTENT:
                self._interprets = True  # the interpreter's own copies are no operators of the call
                run(executor, *args, **kwargs)
                self._interprets = False
            self.known[key] = self._work, _source(executor.fn, _grid(executor.grid), given)
        work, source = self.known[key]
        found = self.call.launches.get(key)
        if found is None:
            self.call.launches[key] = Launch(executor.fn.__name__, work, source)
        else:
            found.count += 1

    @contextmanager
    def recording(self) -> Iterator[Call]:
        self.call = Call()
        try:
            yield self.call
        finally:
            self.call = None


@contextmanager
def counting() -> Iterator[Recorder]:
    """Inside, launches and PyTorch's operations are counted instead of computed."""
    recorder = Recorder()
    builder = interpreter.interpreter_builder
    patches = _patches(builder, recorder.counter)
    with ExitStack() as stack:
        stack.callback(lambda: [vars(builder).pop(name, None) for name in patches])
        vars(builder).update(patches)
        stack.enter_context(run_programs(recorder.choose, recorder.counter))
        run = interpreter.GridExecutor.__call__
        stack.callback(setattr, interpreter.GridExecutor, "__call__", run)
        interpreter.GridExecutor.__call__ = lambda executor, *args, **kwargs: recorder.launched(
            run, executor, args, kwargs
        )
        stack.enter_context(use_backend("triton"))
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(Shapes(recorder.operator))
        yield recorder


def _patches(builder: Any, counter: _Counter) -> dict[str, Callable]:
    """Replacements of the interpreter's operations that touch no floating-point memory."""
    handle = interpreter.TensorHandle
    before = {name: getattr(builder, name) for name in ("create_masked_load", "create_masked_store", "create_umulhi")}
    binary, unary = builder.binary_op, builder.unary_op

    def load(ptrs, mask, other, *rest):
        kind = ptrs.get_element_ty()
        if not kind.is_floating():
            return before["create_masked_load"](ptrs, mask, other, *rest)
        return handle(np.zeros(ptrs.data.shape, interpreter._get_np_dtype(kind)), kind)

    def store(ptrs, value, mask, *rest):
        if not ptrs.get_element_ty().is_floating():
            before["create_masked_store"](ptrs, value, mask, *rest)

    def dot(a, b, d, *rest):
        return handle(d.data, d.dtype.scalar)

    def binary_op(lhs, rhs, op):
        if lhs.data.dtype.kind == "f":
            counter.computed(max(lhs.data.size, rhs.data.size))
        return binary(lhs, rhs, op)

    def unary_op(arg, op):
        if arg.data.dtype.kind == "f":
            counter.computed(8 * arg.data.size)
        return unary(arg, op)

    def umulhi(lhs, rhs):
        counter.computed(8 * lhs.data.size)
        return before["create_umulhi"](lhs, rhs)

    return {
        "create_masked_load": load,
        "create_masked_store": store,
        "create_dot": dot,
        "binary_op": binary_op,
        "unary_op": unary_op,
        "create_umulhi": umulhi,
    }


def _at(pieces: list[Piece], i: int) -> np.ndarray:
    return next(counts for low, high, counts in pieces if low <= i <= high)


def _extent(programs: list[list[tuple[int, int]]]) -> int:
    """Bytes that all programs' accesses span: the n-th accesses of programs are to one tensor."""
    spans = []
    for i in range(max(map(len, programs), default=0)):
        of_access = [extents[i] for extents in programs if i < len(extents)]
        spans.append((min(first for first, _ in of_access), max(last for _, last in of_access)))
    total, end = 0, 0
    for first, last in sorted(spans):
        total += max(0, last - max(first, end))
        end = max(end, last)
    return SECTOR * total


def _grid(grid: Any) -> Grid:
    return tuple(grid) + (1,) * (3 - len(grid))


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16
    if isinstance(value, tuple):
        return tuple(map(_signature, value))
    value = getattr(value, "value", value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


@dataclass(frozen=True)
class Pointer:
    """Stands for a tensor where a kernel is compiled."""

    dtype: torch.dtype
    address: int  # modulo 16

    def data_ptr(self) -> int:
        return self.address

    @staticmethod
    def ptr_range() -> int:
        return 1 << 40


def _source(function: Any, grid: Grid, given: dict[str, Any]) -> bytes:
    def pointers(value: Any) -> Any:
        if isinstance(value, Tensor):
            return Pointer(value.dtype, value.data_ptr() % 16)
        if isinstance(value, tuple):
            parts = map(pointers, value)
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    arguments = {name: pointers(value) for name, value in given.items()}
    return pickle.dumps((function.__module__, function.__name__, grid, arguments))
