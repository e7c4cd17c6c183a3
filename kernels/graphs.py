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
    run: Callable[[], None],
    device: torch.device,
    pool: Any = None,
    stream: torch.cuda.Stream | None = None,
    *,
    rehearse: bool = False,
) -> torch.cuda.CUDAGraph:
    """A CUDA graph of what `run` launches; its kernels must have run once, so that they are compiled and loaded.

    Other threads may launch work meanwhile, and record graphs one after the other. torch.cuda.graph does not allow
    that: it records on one stream for all threads and devices, and empties the memory cache first, which fails while
    another thread records. With PyTorch up to 2.11, no thread can draw from the device's default generator meanwhile.

    Args:
        run: launches work, and does not wait for it.
        device: to run on.
        pool: graphs of one pool (torch.cuda.graph_pool_handle), recorded on one stream, share the memory of their
            temporary tensors, and must not run at the same time.
        stream: to record on, see `recording_stream`; None: one of its own.
        rehearse: run it as written before, on the same stream. What libraries make at their first use in a thread,
            such as cuDNN's handles and plans, cannot be recorded, and the kernels may have run in another thread.
    """
    graph, pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
    with torch.cuda.device(device), _recording, _no_garbage_collection():
        current, side = torch.cuda.current_stream(), stream or recording_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            if rehearse:
                run()
                side.synchronize()  # nobody has to wait for it during the recording, which that would end
            try:
                graph.capture_begin(pool, capture_error_mode="thread_local")
                run()
                graph.capture_end()
            except BaseException:
                _abandon(graph, pool)
                raise
        current.wait_stream(side)
    return graph


def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Few others have its priority: after the 32nd stream of a priority, PyTorch hands out the first again, and what a
    thread launches there during a recording would be recorded too."""
    return torch.cuda.Stream(device, priority=-1)


_recording = Lock()


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Ends a recording that has failed, whose error is the one to show."""
    try:
        graph.capture_end()
    except RuntimeError:
        device = torch.cuda.current_device()
        # PyTorch may then go on allocating to the pool, which keeps memory from being given back ever again.
        names = "_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"  # until PyTorch 2.7
        end = next(getattr(torch._C, name) for name in names if hasattr(torch._C, name))
        with suppress(RuntimeError):  # it has ended that itself
            end(device, pool)
            torch._C._cuda_releasePool(device, pool)
        stop_recording_random_numbers(device)


def stop_recording_random_numbers(device: int) -> None:
    """After a failed recording, the state of the device's default generator may still count as recording."""
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collecting a kernel unloads it, which would abort a recording of any thread."""
    resumes = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if resumes:
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
