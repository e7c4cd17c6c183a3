"""How batches reach the device: made by processes that live as long as the run, moved ahead of their use.

Batches are written into buffers that the loader's processes share with the training process: fresh shared memory for
each batch costs more than filling it. The buffers are an anonymous map, which takes no file descriptor and no room in
/dev/shm, of which containers have little.
"""

import logging
import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastglow.errors import FastglowError

from .data import SplitDataset
from .interruption import batches_of, begin_loading
from .packing import Packed, Packing

logger = logging.getLogger(__name__)

PREFETCHED = 2  # batches that a process makes ahead

SPARE_BUFFERS = 2  # beyond those of the processes: of the batch in use, and of the one that is being copied

Event = torch.cuda.Event | None


class Moved(Protocol):
    """A batch on a device."""

    def tensors(self) -> tuple[Tensor, ...]: ...


MovedT = TypeVar("MovedT", bound=Moved)
MovedT_co = TypeVar("MovedT_co", bound=Moved, covariant=True)


class Movable(Protocol[MovedT_co]):
    """A batch on the host."""

    def to(self, device: torch.device) -> MovedT_co: ...


class DevicePrefetcher(Generic[MovedT]):
    """Batches on a device, in order, each of them once; on a GPU they are copied and made ready on a side stream.

    An error of the source is raised in place of its batch, after those before it.

    Args:
        batches: on the host. The next one is asked for once the copy of the one before has been launched, not done.
        device: where they go.
        stream: on a GPU, the stream of the copies; None: a new one.
        ahead: batches that are moved before they are asked for; default: 1 on a GPU, none elsewhere.
    """

    def __init__(
        self,
        batches: Iterable[Movable[MovedT]],
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
        ahead: int | None = None,
    ):
        on_gpu = device.type == "cuda"
        self.batches = batches
        self.device = device
        self.stream = torch.cuda.Stream(device) if on_gpu and stream is None else stream
        self.ahead = int(on_gpu) if ahead is None else ahead

    def __iter__(self) -> Iterator[MovedT]:
        source = iter(self.batches)
        waiting: deque[tuple[MovedT, Event]] = deque()
        ended, error = False, None
        while True:
            while not ended and len(waiting) <= self.ahead:
                try:
                    waiting.append(self._move(next(source)))
                except StopIteration:
                    ended = True
                except Exception as raised:
                    ended, error = True, raised
            if not waiting:
                break
            yield self._ready(*waiting.popleft())
        if error is not None:
            raise error

    def _move(self, batch: Movable[MovedT]) -> tuple[MovedT, Event]:
        if self.stream is None:
            return batch.to(self.device), None
        with torch.cuda.stream(self.stream):
            return batch.to(self.device), self.stream.record_event()

    def _ready(self, batch: MovedT, moved: Event) -> MovedT:
        """Lets the current stream use the batch."""
        if moved is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(moved)
            for tensor in batch.tensors():
                # Its memory belongs to the side stream, which must not reuse it before this stream has read it.
                tensor.record_stream(current)
        return batch


class Buffers:
    """Memory for batches, shared with the processes that are started later; pinned for a GPU.

    Args:
        n: of them.
        n_bytes: of each.
        device: to which the batches go.
    """

    def __init__(self, n: int, n_bytes: int, device: torch.device):
        self.n = n
        self._device = device
        self._stride = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = np.frombuffer(mmap.mmap(-1, n * self._stride), np.uint8)
        self._free: deque[tuple[int, Event]] = deque((i, None) for i in range(n))
        self._pinned = device.type == "cuda" and self._pin()

    def take(self) -> int:
        """The buffer that has been free for longest, once what it held has been copied."""
        i, copied = self._free.popleft()
        if copied is not None:
            copied.synchronize()
        return i

    def give_back(self, i: int, copied: Event) -> None:
        self._free.append((i, copied))

    def take_back_all(self) -> None:
        """Makes all of them free, when nothing fills them any more."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # an epoch that was left may have launched copies
        self._free = deque((i, None) for i in range(self.n))

    def array(self, i: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array at the beginning of a buffer."""
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert n_bytes <= self._stride, f"a batch of {n_bytes} bytes, a buffer of {self._stride}"
        return self._memory[i * self._stride :][:n_bytes].view(dtype).reshape(shape)

    def close(self) -> None:
        """Unpins the memory, once nothing copies from it."""
        if self._pinned:
            torch.cuda.synchronize(self._device)
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._memory.ctypes.data))
            self._pinned = False

    def _pin(self) -> bool:
        # Not PyTorch's own pinned memory, which a child process does not share.
        error = int(torch.cuda.cudart().cudaHostRegister(self._memory.ctypes.data, self._memory.nbytes, 0))
        if error:
            with suppress(RuntimeError):
                torch.zeros(1, device=self._device)  # the next launch would report the error
            logger.warning(
                "%.0f MB for batches cannot be pinned (CUDA error %d), which makes loading slower: raise `ulimit -l`, "
                "or use fewer --num-workers",
                self._memory.nbytes / 1e6,
                error,
            )
        return not error


