"""Watches the integers of kernels in Triton's interpreter: sums and products that wrap, hints that are false.

The interpreter's 32-bit integers wrap as a GPU's do. It ignores hints, which a GPU's compiler believes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


class WrapError(AssertionError):
    """A sum or product does not fit in a signed integer of 32 bits."""


class HintError(AssertionError):
    """A value is not a multiple of what `tl.multiple_of` says."""


@contextmanager
def checked_integers() -> Iterator[None]:
    """Inside, kernels raise WrapError and HintError. Run them with `run_programs`, which lets errors pass.

    Unsigned integers may wrap: random numbers need it.
    """
    builder = interpreter.interpreter_builder
    operators = {
        "create_add": np.add,
        "create_sub": np.subtract,
        "create_mul": np.multiply,
        "create_shl": np.left_shift,
    }
    before = {name: getattr(builder, name) for name in (*operators, "create_int_cast")}
    convert, set_attr = interpreter._implicit_cvt, interpreter.TensorHandle.set_attr

    def checked(name: str, operator: Callable) -> Callable:
        def call(lhs: Any, rhs: Any) -> Any:
            if lhs.dtype.scalar == tl.int32:
                exact = operator(lhs.data.astype(np.int64), rhs.data.astype(np.int64))
                _check_fits(name, exact, lhs.data, rhs.data)
            return before[name](lhs, rhs)

        return call

    def int_cast(source: Any, to: Any, is_signed: bool) -> Any:
        if to.scalar == tl.int32 and source.dtype.scalar == tl.int64:
            _check_fits("cast", source.data, source.data)
        return before["create_int_cast"](source, to, is_signed)

    def implicit(argument: Any) -> Any:
        # The interpreter gives these 32 bits, a GPU 64.
        if isinstance(argument, int) and 2**31 <= argument < 2**32:
            return tl.tensor(interpreter.TensorHandle(np.array([argument], np.int64), tl.int64), tl.int64)
        return convert(argument)

    def hint(handle: Any, name: str, values: Any) -> None:
        if name == "tt.divisibility" and (handle.data.reshape(-1) % np.uint64(values[-1])).any():
            raise HintError(f"{handle.data.reshape(-1)[0]} is not a multiple of {values[-1]}")
        set_attr(handle, name, values)

    vars(builder).update({name: checked(name, operator) for name, operator in operators.items()})
    vars(builder)["create_int_cast"] = int_cast
    interpreter._implicit_cvt, interpreter.TensorHandle.set_attr = implicit, hint
    try:
        yield
    finally:
        interpreter._implicit_cvt, interpreter.TensorHandle.set_attr = convert, set_attr
        for name in before:
            delattr(builder, name)


def _check_fits(name: str, exact: np.ndarray, *operands: np.ndarray) -> None:
    wrong = (exact < -(2**31)) | (exact >= 2**31)
    if wrong.any():
        values = [int(np.broadcast_to(x, exact.shape)[wrong][0]) for x in operands]
        raise WrapError(f"{name.removeprefix('create_')} of {values} in 32 bits")
