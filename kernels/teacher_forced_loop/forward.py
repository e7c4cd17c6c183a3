"""The forward frame of the teacher-forced loop: LSTM_a, the query, the attention, LSTM_d.

Maths, layout and cost: kernels/README.md.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Config, product_precision
from ..location_attention.attend import WIDE_ATTENTION, fold_location
from ..lstm_cell.cell import GateTile, add_product, lstm_activate, lstm_gates, lstm_split, lstm_update
from ..reference.teacher_forced_loop import Arguments
from .attention import (
    CONTEXT_CONFIGS,
    ENERGIES_CONFIGS,
    ContextBlocks,
    ContextTensors,
    EnergiesBlocks,
    EnergiesTensors,
    teacher_forced_context_fwd_kernel,
    teacher_forced_energies_fwd_kernel,
)
from .frame import SOFTMAX_BLOCK, Dropout, Plan, dropout_factor, parts_of, pick, pointer, tile_config
from .replay import prepare, run, tile_sizes

# By element size, for large batches first. BU units are 4 BU rows of the gates' product; BB items.
LSTM_CONFIGS = {
    2: (
        tile_config(8, 4, BU=16, BB=128, BK=64),
        tile_config(4, 6, BU=16, BB=64, BK=64),
        tile_config(4, 6, BU=16, BB=32, BK=64),
        tile_config(4, 6, BU=16, BB=16, BK=64),
        tile_config(4, 4, BU=8, BB=16, BK=128),
    ),
    4: (
        tile_config(4, 3, BU=16, BB=32, BK=32),
        tile_config(4, 3, BU=16, BB=16, BK=32),
        tile_config(4, 3, BU=8, BB=16, BK=64),
    ),
}
QUERY_CONFIGS = {2: (tile_config(4, 4, BM=16, BB=16, BK=128),), 4: (tile_config(4, 3, BM=16, BB=16, BK=64),)}
MAX_QUERY_SPLITS = 4

LSTM_PROGRAMS = 64
"""Enough to draw weights and inputs from the L2 cache at its full rate; smaller tiles would read more of them."""


class LSTMTensors(NamedTuple):
    first: Any  # gate terms computed before the frame: [T, B, 4n], or [4n] with s_first = 0
    gates: Any  # [T, B, 4n]: gets the activated gates; may be `first`
    x1: Any  # [T, B, n_1]
    x2: Any  # [T, B, n_2]
    h: Any  # [T + 1, B, n]
    weight_ih: Any  # [4n, n_1 + n_2]
    weight_hh: Any  # [4n, n]
    c: Any  # [T + 1, B, n] float32
    seed: Any  # [] int64, of the dropout


class LSTMSizes(NamedTuple):
    """s_*: elements from row to row."""

    B: Any
    n: Any
    n_1: Any
    n_2: Any
    s_first: Any
    s_1: Any
    s_2: Any
    s_h: Any
    s_w: Any  # of weight_ih


class LSTMBlocks(NamedTuple):
    BU: Any
    BB: Any
    BK: Any
    ROWS: Any  # 4 BU
    STAGES: Any  # of the products' pipelines: None, the kernel's num_stages
    EVEN_K: Any  # n, n_1 and n_2 are multiples of BK
    PRECISION: Any


class QueryTensors(NamedTuple):
    h: Any  # [T, B, n]
    weight: Any  # [A, n]
    parts: Any  # [SPLITS, B, A] float32


class QueryBlocks(NamedTuple):
    BM: Any
    BB: Any
    BK: Any
    STAGES: Any
    EVEN_K: Any
    PRECISION: Any


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_lstm_fwd_kernel(p_clock, p_addresses, offset, slots, sizes, dropout, blocks):
    """A step of an LSTM whose input is two tensors; grid (blocks of units, blocks of items)."""
    BU: tl.constexpr = blocks.BU
    BB: tl.constexpr = blocks.BB
    ROWS: tl.constexpr = blocks.ROWS
    EVEN_K: tl.constexpr = blocks.EVEN_K
    t = tl.load(p_clock) + offset
    if t >= tl.load(p_clock + 1):
        return
    p_first = pointer(p_addresses, slots.first)
    p_gates = pointer(p_addresses, slots.gates)
    p_1 = pointer(p_addresses, slots.x1)
    p_2 = pointer(p_addresses, slots.x2)
    p_h = pointer(p_addresses, slots.h)
    p_w_ih = pointer(p_addresses, slots.weight_ih)
    p_w_hh = pointer(p_addresses, slots.weight_hh)
    p_c = pointer(p_addresses, slots.c)
    dtype: tl.constexpr = p_gates.dtype.element_ty
    B, n, n_1, n_2 = sizes.B, sizes.n, sizes.n_1, sizes.n_2
    s_1, s_2, s_h, s_w = sizes.s_1, sizes.s_2, sizes.s_h, sizes.s_w
    row = t * B  # of item 0 in frame t
    o_b = tl.program_id(1) * BB + tl.arange(0, BB)
    m_b = o_b < B
    o_item = o_b.to(tl.int64)[None, :]
    o_unit = tl.program_id(0) * BU + tl.arange(0, BU)[:, None]
    m = (o_unit < n) & m_b[None, :]
    # Loaded before the products and added after them, which hides the latency.
    p_tile = p_first + (row + o_item) * sizes.s_first + o_unit
    b_first_i = tl.load(p_tile, mask=m, other=0.0)
    b_first_f = tl.load(p_tile + n, mask=m, other=0.0)
    b_first_g = tl.load(p_tile + 2 * n, mask=m, other=0.0)
    b_first_o = tl.load(p_tile + 3 * n, mask=m, other=0.0)
    o_u = tl.program_id(0) * BU + tl.arange(0, ROWS) // 4
    tile = GateTile(o_u, n, o_b, m_b)
    b_gates = tl.zeros((ROWS, BB), tl.float32)
    b_gates = lstm_gates(b_gates, tile, p_1 + row * s_1, p_w_ih, n_1, s_1, s_w, EVEN_K, blocks)
    b_gates = lstm_gates(b_gates, tile, p_2 + row * s_2, p_w_ih + n_1, n_2, s_2, s_w, EVEN_K, blocks)
    b_gates = lstm_gates(b_gates, tile, p_h + row * s_h, p_w_hh, n, s_h, n, EVEN_K, blocks)
    b_i, b_f, b_g, b_o = lstm_split(b_gates, BU, BB)
    b_i, b_f, b_g, b_o = lstm_activate(
        b_i + b_first_i.to(tl.float32), b_f + b_first_f.to(tl.float32),
        b_g + b_first_g.to(tl.float32), b_o + b_first_o.to(tl.float32),
    )  # fmt: skip
    # `gates` may be `first`: all threads must have loaded it.
    tl.debug_barrier()
    p_tile = p_gates + (row + o_item) * (4 * n) + o_unit
    tl.store(p_tile, b_i.to(dtype), mask=m)
    tl.store(p_tile + n, b_f.to(dtype), mask=m)
    tl.store(p_tile + 2 * n, b_g.to(dtype), mask=m)
    tl.store(p_tile + 3 * n, b_o.to(dtype), mask=m)
    p_tile = p_c + (row + o_item) * n + o_unit
    b_h, b_c = lstm_update(b_i, b_f, b_g, b_o, tl.load(p_tile, mask=m, other=0.0))
    tl.store(p_tile + tl.cast(B, tl.int64) * n, b_c, mask=m)
    if dropout is not None:
        b_h *= dropout_factor(p_addresses, slots.seed, dropout, t, o_item, o_unit)
    tl.store(p_h + (row + B + o_item) * s_h + o_unit, b_h.to(dtype), mask=m)


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_query_fwd_kernel(p_clock, p_addresses, offset, slots, B, n, A, depth, blocks):
    """q = W_q h, split along the depth into partial sums; grid (blocks of A, blocks of items, splits).

    depth: units per split, a multiple of BK.
    """
    t = tl.load(p_clock) + offset
    if t >= tl.load(p_clock + 1):
        return
    p_h = pointer(p_addresses, slots.h)
    p_weight = pointer(p_addresses, slots.weight)
    p_parts = pointer(p_addresses, slots.parts)
    i_s = tl.program_id(2)
    first = i_s * depth
    o_m = tl.program_id(0) * blocks.BM + tl.arange(0, blocks.BM)
    o_b = tl.program_id(1) * blocks.BB + tl.arange(0, blocks.BB)
    m_m, m_b = o_m < A, o_b < B
    b_q = tl.zeros((blocks.BM, blocks.BB), tl.float32)
    p_columns = p_h + (t * B * n + first) + o_b.to(tl.int64) * n
    K = tl.minimum(depth, n - first)
    b_q = add_product(b_q, p_weight + first + o_m * n, p_columns, m_m, m_b, K, blocks.EVEN_K, blocks)
    p_tile = p_parts + (i_s * B + o_b).to(tl.int64)[None, :] * A + o_m[:, None]
    tl.store(p_tile, b_q, mask=m_m[:, None] & m_b[None, :])


class Histories(NamedTuple):
    """What the forward pass keeps for the backward pass; slot 0 of T + 1 holds the zeros before frame 0."""

    outputs: Tensor  # [T + 1, B, n_d + D], hidden states and contexts
    states: Tensor  # [T + 1, B, n_a], of the attention LSTM
    gates_a: Tensor  # [T, B, 4 n_a]
    gates_d: Tensor  # [T, B, 4 n_d]
    cells_a: Tensor  # [T + 1, B, n_a] float32
    cells_d: Tensor  # [T + 1, B, n_d] float32
    queries: Tensor  # [T, B, A] float32
    weights: Tensor  # [T + 1, B, T_in] float32
    cumulative: Tensor  # [T + 1, B, T_in] float32


def run_forward(arguments: Arguments, lengths: Tensor, seed: Tensor | None, plan: Plan) -> Histories:
    memory, weights = arguments.memory, arguments.weights
    T, B, P, D, A, n_a, n_d = plan.T, plan.B, plan.P, plan.D, plan.A, plan.n_a, plan.n_d
    kept = _new_histories(arguments, plan)
    if not T or not B:
        return kept
    precision = product_precision(memory.dtype)
    location = fold_location(weights.attention.location_conv, weights.attention.location_dense, memory.dtype)
    contexts = kept.outputs[:, :, n_d:]

    def lstm(tensors: LSTMTensors, sizes: LSTMSizes, dropout: Dropout | None):
        def grid(config: Config) -> tuple[int, int]:
            return triton.cdiv(sizes.n, config["BU"]), triton.cdiv(B, config["BB"])

        config = pick("teacher_forced_lstm_fwd", LSTM_CONFIGS[memory.itemsize], memory, grid, B, sizes.n, LSTM_PROGRAMS)
        even = all(k % config["BK"] == 0 for k in (sizes.n, sizes.n_1, sizes.n_2))
        blocks = LSTMBlocks(**tile_sizes(config), ROWS=4 * config["BU"], STAGES=None, EVEN_K=even, PRECISION=precision)
        return prepare(teacher_forced_lstm_fwd_kernel, grid(config), tensors, (sizes, dropout), blocks, config)

    def query_and_attention():
        def tiles(config: Config) -> tuple[int, int]:
            return triton.cdiv(A, config["BM"]), triton.cdiv(B, config["BB"])

        config = pick("teacher_forced_query_fwd", QUERY_CONFIGS[memory.itemsize], memory, tiles, B, n_a)
        splits, depth = parts_of(n_a, config["BK"], math.prod(tiles(config)), MAX_QUERY_SPLITS, config["BK"])
        parts = kept.queries.new_empty(splits, B, A)
        blocks = QueryBlocks(**tile_sizes(config), STAGES=None, EVEN_K=n_a % config["BK"] == 0, PRECISION=precision)
        return (
            prepare(
                teacher_forced_query_fwd_kernel, (*tiles(config), splits),
                QueryTensors(kept.states[1:], weights.attention.query, parts), (B, n_a, A, depth), blocks, config,
            ),
            *attention(parts),
        )  # fmt: skip

    def attention(query_parts: Tensor):
        candidates = ENERGIES_CONFIGS[memory.itemsize, A > WIDE_ATTENTION]
        config = pick("teacher_forced_energies_fwd", candidates, memory, lambda c: (B, c["CHUNKS"]), B, A)
        tensors = EnergiesTensors(
            query_parts=query_parts,
            query=kept.queries,
            weights=kept.weights,
            cumulative=kept.cumulative,
            energies=memory.new_empty(B, plan.T_in, dtype=torch.float32),
            processed_memory=arguments.processed_memory,
            location=location,
            v=weights.attention.v,
            lengths=lengths,
        )
        blocks = EnergiesBlocks(**tile_sizes(config), **plan.attention_blocks(location), SPLITS=len(query_parts))
        grid = B, config["CHUNKS"]
        yield prepare(teacher_forced_energies_fwd_kernel, grid, tensors, (B, A), blocks, config)
        yield context(tensors.energies)

    def context(energies: Tensor):
        def grid(config: Config) -> tuple[int, int]:
            return B, triton.cdiv(D, config["BD"])

        config = pick("teacher_forced_context_fwd", CONTEXT_CONFIGS[memory.itemsize], memory, grid, B, D)
        tensors = ContextTensors(energies, kept.weights, kept.cumulative, contexts[1:], memory, lengths)
        blocks = ContextBlocks(**tile_sizes(config), BS=SOFTMAX_BLOCK)
        return prepare(teacher_forced_context_fwd_kernel, grid(config), tensors, (B, D, n_d + D), blocks, config)

    cell_a, cell_d = weights.attention_rnn, weights.decoder_rnn
    tensors_a = LSTMTensors(
        first=kept.gates_a,
        gates=kept.gates_a,
        x1=kept.states,  # x is in `first` already: n_1 = 0
        x2=contexts,
        h=kept.states,
        weight_ih=cell_a.weight_ih[:, P:],
        weight_hh=cell_a.weight_hh,
        c=kept.cells_a,
        seed=seed,
    )
    tensors_d = LSTMTensors(
        first=cell_d.bias_ih + cell_d.bias_hh,
        gates=kept.gates_d,
        x1=kept.states[1:],
        x2=contexts[1:],
        h=kept.outputs,
        weight_ih=cell_d.weight_ih,
        weight_hh=cell_d.weight_hh,
        c=kept.cells_d,
        seed=seed,
    )
    sizes_a = LSTMSizes(B, n_a, n_1=0, n_2=D, s_first=4 * n_a, s_1=n_a, s_2=n_d + D, s_h=n_a, s_w=P + D)
    sizes_d = LSTMSizes(B, n_d, n_1=n_a, n_2=D, s_first=0, s_1=n_a, s_2=n_d + D, s_h=n_d + D, s_w=n_a + D)
    run(
        [
            lstm(tensors_a, sizes_a, plan.attention_dropout()),
            *query_and_attention(),
            lstm(tensors_d, sizes_d, plan.decoder_dropout()),
        ],
        T,
        plan.T_in,
        memory.device,
    )
    return kept


def _new_histories(arguments: Arguments, plan: Plan) -> Histories:
    cell = arguments.weights.attention_rnn
    gates_a = F.linear(arguments.decoder_inputs, cell.weight_ih[:, : plan.P], cell.bias_ih + cell.bias_hh)
    kept = empty_histories(arguments.memory, plan, gates_a)
    for x in (kept.outputs, kept.states, kept.cells_a, kept.cells_d, kept.weights, kept.cumulative):
        x[0].zero_()
    return kept


def empty_histories(memory: Tensor, plan: Plan, gates_a: Tensor | None = None) -> Histories:
    """Uninitialised but for `gates_a`, if given."""
    T, B, T_in, n_a, n_d = plan.T, plan.B, plan.T_in, plan.n_a, plan.n_d
    return Histories(
        outputs=memory.new_empty(T + 1, B, n_d + plan.D),
        states=memory.new_empty(T + 1, B, n_a),
        gates_a=memory.new_empty(T, B, 4 * n_a) if gates_a is None else gates_a,
        gates_d=memory.new_empty(T, B, 4 * n_d),
        cells_a=memory.new_empty(T + 1, B, n_a, dtype=torch.float32),
        cells_d=memory.new_empty(T + 1, B, n_d, dtype=torch.float32),
        queries=memory.new_empty(T, B, plan.A, dtype=torch.float32),
        weights=memory.new_empty(T + 1, B, T_in, dtype=torch.float32),
        cumulative=memory.new_empty(T + 1, B, T_in, dtype=torch.float32),
    )
