"""The file formats of checkpoints: torch.save's zip archive, its older stream, NeMo's archive of one, and safetensors.

Opening a container reads no weights: it gives a tree of plain data and descriptions of tensors, and reads single
tensors on demand. The file is memory-mapped, so a declared size costs nothing before it is checked against the file.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastglow.errors import FastglowError

from . import nemo
from .records import STORAGE_DTYPES, Global, PickledTensor, Storage, check_shape, damaged, show
from .tar_archive import GZIP_MAGIC, is_tar
from .unpickling import read_pickle
from .zip_directory import read_directory

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class StoredTensor(Protocol):
    """A tensor whose values are not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int: ...


class Container(ABC):
    """An open checkpoint file.

    Attributes:
        kind: kind of file, for display.
        top: the saved object: plain data, `Inert` records and descriptions of tensors.
        metadata: text beside the tensors (safetensors, NeMo).
        n_bytes: size of the file, or of the one inside NeMo's archive.
    """

    kind: str
    top: Any
    metadata: dict[str, str]
    n_bytes: int

    @abstractmethod
    def read(self, tensor: Any) -> Tensor:
        """A copy of one of this container's tensors, contiguous, on the CPU."""

    def read_all(self, tensors: Mapping[str, StoredTensor], data: bool = True) -> dict[str, Tensor]:
        """Reads several tensors; `data=False` makes tensors on the meta device, which only have a shape.

        Raises:
            FastglowError: together the tensors are much larger than the file (overlapping storages).
        """
        declared = sum(tensor.nbytes for tensor in tensors.values())
        if declared > 2 * self.n_bytes + 2**16:
            raise damaged(f"its tensors would take {declared:,} bytes, the file has {self.n_bytes:,}")
        if data:
            return {name: self.read(tensor) for name, tensor in tensors.items()}
        return {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}


class _PickleContainer(Container):
    """Base of both torch.save formats: storages are records of a mapped file."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.metadata = {}
        self.n_bytes = len(data)

    @abstractmethod
    def record(self, key: str) -> tuple[int, int]:
        """(position in the file, bytes) of a storage."""

    def read(self, tensor: PickledTensor) -> Tensor:
        storage = tensor.storage
        start, available = self.record(storage.key)
        needed = storage.offset + storage.nbytes
        if needed > available:
            raise damaged(f"storage {show(storage.key)} has {available} bytes, {needed} expected")
        if not tensor.numel:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        if tensor.numel > tensor.span:
            raise damaged(f"a tensor of shape {show(tensor.shape)} uses each element several times")
        size = tensor.dtype.itemsize
        start += storage.offset + tensor.offset * size
        with memoryview(self.data) as view, view[start : start + tensor.span * size] as content:
            flat = torch.frombuffer(bytearray(content), dtype=tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride).contiguous()

    def storage(self, persistent_id: Any) -> Storage:
        """The storage of torch's persistent id ("storage", type, key, device, elements)."""
        if not (isinstance(persistent_id, tuple) and len(persistent_id) in (5, 6)):
            raise damaged("a reference to a storage is malformed")
        tag, kind, key, _device, n_elements = persistent_id[:5]
        if not (tag == "storage" and isinstance(kind, Global) and isinstance(key, str) and type(n_elements) is int):
            raise damaged("a reference to a storage is malformed")
        dtype = STORAGE_DTYPES.get(kind.name)
        if dtype is None:
            raise FastglowError(f"storage type {show(kind.name)} is not supported: save the weights as floats")
        if n_elements < 0 or n_elements * dtype.itemsize > self.n_bytes:
            raise damaged(f"storage {show(key)} declares {n_elements} elements, the file has {self.n_bytes} bytes")
        return Storage(key, dtype, n_elements * dtype.itemsize)


