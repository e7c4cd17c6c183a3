"""The arrays of a prepared data set: NumPy's .npy files, of a dtype and shape that are known before."""

import re
from pathlib import Path

import numpy as np

# NumPy reads the header as Python source, which warns of what is damaged and opens archives and pickles besides.
_BEGINNING = re.compile(
    rb"\x93NUMPY(?:\x01\x00(?P<short>..)|[\x02\x03]\x00(?P<long>....))"
    rb"\{'descr': '(?P<dtype>[<|]\w{1,8})', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>[0-9, ]{0,99})\), \} *\n",
    re.DOTALL,
)


def read_array(path: Path, dtype: type, shape: tuple[int, ...], *, mapped: bool = False) -> np.ndarray:
    """Reads what np.save wrote; `mapped`: when its numbers are looked at, and not before.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not whole, or not of that dtype and shape.
    """
    with open(path, "rb") as file:
        head = _BEGINNING.match(file.read(512))
        n_bytes = file.seek(0, 2)
    if head is None:
        raise ValueError("it is no NumPy array")
    size = head["short"] or head["long"]
    found = head["dtype"].decode(), tuple(int(n) for n in head["shape"].decode().replace(",", " ").split())
    expected = np.dtype(dtype)
    if found != (expected.str, shape):
        raise ValueError(f"it holds {found[0]} {list(found[1])}, expected are {expected.str} {list(shape)}")
    needed = head.end() + int(np.prod(shape, dtype=object)) * expected.itemsize
    if head.end() != head.start("dtype") - len(b"{'descr': '") + int.from_bytes(size, "little") or n_bytes != needed:
        raise ValueError(f"it has {n_bytes} bytes, expected are {needed}")
    order = "F" if head["order"] == b"True" else "C"
    if mapped:
        return np.memmap(path, expected, "r", head.end(), shape, order)
    return np.fromfile(path, expected, offset=head.end()).reshape(shape, order=order)
