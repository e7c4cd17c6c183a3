"""The device buffers of a batch, and the three ways of running its frames: steps, graph, persistent."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastglow.errors import FastglowError

from ..arguments import dot_size
from ..graphs import FRAMES_PER_GRAPH, record_graph
from ..launch import Config, launch, pick_config, product_precision, split_config
from ..reference.decode_loop import DecodePiece, DecodeResult
from .kernels import decode_begin_kernel, decode_loop_kernel, decode_phase_kernel
from .structs import AttentionPointers, Blocks, Decoder, LSTMPointers, OutputPointers, RunningPointers, Sizes
from .weights import FoldedDecoder

OP = "decode_loop"

MAX_DECODINGS = 8
"""Largest number of idle `Decoding`s kept per `FoldedDecoder`."""

# Reentrant, because collecting garbage while it is held may end an abandoned generator, which gives its Decoding back.
_idle_lock = RLock()

LARGEST_UNIT_TILE = 8
"""Units of a tile, at most: BU of the configurations."""

BB = 16
"""Items of a tile: the fewest columns of a tensor core's product."""

MAX_POLLS = 1 << 22
"""Barrier polls, about 1 us each, before a program gives up."""


def _config(bu: int, br: int, bk: int, stages: int, bt: int, bl: int, bd: int, num_warps: int) -> Config:
    blocks = {"BU": bu, "BR": br, "BK": bk, "STAGES": stages, "BT": bt, "BL": bl, "BD": bd, "BS": 256}
    return blocks | {"num_warps": num_warps, "num_stages": 1}


# By element size in bytes; names as in `Blocks`. With BU = 8 the published 1024 units are 128 tiles, one per
# multiprocessor. The blocks decide the order of sums, so the choice must not depend on the batch.
CONFIGS = {
    2: (_config(8, 16, 64, 6, 32, 32, 64, 8),),
    4: (_config(8, 16, 32, 6, 16, 16, 64, 8),),
}

# Of the persistent kernel, in addition, by element size in bytes; the results do not depend on it.
LOOP_CONFIGS = {
    2: tuple({"PREFETCH": n, "num_warps": 8} for n in (0, 4)),
    4: ({"PREFETCH": 0, "num_warps": 8},),
}