class ZipContainer(_PickleContainer):
    """torch.save since 1.6: an uncompressed zip archive with `data.pkl` and one record per storage."""

    kind = "torch.save zip archive"

    def __init__(self, data: mmap.mmap):
        super().__init__(data)
        try:
            self._entries = read_directory(data)
        except ValueError as e:
            raise damaged(f"its zip directory cannot be read ({show(str(e))})") from None
        self._verified: dict[str, tuple[int, int]] = {}
        self._n_bytes_located = 0
        names = [name for name in self._entries if name.split("/")[1:] == ["data.pkl"]]
        if not names:
            raise FastglowError("a zip archive, but not from torch.save (it has no data.pkl)")
        self._folder = names[0].removesuffix("data.pkl")
        if f"{self._folder}constants.pkl" in self._entries:
            raise FastglowError("a TorchScript archive, which is a program: save its state_dict with torch.save")
        if f"{self._folder}byteorder" in self._entries and self._content("byteorder") != b"little":
            raise FastglowError("written by a big-endian machine: load and save it there as safetensors")
        self.top = read_pickle(BytesIO(self._content("data.pkl")), self.storage)

    def record(self, key: str) -> tuple[int, int]:
        return self._locate(f"data/{key}")

    def _content(self, name: str) -> bytes:
        start, size = self._locate(name)
        return self.data[start : start + size]

    def _locate(self, name: str) -> tuple[int, int]:
        """(position, bytes) of an entry; verifies its checksum the first time."""
        if name not in self._verified:
            entry = self._entries.get(self._folder + name)
            if entry is None:
                raise damaged(f"record {show(name)} is missing")
            if not entry.is_plain:
                raise FastglowError(
                    f"record {show(name)} is compressed or encrypted: unpack it and torch.save it again"
                )
            header = self.data[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
            if len(header) < _LOCAL_HEADER.size:
                raise damaged(f"record {show(name)} is outside the file")
            magic, name_size, extra_size = _LOCAL_HEADER.unpack(header)
            start = entry.header_offset + _LOCAL_HEADER.size + name_size + extra_size
            if magic != _ZIP_MAGIC or start + entry.size > self.n_bytes:
                raise damaged(f"record {show(name)} is outside the file")
            self._n_bytes_located += entry.size
            if self._n_bytes_located > self.n_bytes:
                raise damaged("its records overlap")
            # torch.serialization.set_crc32_options(False) writes zeros for the checksums
            if entry.checksum:
                with memoryview(self.data) as view, view[start : start + entry.size] as content:
                    checksum = zlib.crc32(content)
                if checksum != entry.checksum:
                    raise damaged(f"the checksum of record {show(name)} is wrong")
            self._verified[name] = (start, entry.size)
        return self._verified[name]


class LegacyContainer(_PickleContainer):
    """torch.save before 1.6: five pickles in a row, then the bytes of the storages."""

    kind = "torch.save stream (before torch 1.6)"

    def __init__(self, data: mmap.mmap):
        super().__init__(data)
        data.seek(0)
        if read_pickle(data) != _LEGACY_MAGIC:
            raise FastglowError("a pickle, but not from torch.save: save the state_dict with torch.save")
        if (protocol := read_pickle(data)) != _LEGACY_PROTOCOL:
            raise FastglowError(f"torch.save protocol {show(protocol)} is unknown: expected {_LEGACY_PROTOCOL}")
        system = read_pickle(data)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise FastglowError("written by a big-endian machine: load and save it there as safetensors")
        self._declared: dict[str, Storage] = {}
        self.top = read_pickle(data, self.storage)
        keys = read_pickle(data)
        if not isinstance(keys, list):
            raise damaged("the list of storages is missing")
        self._records: dict[str, tuple[int, int]] = {}
        position = data.tell()
        for key in keys:
            storage = self._declared.get(key) if isinstance(key, str) else None
            if storage is None:
                raise damaged(f"storage {show(key)} belongs to no tensor")
            # Eight bytes with the number of elements, then the elements.
            position += 8
            n_elements = storage.nbytes // storage.dtype.itemsize
            if data[position - 8 : position] != n_elements.to_bytes(8, "little"):
                raise damaged(f"storage {show(key)} must have {n_elements} elements, but stores another count")
            if position + storage.nbytes > self.n_bytes:
                raise damaged(f"storage {show(key)} needs {storage.nbytes} bytes, {self.n_bytes - position} are left")
            self._records[key] = (position, storage.nbytes)
            position += storage.nbytes

    def record(self, key: str) -> tuple[int, int]:
        if key not in self._records:
            raise damaged(f"storage {show(key)} is missing")
        return self._records[key]

    def storage(self, persistent_id: Any) -> Any:
        if isinstance(persistent_id, tuple) and len(persistent_id) == 4 and persistent_id[0] == "module":
            return persistent_id[1]  # a class; its source code, which follows, is ignored
        storage = super().storage(persistent_id)
        storage = self._declared.setdefault(storage.key, storage)
        view = persistent_id[5] if len(persistent_id) == 6 else None
        if view is None:
            return storage
        if not (isinstance(view, tuple) and len(view) == 3 and type(view[1]) is type(view[2]) is int):
            raise damaged("a reference to a storage is malformed")
        _, offset, n_elements = view
        size = storage.dtype.itemsize
        if offset < 0 or n_elements < 0 or (offset + n_elements) * size > storage.nbytes:
            raise damaged(f"a part of storage {show(storage.key)} reaches past its end")
        return Storage(storage.key, storage.dtype, n_elements * size, offset * size)


class _SafeTensor:
    """A tensor of a safetensors file, not read yet."""

    def __init__(self, name: str, handle: Any):
        self.name = name
        part = handle.get_slice(name)
        self.shape = tuple(part.get_shape())
        check_shape(self.shape)
        dtype = part.get_dtype()
        if dtype not in _SAFETENSORS_DTYPES:
            raise FastglowError(f"key {show(name)!r} has dtype {show(dtype)}: save it as F32, F16 or BF16")
        self.dtype = _SAFETENSORS_DTYPES[dtype]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsContainer(Container):
    """A safetensors file; the tree is the flat dictionary of its tensors."""

    kind = "safetensors"

    def __init__(self, handle: Any, n_bytes: int):
        self._handle = handle
        self.n_bytes = n_bytes
        self.metadata = handle.metadata() or {}
        self.top = {name: _SafeTensor(name, handle) for name in handle.keys()}

    def read(self, tensor: _SafeTensor) -> Tensor:
        return self._handle.get_tensor(tensor.name).clone()


def _foreign_kind(head: bytes) -> str | None:
    """Describes files that are often mistaken for checkpoints."""
    text = head[:64].lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page, not a checkpoint: the download link answered with an error or a question"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch it with git lfs pull"
    return None


def _pickle_container(data: mmap.mmap) -> _PickleContainer:
    head = data[:512]
    if head.startswith(_ZIP_MAGIC):
        return ZipContainer(data)
    if head.startswith(b"\x80"):
        return LegacyContainer(data)
    raise FastglowError(_foreign_kind(head) or "neither a torch.save nor a safetensors file")


def _is_safetensors(head: bytes) -> bool:
    # The header's length, at most 100 MB, then the header; the library checks the rest.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


@contextmanager
def open_checkpoint(path: str | os.PathLike) -> Iterator[Container]:
    """Opens a checkpoint file of any supported kind; its tensors can be read until the block ends.

    Raises:
        FastglowError: something is wrong with the file, here or inside the block; one line that begins with the path.
    """
    path = Path(path)
    try:
        with open(path, "rb") as f:
            mode = os.fstat(f.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise FastglowError("not a regular file")
            n_bytes = os.fstat(f.fileno()).st_size
            head = f.read(512)
            if not head:
                raise FastglowError("the file is empty")
            if _is_safetensors(head):
                with safe_open(path, framework="pt") as handle:
                    yield SafetensorsContainer(handle, n_bytes)
                return
            if head.startswith(GZIP_MAGIC) or is_tar(head):
                weights, config = nemo.read_archive(f)
                with weights:
                    container = _pickle_container(weights)
                    container.metadata[nemo.CONFIG] = config
                    container.kind = f"NeMo archive with a {container.kind}"
                    yield container
                return
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield _pickle_container(data)
    except FastglowError as e:
        raise FastglowError(f"{path}: {' '.join(str(e).split())}") from None
    except SafetensorError as e:
        raise FastglowError(f"{path}: {damaged(f'its safetensors header is wrong ({show(str(e))})')}") from None
    except OSError as e:
        raise FastglowError(f"{path}: {e.strerror or show(str(e))}") from None
