"""CUDA graphs, and the tables in device memory that a recorded kernel reads."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

FRAMES_PER_GRAPH = 16
"""Frames of a decoder loop per graph: many, because a replay costs as much as a launch."""


def record_graph(
    run: Callable[[], None], device: torch.device, pool: Any = None, stream: torch.cuda.Stream | None = None
) -> torch.cuda.CUDAGraph:
    """A CUDA graph of what `run` launches; its kernels must have run once, so that they are compiled and loaded.

    Other threads may launch work and record graphs meanwhile. torch.cuda.graph does not allow that: it records on one
    stream for all threads and devices, and empties the memory cache first, which fails while another thread records.

    Args:
        run: launches work, and does not wait for it.
        device: to run on.
        pool: graphs of one pool (torch.cuda.graph_pool_handle), recorded on one stream, share the memory of their
            temporary tensors, and must not run at the same time.
        stream: to record on; None: one of its own.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), _no_garbage_collection():
        current, side = torch.cuda.current_stream(), stream or torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                with suppress(RuntimeError):  # it fails, too, and would hide the first error
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(side)
    return graph


_collecting = Lock()
_n_recordings = 0
_resumes_collecting = False


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collecting a kernel unloads it, which would abort a recording of any thread."""
    global _n_recordings, _resumes_collecting
    with _collecting:
        if _n_recordings == 0:
            _resumes_collecting = gc.isenabled()
            gc.disable()
        _n_recordings += 1
    try:
        yield
    finally:
        with _collecting:
            _n_recordings -= 1
            if _n_recordings == 0 and _resumes_collecting:
                gc.enable()


def pointer_table(tensors: Sequence[Tensor]) -> Tensor:
    """The addresses of tensors on one device, [n] int64 on that device, for kernels that process many in one launch.

    Cached as by `integer_table`.
    """
    return integer_table(tuple(tensor.data_ptr() for tensor in tensors), tensors[0].device)


def write_integers(tensor: Tensor, values: Sequence[int]) -> None:
    """Writes integers from the host into all elements, in stream order and without a host sync."""
    flat = tensor.flatten()
    if not tensor.is_cuda:
        flat.copy_(torch.tensor(values, device="cpu"))
    elif torch.cuda.is_current_stream_capturing():
        # A recorded copy would read the host's memory again at every replay.
        for element, value in zip(flat.unbind(), values, strict=True):
            element.fill_(value)
    else:
        flat.copy_(torch.tensor(values, device="cpu", pin_memory=True), non_blocking=True)


@cache
def integer_table(values: tuple, device: torch.device) -> Tensor:
    """An int64 tensor of a tuple of integers, or of tuples of them, on a device.

    Tables are cached forever: making one copies from the host, which a CUDA graph cannot record, and a recorded graph
    keeps reading at the address of its table.
    """
    return torch.tensor(values, dtype=torch.int64, device=device)