class Decoding:
    """Decodes one batch at a time, of any sizes that `padded` rounds to these.

    The buffers are never reallocated, because a recorded graph holds their addresses.
    """

    def __init__(self, weights: FoldedDecoder, B: int, T: int, max_steps: int, p_dropout: float, gate_threshold: float):
        B, T = padded(B, T)
        A, N = weights.query.shape
        D = weights.decoder_ih.shape[1] - N
        n = weights.decoder_hh.shape[1]
        P, P1 = weights.prenet.shape
        candidates = CONFIGS[weights.dtype.itemsize]
        config = pick_config("decode_phase", candidates, lambda dtype, **shape: candidates[0], weights.output, N=N, n=n)
        a_blocks, d_blocks = triton.cdiv(N, config["BU"]), triton.cdiv(n, config["BU"])  # of the LSTMs' units

        self.max_steps = max_steps
        self.device = weights.output.device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._last: torch.cuda.Event | None = None
        self._zeros: list[Tensor] = []

        def empty(*shape: int, dtype: torch.dtype = weights.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self.device)

        self.memory, self.processed_memory = empty(B, T, D), empty(B, T, A)
        self.lengths, self.seeds = empty(B, dtype=torch.int32), empty(B, dtype=torch.int64)
        self.frames = empty(B, max_steps, weights.n_frame)
        self.alignments = empty(B, max_steps + 1, T, dtype=torch.float32)
        self.alignments[:, 0].zero_()
        a_h, d_h, context, x2 = self._zeroed(weights.dtype, (B, N), (B, n), (B, D), (B, P))
        a_c, d_c, cumulative, a_gates = self._zeroed(
            torch.float32, (B, N), (B, n), (B, T), (a_blocks * 4 * config["BU"], B)
        )
        self.steps, self.t, self.barrier, self.n_running, fired, self.running_items = self._zeroed(
            torch.int32, (B + 1,), (1,), (1,), (2,), (B,), (2, B)
        )
        self._lost = self.steps[-1:]  # copied to the host together with the steps
        running = RunningPointers(self.running_items, self.n_running)
        decoder = Decoder(
            LSTMPointers(weights.attention_ih, weights.attention_hh, weights.attention_bias, a_gates, a_h, a_c, N),
            AttentionPointers(
                self.memory,
                self.processed_memory,
                self.lengths,
                query_weight=weights.query,
                location=weights.location,
                v=weights.v,
                query=empty(B, a_blocks, A, dtype=torch.float32),
                energies=empty(B, T, dtype=torch.float32),
                cumulative=cumulative,
                alignments=self.alignments,
                context=context,
            ),
            LSTMPointers(
                weights.decoder_ih,
                weights.decoder_hh,
                weights.decoder_bias,
                gates=empty(d_blocks * 4 * config["BU"], B, dtype=torch.float32),
                h=d_h,
                c=d_c,
                n=n,
            ),
            OutputPointers(
                weights.output,
                weights.output_bias,
                weights.prenet,
                self.seeds,
                x1=empty(B, P1),
                x2=x2,
                frames=self.frames,
                steps=self.steps,
                fired=fired,
            ),
            running,
            Sizes(T, D, A, P1, P, weights.n_frame, max_steps, p_dropout, 1.0 / (1.0 - p_dropout), gate_threshold),
        )
        self._batch_block = max(64, B)
        even = {"P1": P1, "P": P, "D": D, "NA": N, "ND": n}
        blocks, self._options = split_config(
            Blocks,
            config,
            BB=BB,
            BA=dot_size(A),
            BATCH=self._batch_block,
            TAPS=weights.taps,
            ONE_BLOCK=B <= BB,
            PRECISION=product_precision(weights.dtype),
            PREFETCH=0,
            **{f"EVEN_{name}": size % config["BK"] == 0 for name, size in even.items()},
        )
        self._arguments = decoder, B, blocks
        # No product has fewer blocks. With several blocks of items, tiles share their weights.
        self._most_prefetched = min(triton.cdiv(K, config["BK"]) for K in (P, D, N, n)) if B <= BB else 0
        self._shape = {"N": N, "n": n}
        self._begin_arguments = self.lengths, running, B

        n_blocks = triton.cdiv(B, BB)
        a_tiles, d_tiles = a_blocks * n_blocks, d_blocks * n_blocks
        self._tiles_by_phase = (
            a_tiles,
            triton.cdiv(T, config["BT"]) * B + d_tiles,
            triton.cdiv(D, config["BD"]) * B + d_tiles + a_tiles,
            d_tiles,
            triton.cdiv(weights.n_frame + 1 + P1, config["BR"]) * n_blocks,
            1 + triton.cdiv(P, config["BR"]) * n_blocks + a_tiles,
        )

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Work queued inside runs after the work queued inside the last time, even on another stream."""
        if self.device.type != "cuda":
            yield
            return
        if self._last is not None:
            torch.cuda.current_stream().wait_event(self._last)
        try:
            yield
        finally:
            self._last = torch.cuda.current_stream().record_event()

    def finish(self) -> None:
        """Waits for the work that was queued last, because the buffers are about to be freed."""
        if self._last is not None:
            self._last.synchronize()

    def begin(self, memory: Tensor, processed_memory: Tensor, lengths: Tensor, seeds: Tensor) -> None:
        """Copies a batch's inputs into the buffers and writes the first frame's list."""
        B, T = memory.shape[:2]
        self.memory[:B, :T] = memory
        self.processed_memory[:B, :T] = processed_memory
        self.lengths[B:] = 0
        self.lengths[:B] = lengths.clamp(max=T)
        self.seeds[:B] = seeds
        for x in self._zeros:
            x.zero_()
        launch(
            OP, decode_begin_kernel, (1,), *self._begin_arguments,
            device=self.device, BATCH=self._batch_block, num_warps=4,
        )  # fmt: skip

    def run_frames(self, n: int) -> None:
        """The next n frames, six launches each; frames past the last one do nothing."""
        for offset in range(n):
            for phase, tiles in enumerate(self._tiles_by_phase):
                launch(
                    OP, decode_phase_kernel, (tiles,), *self._arguments, self.t, offset,
                    device=self.device, PHASE=phase, **self._options,
                )  # fmt: skip
        self.t += n

    def run_steps(self) -> None:
        """All frames, launch by launch, until no item runs."""
        for _ in range(0, self.max_steps, FRAMES_PER_GRAPH):
            self.run_frames(FRAMES_PER_GRAPH)
            if self.n_running[0].item() == 0:
                return

    def graph(self) -> torch.cuda.CUDAGraph:
        """A graph of FRAMES_PER_GRAPH frames, recorded by the first call; call it before `begin`, as recording clears
        the buffers."""
        if self._graph is None:
            for x in self._zeros:
                x.zero_()
            self.run_frames(1)  # with no items: compiles and loads the kernels
            self._graph = record_graph(lambda: self.run_frames(FRAMES_PER_GRAPH), self.device)
        return self._graph

    def run_graph(self, graph: torch.cuda.CUDAGraph) -> None:
        """All frames, by replays of a graph of FRAMES_PER_GRAPH, until no item runs.

        The host reads the number of running items one replay late, while the next replay already runs.
        """
        n_left = [torch.empty(1, dtype=torch.int32, device="cpu", pin_memory=True) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in range(2)]
        for i in range(triton.cdiv(self.max_steps, FRAMES_PER_GRAPH)):
            graph.replay()
            n_left[i % 2].copy_(self.n_running[:1], non_blocking=True)
            copied[i % 2].record()
            if i > 0:
                copied[(i - 1) % 2].synchronize()
                if n_left[(i - 1) % 2].item() == 0:
                    return

    def run_at_least(self, n: int, graph: torch.cuda.CUDAGraph | None) -> int:
        """The next n frames, or more to complete a replay of a graph of FRAMES_PER_GRAPH; returns how many."""
        if graph is None:
            self.run_frames(n)
            return n
        n_replays = triton.cdiv(n, FRAMES_PER_GRAPH)
        for _ in range(n_replays):
            graph.replay()
        return n_replays * FRAMES_PER_GRAPH

    def run_loop(self, n_programs: int, **options) -> None:
        """All frames in one launch; all its programs must be on the device at once."""
        decoder, B, blocks = self._arguments
        candidates = LOOP_CONFIGS[self.frames.dtype.itemsize]
        config = pick_config(OP, candidates, lambda dtype, **shape: candidates[0], self.frames, **self._shape)
        blocks = blocks._replace(PREFETCH=tl.constexpr(min(config["PREFETCH"], self._most_prefetched)))
        options |= self._options | {"num_warps": config["num_warps"]}
        launch(
            OP, decode_loop_kernel, (n_programs,), decoder, B, blocks, self.barrier, self._lost, MAX_POLLS,
            device=self.device, **options,
        )  # fmt: skip

    def result(self, B: int, T: int, early_stopping: bool) -> DecodeResult:
        """All steps; as `piece`."""
        frames, steps, alignments, _ = self.piece(B, T, 0, self.max_steps, early_stopping)
        return DecodeResult(frames, steps, alignments)

    def piece(self, B: int, T: int, start: int, stop: int, early_stopping: bool) -> DecodePiece:
        """The steps from start on, up to stop or the last item's end. Waits for the device.

        Raises:
            FastglowError: a program of `run_loop` did not arrive at a barrier.
        """
        *n_steps, lost = self.steps.tolist()
        if lost:
            raise FastglowError(
                "decode_loop: a program of the persistent kernel did not arrive at a barrier, so its results are "
                "lost: pass method='graph'"
            )
        running = max(n_steps) == stop < self.max_steps
        if early_stopping:
            stop = min(max(n_steps) + 1, stop)
        steps = self.steps[:B].long()
        over = torch.arange(start, stop, device=self.device) > steps.unsqueeze(1)  # [B, n]
        over |= self.lengths[:B].unsqueeze(1) < 1
        return DecodePiece(
            self.frames[:B, start:stop].masked_fill(over.unsqueeze(2), 0.0),
            steps,
            self.alignments[:B, start + 1 : stop + 1, :T].masked_fill(over.unsqueeze(2), 0.0).to(self.frames.dtype),
            running,
        )

    def _zeroed(self, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Tensors that `begin` fills with zeros, in one allocation."""
        sizes = [math.prod(shape) for shape in shapes]
        # Each starts at a multiple of 16 elements, so that loads are as wide as from a separate allocation.
        padded_sizes = [triton.cdiv(size, 16) * 16 for size in sizes]
        whole = torch.empty(sum(padded_sizes), dtype=dtype, device=self.device)
        self._zeros.append(whole)
        parts = whole.split(padded_sizes)
        return [part[:size].view(shape) for part, size, shape in zip(parts, sizes, shapes, strict=True)]


