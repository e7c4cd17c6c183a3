"""Runs the programs of a launch in Triton's interpreter one by one, in any order, and watches what they do.

The interpreter itself runs all programs of a grid in ascending order, which hides whatever depends on that order.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from triton.runtime import interpreter

from ..interpreter import quicken

Grid = tuple[int, int, int]
Program = tuple[int, int, int]

Choose = Callable[[str, Grid], Iterable[Program]]
"""(kernel's name, grid) -> the programs to run, in order; a generator may choose by what earlier ones did."""


def every_program(kernel: str, grid: Grid) -> list[Program]:
    """All programs of a launch, in the interpreter's order."""
    x, y, z = map(range, grid)
    return list(itertools.product(x, y, z))


class Observer:
    """Gets what programs do; a method that is not overridden ignores it.

    Addresses are integers per element, shaped as the access; masked elements are left out and the rest is flat.
    """

    def launched(self, kernel: str, grid: Grid) -> None:
        """Before the programs of a launch."""

    def called(self, arguments: Mapping[str, Any]) -> None:
        """After `launched`: the kernel's arguments by name, tensors and structs of them as they were passed."""

    def started(self, program: Program) -> None:
        """Before a program's first instruction."""

    def ended(self, program: Program) -> None:
        """After a program's last instruction."""

    def identified(self, axis: int) -> None:
        """Before a program reads its index along an axis of the grid."""

    def loaded(self, addresses: np.ndarray, itemsize: int) -> None:
        """Before a load."""

    def stored(self, addresses: np.ndarray, itemsize: int) -> None:
        """Before a store."""

    def exchanged(self, addresses: np.ndarray, itemsize: int, sem: str) -> None:
        """Before an atomic operation; `sem` is 'relaxed', 'acquire', 'release' or 'acq_rel'."""

    def returned(self, op: str, before: np.ndarray, operands: np.ndarray, scope: str) -> None:
        """After that operation: its name, as 'add'; the values it found; its scope, as 'gpu' or 'cta'."""

    def synchronized(self) -> None:
        """Before a `tl.debug_barrier`, which orders a program's threads."""

    def multiplied(self, m: int, n: int, k: int, itemsize: int) -> None:
        """Before a `tl.dot` of [m, k] and [k, n] operands."""


@contextmanager
def run_programs(choose: Choose = every_program, *observers: Observer) -> Iterator[None]:
    """Inside, each launch runs the programs that `choose` gives, in that order, under the eyes of the observers."""
    builder = interpreter.interpreter_builder

    def call(executor: Any, *args_dev: Any, **kwargs: Any) -> None:
        names = inspect.getfullargspec(executor.fn).args
        kwargs = {name: value for name, value in kwargs.items() if name in names}
        args_hst, kwargs_hst = executor._init_args_hst(args_dev, kwargs)
        scope = interpreter._patch_lang(executor.fn)
        try:
            arguments = inspect.getcallargs(executor.fn, *args_hst, **kwargs_hst)
            args = {
                name: value if name in executor.constexprs else interpreter._implicit_cvt(value)
                for name, value in arguments.items()
            }
            grid = executor.grid(args) if callable(executor.grid) else executor.grid
            grid = tuple(grid) + (1,) * (3 - len(grid))
            builder.set_grid_dim(*grid)
            kernel = executor.fn.__name__
            for observer in observers:
                observer.launched(kernel, grid)
                observer.called(arguments)
            for program in choose(kernel, grid):
                builder.set_grid_idx(*program)
                for observer in observers:
                    observer.started(program)
                executor.fn(**args)
                for observer in observers:
                    observer.ended(program)
        finally:
            scope.restore()
        executor._restore_args_dev(args_dev, args_hst, kwargs, kwargs_hst)

    def get_program_id(axis: int) -> Any:
        for observer in observers:
            observer.identified(axis)
        return before["create_get_program_id"](axis)

    def masked_load(ptrs: Any, mask: Any, *rest: Any) -> Any:
        _tell("loaded", ptrs, mask)
        return before["create_masked_load"](ptrs, mask, *rest)

    def masked_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _tell("stored", ptrs, mask)
        return before["create_masked_store"](ptrs, value, mask, *rest)

    def atomic_rmw(op: Any, ptr: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        _tell("exchanged", ptr, mask, sem.name.lower().replace("acquire_release", "acq_rel"))
        result = before["create_atomic_rmw"](op, ptr, value, mask, sem, scope)
        found, operands = (_kept(x.data, mask) for x in (result, value))
        for observer in observers:
            observer.returned(op.name.lower(), found, operands, scope.name.lower())
        return result

    def barrier() -> None:
        for observer in observers:
            observer.synchronized()
        before["create_barrier"]()

    def dot(a: Any, b: Any, *rest: Any) -> Any:
        (m, k), n = a.data.shape[-2:], b.data.shape[-1]
        for observer in observers:
            observer.multiplied(m, n, k, a.data.itemsize)
        return before["create_dot"](a, b, *rest)

    def _tell(event: str, ptrs: Any, mask: Any, *rest: Any) -> None:
        addresses = _kept(ptrs.data, mask)
        itemsize = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        for observer in observers:
            getattr(observer, event)(addresses, itemsize, *rest)

    def _kept(values: np.ndarray, mask: Any) -> np.ndarray:
        # A mask may hold integers: the interpreter gives them for a comparison of scalars that is broadcast.
        kept = mask.data.astype(bool)
        return np.broadcast_to(values, kept.shape)[kept]

    replaced: dict[str, Callable] = {}
    if observers:
        replaced = {
            "create_get_program_id": get_program_id,
            "create_masked_load": masked_load,
            "create_masked_store": masked_store,
            "create_atomic_rmw": atomic_rmw,
            "create_barrier": barrier,
            "create_dot": dot,
        }
    before = {name: getattr(builder, name) for name in replaced}
    quicken()
    original = interpreter.GridExecutor.__call__
    interpreter.GridExecutor.__call__ = call
    vars(builder).update(replaced)
    try:
        yield
    finally:
        interpreter.GridExecutor.__call__ = original
        for name in replaced:
            delattr(builder, name)
