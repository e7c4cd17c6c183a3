"""Runs the frames of a loop: launches that read an address table and a clock, replayed as a CUDA graph.

Why one graph works for every call with the same sizes: kernels/README.md.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import backend
from ..graphs import FRAMES_PER_GRAPH, record_graph, write_integers
from ..launch import Config, launch
from .frame import OP, Slot, teacher_forced_advance_kernel

MAX_GRAPHS = 32

_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.int64: tl.int64}


class Launch(NamedTuple):
    """One launch of a frame: everything that a CUDA graph fixes. Part of a key of `graphs`, so its constants are plain
    values: tl.constexpr is not hashable in Triton 3.3."""

    kernel: Any
    grid: tuple[int, ...]
    slots: NamedTuple  # of Slot or None
    arguments: tuple[Any, ...]
    blocks: NamedTuple  # compile-time constants
    options: tuple[tuple[str, int | None], ...]


class Loop(NamedTuple):
    """What a frame launches, and the addresses of each launch's tensors."""

    frame: tuple[Launch, ...]
    addresses: tuple[tuple[int, ...], ...]


class Prepared(NamedTuple):
    """A launch and the tensors that it runs on, which must live until it has been queued."""

    launch: Launch
    tensors: NamedTuple  # of Tensor or None


def prepare(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: NamedTuple,
    arguments: tuple[Any, ...],
    blocks: NamedTuple,
    config: Config,
    **constants: int | None,
) -> Prepared:
    """A launch of a frame: kernel(p_clock, p_addresses, offset, slots, *arguments, blocks, **constants).

    Args:
        tensors: `slots` is a struct of the same type. An absent tensor is None, and so is its slot.
        blocks: compile-time constants.
        constants: further compile-time constants, which may be None.
    """
    aligned = all(address % 16 == 0 for address in _addresses(tensors))
    slots = [None if x is None else Slot(i, _DTYPES[x.dtype], aligned) for i, x in enumerate(tensors)]
    options = (*constants.items(), *((name, config[name]) for name in ("num_warps", "num_stages")))
    return Prepared(Launch(kernel, grid, tensors._make(slots), arguments, blocks, options), tensors)


def tile_sizes(config: Config) -> dict[str, int]:
    return {name: size for name, size in config.items() if name not in ("num_warps", "num_stages")}


class Graph:
    """CUDA graph of FRAMES_PER_GRAPH frames, with its own clock and table."""

    def __init__(self, loop: Loop, device: torch.device):
        self.clock, self.table = new_clock(device), new_table(loop, device)
        self.graph = record_graph(lambda: launch_replay(loop.frame, self.clock, self.table), device)


graphs: OrderedDict[tuple, Graph | None] = OrderedDict()
"""By launches, device and stream. None: the kernels have run once and are loaded."""

_graphs_lock = threading.Lock()


def stream_to_record_on(device: torch.device) -> int | None:
    """The current stream, or None where no graph is recorded: on a CPU, and while the caller records one."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream(device).cuda_stream


def new_clock(device: torch.device) -> Tensor:
    """Frames done by earlier replays, T, T_in."""
    return torch.zeros(3, dtype=torch.int64, device=device)


def new_table(loop: Loop, device: torch.device) -> Tensor:
    """[launches, slots] addresses."""
    width = 2 * ((max(map(len, loop.addresses)) + 1) // 2)  # keeps rows aligned to 16 bytes
    return torch.zeros((len(loop.addresses), width), dtype=torch.int64, device=device)


def launch_replay(frame: Sequence[Launch], clock: Tensor, table: Tensor) -> None:
    """The launches that a graph records."""
    _launch_frames(frame, clock, table, FRAMES_PER_GRAPH)
    _launch_advance(clock)


def run(frame: Sequence[Prepared], T: int, T_in: int, device: torch.device) -> None:
    """All frames: on a GPU by replays of a CUDA graph from the second call with these launches on.

    Each stream has its own graphs, so that nothing else writes into a graph's table while it runs.
    """
    loop = Loop(tuple(x.launch for x in frame), tuple(_addresses(x.tensors) for x in frame))
    stream = stream_to_record_on(device)
    key = (loop.frame, device, stream)
    with _graphs_lock:
        if stream is not None and key in graphs:
            graph = graphs[key] or Graph(loop, device)
            graphs[key] = graph
            graphs.move_to_end(key)
            _start(loop, graph.clock, graph.table, T, T_in)
            for _ in range(triton.cdiv(T, FRAMES_PER_GRAPH)):
                graph.graph.replay()
                backend.launches[OP] += 1
            return
    clock, table = new_clock(device), new_table(loop, device)
    _start(loop, clock, table, T, T_in)
    _launch_frames(loop.frame, clock, table, T)
    if stream is None:
        return
    _launch_advance(clock)  # loads the kernel, which is impossible while a graph is recorded
    with _graphs_lock:
        graphs.setdefault(key, None)
        if len(graphs) > MAX_GRAPHS:
            graphs.popitem(last=False)


def _addresses(tensors: NamedTuple) -> tuple[int, ...]:
    return tuple(0 if x is None else x.data_ptr() for x in tensors)


def _start(loop: Loop, clock: Tensor, table: Tensor, T: int, T_in: int) -> None:
    write_integers(clock, (0, T, T_in))
    width = table.shape[1]
    write_integers(table, [a for row in loop.addresses for a in (*row, *(0,) * (width - len(row)))])


def _launch_frames(frame: Sequence[Launch], clock: Tensor, table: Tensor, n: int) -> None:
    ready = [(x, row, _constants(x.slots), _constants(x.blocks)) for x, row in zip(frame, table.unbind(), strict=True)]
    for offset in range(n):
        for x, row, slots, blocks in ready:
            launch(
                OP, x.kernel, x.grid, clock, row, offset, slots, *x.arguments, blocks,
                device=table.device, **dict(x.options),
            )  # fmt: skip


def _launch_advance(clock: Tensor) -> None:
    launch(OP, teacher_forced_advance_kernel, (1,), clock, FRAMES_PER_GRAPH, device=clock.device)


def _constants(values: NamedTuple) -> NamedTuple:
    """The values as compile-time constants; None stays None, an absent field."""

    def constant(value: Any) -> Any:
        return value if value is None else _constants(value) if isinstance(value, Slot) else tl.constexpr(value)

    return values._make(map(constant, values))