def padded(B: int, T: int) -> tuple[int, int]:
    """Sizes rounded up, so that few kernels and graphs are needed; padding has length 0 and is not computed."""
    return triton.next_power_of_2(B), triton.cdiv(T, 64) * 64


def gate_elements(B: int, units: int) -> int:
    """At most so many partial sums of gates are kept for B items of an LSTM."""
    return 4 * (units + LARGEST_UNIT_TILE) * triton.next_power_of_2(max(1, B))


@contextmanager
def decoding_of(
    weights: FoldedDecoder, B: int, T: int, max_steps: int, p_dropout: float, gate_threshold: float
) -> Iterator[Decoding]:
    """A `Decoding` that no other call uses meanwhile.

    Afterwards it is kept with the weights: recording a graph takes longer than decoding a sentence.
    """
    idle = weights.idle_decodings
    key = (padded(B, T), max_steps, p_dropout, gate_threshold, product_precision(weights.dtype))
    with _idle_lock:
        decoding = next((one for one in reversed(list(idle)) if idle.get(one) == key), None)
        if decoding is not None:
            idle.pop(decoding, None)
    if decoding is None:
        decoding = Decoding(weights, B, T, max_steps, p_dropout, gate_threshold)
    try:
        yield decoding
    finally:
        with _idle_lock:
            idle[decoding] = key
            while len(idle) > MAX_DECODINGS:
                dropped = next(iter(idle))
                idle.pop(dropped, None)
                dropped.finish()