class _Request(NamedTuple):
    """What a loader's process is told of a batch: its own copy of the data set knows no other epoch."""

    epoch: int
    buffer: int
    indices: list[int]


@dataclass
class _Answer:
    """A batch whose `bulk` is in a buffer; PyTorch's loader passes such an object on as it is."""

    packed: Packed
    buffer: int
    shape: tuple[int, ...]
    dtype: np.dtype


class _Batches(Dataset[_Answer]):
    """The batches that are requested."""

    def __init__(self, dataset: SplitDataset, packing: Packing, buffers: Buffers):
        self.dataset = dataset
        self.packing = packing
        self.buffers = buffers

    def __getitem__(self, request: _Request) -> _Answer:
        self.dataset.set_epoch(request.epoch)

        def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            return self.buffers.array(request.buffer, shape, dtype)

        packed = self.packing([self.dataset[i] for i in request.indices], allocate)
        bulk, packed.bulk = packed.bulk, np.empty(0, packed.bulk.dtype)
        return _Answer(packed, request.buffer, bulk.shape, bulk.dtype)


class _Requests:
    """The requests of an epoch, each made when the loader asks for it."""

    def __init__(self, buffers: Buffers):
        self.buffers = buffers
        self.epoch = 0
        self.batches: Iterable[Sequence[int]] = ()

    def __iter__(self) -> Iterator[_Request]:
        self.buffers.take_back_all()
        for indices in self.batches:
            yield _Request(self.epoch, self.buffers.take(), list(indices))


class Loader(Generic[MovedT]):
    """Batches of a data set on a device, made by processes that live until the loader is closed.

        with Loader(dataset, packing, batch_size, device, num_workers) as loader:
            for batch in loader.epoch(epoch, sampler): ...

    The batches depend on the arguments of `epoch` only, not on the number of processes or on earlier epochs. An epoch
    that is left before its end is over when the next begins. Random numbers are drawn from no shared generator.

    Args:
        dataset: a split.
        packing: makes its batches.
        batch_size: items of a batch, at most.
        device: where the batches go.
        num_workers: processes; 0: this one makes the batches.
    """

    def __init__(
        self,
        dataset: SplitDataset,
        packing: Packing,
        batch_size: int,
        device: torch.device,
        num_workers: int = 0,
    ):
        self.dataset = dataset
        self.packing = packing
        self.batch_size = batch_size
        self.device = device
        self.num_workers = num_workers
        self._open = ExitStack()
        self._requests: _Requests | None = None

    def __enter__(self) -> "Loader[MovedT]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()
        self._requests = None

    def epoch(self, epoch: int, batches: Iterable[Sequence[int]]) -> Iterator[MovedT]:
        """The batches of an epoch, ready on the device.

        Args:
            epoch: selects the random choices.
            batches: indices of the items of each.

        Raises:
            FastglowError: an item cannot be read; when its batch is asked for.
        """
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        return iter(DevicePrefetcher[MovedT](self.packed(epoch, batches, stream), self.device, stream))

    def packed(
        self, epoch: int, batches: Iterable[Sequence[int]], stream: torch.cuda.Stream | None = None
    ) -> Iterator[Packed]:
        """The batches of an epoch in the host's memory, each until the next is asked for.

        Args:
            epoch, batches: as of `epoch`.
            stream: on which the caller has launched a batch's copy when it asks for the next.
        """
        for answer in self._answers(epoch, batches):
            yield answer.packed
            self._buffers.give_back(answer.buffer, stream.record_event() if stream is not None else None)

    def _answers(self, epoch: int, batches: Iterable[Sequence[int]]) -> Iterator[_Answer]:
        try:
            for answer in self._begin(epoch, batches):
                answer.packed.bulk = self._buffers.array(answer.buffer, answer.shape, answer.dtype)
                yield answer
        except FastglowError as error:
            # Of a process: PyTorch puts the traceback before the message.
            message = str(error).rstrip().split("\n")[-1]
            raise FastglowError(message.partition(f"{FastglowError.__name__}: ")[2] or message) from error

    def _begin(self, epoch: int, batches: Iterable[Sequence[int]]) -> Iterator[_Answer]:
        first = self._requests is None
        if self._requests is None:
            several = self.num_workers > 0
            n_bytes = self.packing.max_bytes(self.dataset, self.batch_size)
            self._buffers = Buffers(PREFETCHED * self.num_workers + SPARE_BUFFERS, n_bytes, self.device)
            self._open.callback(self._buffers.close)
            self._requests = _Requests(self._buffers)
            self._loader: DataLoader[_Answer] = DataLoader(
                _Batches(self.dataset, self.packing, self._buffers),
                sampler=self._requests,
                batch_size=None,
                num_workers=self.num_workers,
                worker_init_fn=begin_loading,
                prefetch_factor=PREFETCHED if several else None,
                persistent_workers=several,
                multiprocessing_context="fork" if several else None,  # which shares the buffers
                # In each epoch PyTorch draws a seed, which nothing uses: keep training's own generator out of that.
                generator=torch.Generator(),
            )
        self._requests.epoch, self._requests.batches = epoch, batches
        return self._open.enter_context(batches_of(self._loader)) if first else iter(self._loader)
