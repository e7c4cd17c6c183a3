"""Reads the .npy files of a prepared data set, whose dtype and shape are known in advance."""

import re
from pathlib import Path
from typing import Literal

import numpy as np

# np.load evaluates the header as Python source, warns about damaged ones, and also opens archives and pickles.
_BEGINNING = re.compile(
    rb"\x93NUMPY(?:\x01\x00(?P<short>..)|[\x02\x03]\x00(?P<long>....))"
    rb"\{'descr': '(?P<dtype>[<|]\w{1,8})', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>[0-9, ]{0,99})\), \} *\n",
    re.DOTALL,
)


def read_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...], *, mapped: bool = False) -> np.ndarray:
    """Reads a file of np.save, as a memory map if `mapped`.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is incomplete, or of another dtype or shape.
    """
    with open(path, "rb") as file:
        head = _BEGINNING.match(file.read(512))
        n_bytes = file.seek(0, 2)
    if head is None:
        raise ValueError("it is not a NumPy array")
    size = head["short"] or head["long"]
    found = head["dtype"].decode(), tuple(int(n) for n in head["shape"].decode().replace(",", " ").split())
    expected = np.dtype(dtype)
    if found != (expected.str, shape):
        raise ValueError(f"it holds {found[0]} {list(found[1])}, must be {expected.str} {list(shape)}")
    needed = head.end() + int(np.prod(shape, dtype=object)) * expected.itemsize
    if head.end() != head.start("dtype") - len(b"{'descr': '") + int.from_bytes(size, "little") or n_bytes != needed:
        raise ValueError(f"its header is damaged, or its size of {n_bytes} bytes must be {needed}")
    order: Literal["F", "C"] = "F" if head["order"] == b"True" else "C"
    if mapped:
        return np.memmap(path, expected, "r", head.end(), shape, order)
    return np.fromfile(path, expected, offset=head.end()).reshape(shape, order=order)
