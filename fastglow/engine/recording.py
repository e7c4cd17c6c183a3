"""Calls on a GPU that are recorded as CUDA graphs, so that a call costs one launch."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import ceil, log2
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow.kernels import backend
from fastglow.kernels.graphs import record_graph, recording_stream
from fastglow.kernels.launch import product_precision
from fastglow.modules.parameter_cache import ParameterCache, parameters_of

_logger = logging.getLogger("fastglow")

MAX_GRAPHS = 64
"""Per model. Of the published sizes, a graph holds tens of megabytes."""

MAX_POSITIONS = 8192
"""Of a batch, in all. Larger calls are bound by computing, not by launching."""

SHORTEST = 32


def bucket(n: int, least: int) -> int:
    """The smallest of `least` times 1, 1.5, 2, 3, 4, 6, 8, ..., rounded up, that is not below n.

    Few graphs then serve all sizes, and the kernels do not compute what lies past an item's true length.
    """
    doublings = max(0, ceil(log2(n / least)))
    between = ceil(least * 2**doublings * 3 / 4)
    return between if doublings and n <= between else least * 2**doublings


def _is_bucket(items: int, *between: int) -> bool:
    positions = between[-1]
    return bucket(items, 1) == items and bucket(positions, SHORTEST) == positions and items * positions <= MAX_POSITIONS


@dataclass
class _Graph:
    inputs: list[Tensor]  # read at each replay
    outputs: list[Tensor]  # one, written at each replay
    graph: torch.cuda.CUDAGraph


@dataclass
class _Graphs:
    """The graphs of one set of weights."""

    # The most recently used last; None for sizes that were called once.
    by_call: OrderedDict[Hashable, _Graph | None] = field(default_factory=OrderedDict)
    pool: Any = None
    # Of all recordings: memory is shared within a stream only.
    stream: torch.cuda.Stream | None = None
    unrecordable: set[Hashable] = field(default_factory=set)


class Recorder:
    """Calls functions of a model, from the second call with the same sizes on as CUDA graphs.

    The first call runs as written, which compiles and loads its kernels; a process that speaks once records nothing.
    Graphs share one memory pool, are dropped when a parameter of the model changes, and number at most `most`. Any
    thread may call, on any stream: replays wait for each other on the device. On a CPU, with the reference backend,
    under autocast, whose cast weights last no longer than its block, and inside a recording of the caller's own,
    functions run as written.
    """

    def __init__(self, model: nn.Module, most: int = MAX_GRAPHS):
        self.model = model
        self.most = most
        self._graphs: ParameterCache[_Graphs] = ParameterCache()
        self._lock = Lock()
        self._last: torch.cuda.Event | None = None

    @property
    def records(self) -> bool:
        """Whether calls now are recorded and replayed."""
        parameter = next(self.model.parameters())
        return (
            parameter.is_cuda
            and backend.autocast_dtype(parameter) is None
            and backend.backend_name() != backend.REFERENCE
            and not torch.cuda.is_current_stream_capturing()
        )

    def sizes(self, most: int) -> list[int]:
        """Numbers of positions up to `most` to warm up: all that are recorded; otherwise the smallest.

        The largest first: the others find room in the memory that its graph has left.
        """
        found = {bucket(n, SHORTEST) for n in range(1, most + 1)} if self.records else {SHORTEST}
        return sorted((min(n, most) for n in found), reverse=True)

    def padded(self, x: Tensor, *per_item: Tensor) -> tuple[Tensor, ...]:
        """Inputs of a call with zeros added, so that few sizes occur.

        Args:
            x: [B, ..., T].
            per_item: [B] each.
        """
        items, positions = bucket(len(x), 1), bucket(x.shape[-1], SHORTEST)
        if not self.records or items * positions > MAX_POSITIONS:
            return x, *per_item
        n_items, n_positions = items - len(x), positions - x.shape[-1]
        wider = F.pad(x, (0, n_positions, *[0, 0] * (x.dim() - 2), 0, n_items))
        return wider, *(F.pad(one, (0, n_items)) for one in per_item)

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), which may not wait for the device nor read anything else that changes.

        Args:
            function: a method of the same object at each call, since its name identifies it.
            inputs: on the model's device, as `padded` returns them; others follow.
        """
        if not self.records or not _is_bucket(*inputs[0].shape):
            return function(*inputs)
        # The buffers must not be inference tensors: later calls write to them, perhaps outside inference mode.
        with torch.inference_mode(False), torch.no_grad():
            with self._lock:
                found = self._find(function, inputs)
                if found is not None:
                    return self._replay(found, inputs)
            return function(*inputs)

    def memory(self) -> int:
        """Bytes of device memory that the graphs hold, temporary tensors included."""
        with self._lock:
            pool = self._current().pool
        if pool is None:
            return 0
        segments = torch.cuda.memory_snapshot()
        return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) == tuple(pool))

    def _current(self) -> _Graphs:
        return self._graphs.get(parameters_of(self.model), _Graphs)

    def _finish(self) -> None:
        """Waits for the last replay, whose memory is given back when its graph is dropped."""
        if self._last is not None:
            self._last.synchronize()

    def _find(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> _Graph | None:
        """The graph for a call, recorded if it is the second; None if it is the first."""
        precisions = (product_precision(torch.float32), product_precision(torch.float32, convolution=True))
        sizes = tuple((x.shape, x.dtype) for x in inputs)
        key = (function.__name__, sizes, backend.backend_name(), precisions)
        graphs = self._current()
        if key in graphs.unrecordable:
            return None
        is_second = key in graphs.by_call
        found = graphs.by_call.pop(key, None)
        if is_second and found is None:
            try:
                found = self._record(function, inputs, graphs)
            except RuntimeError as error:  # CUDA's, out of memory among them
                graphs.pool = None  # PyTorch may still be allocating to it
                graphs.unrecordable.add(key)
                _logger.warning("%s runs without a CUDA graph: %s", function.__name__, " ".join(str(error).split()))
                return None
        graphs.by_call[key] = found
        while len(graphs.by_call) > self.most:
            _, dropped = graphs.by_call.popitem(last=False)
            if dropped is not None:
                self._finish()
        return found

    def _record(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], graphs: _Graphs) -> _Graph:
        # A pool ends with its last graph: PyTorch records no other into it.
        if graphs.pool is None or not any(graphs.by_call.values()):
            graphs.pool = torch.cuda.graph_pool_handle()
        buffers = [x.clone() for x in inputs]
        device = buffers[0].device
        if self._last is not None:
            torch.cuda.current_stream(device).wait_event(self._last)
        graphs.stream = graphs.stream or recording_stream(device)
        outputs: list[Tensor] = []

        def run() -> None:
            outputs[:] = [function(*buffers)]

        return _Graph(buffers, outputs, record_graph(run, device, graphs.pool, graphs.stream, rehearse=True))

    def _replay(self, found: _Graph, inputs: tuple[Tensor, ...]) -> Tensor:
        """A copy of the output, because the next replay overwrites it."""
        stream = torch.cuda.current_stream(inputs[0].device)
        if self._last is not None:
            stream.wait_event(self._last)
        for buffer, x in zip(found.inputs, inputs, strict=True):
            buffer.copy_(x)
        found.graph.replay()
        output = found.outputs[0].clone()
        self._last = stream.record_event()
        return output
