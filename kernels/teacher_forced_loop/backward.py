"""The backward frame of the teacher-forced loop: LSTM_d, its product, the attention, LSTM_a, its product.

Maths, layout and cost: kernels/README.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..location_attention.attend import AttentionItem, AttentionSizes, AttentionStrides
from ..location_attention.attend_bwd import AttentionGradients, AttentionScratch, AttentionUpstream, attend_bwd
from .frame import dropout_factor, pointer, pointer_to_either, tile_config

# By element size, for large batches first. BU units or BN columns of a product; BB items.
LSTM_BACKWARD_CONFIGS = {2: (tile_config(4, 2, BB=16, BU=64, BK=64),), 4: (tile_config(4, 2, BB=16, BU=64, BK=32),)}
PRODUCT_CONFIGS = {
    2: (tile_config(4, 4, BB=64, BN=64, BK=64), tile_config(4, 4, BB=16, BN=64, BK=64)),
    4: (tile_config(4, 3, BB=32, BN=64, BK=32), tile_config(4, 3, BB=16, BN=64, BK=32)),
}
# By element size and whether the attention is wide.
ATTEND_BACKWARD_CONFIGS = {
    (2, False): (tile_config(8, 2, BT=32, BK=32, BR=16, BD=256),),
    (2, True): (tile_config(8, 2, BT=16, BK=16, BR=16, BD=256),),
    (4, False): (tile_config(8, 2, BT=32, BK=16, BR=16, BD=256),),
    (4, True): (tile_config(8, 2, BT=16, BK=16, BR=16, BD=256),),
}


class LSTMBackwardTensors(NamedTuple):
    """Of one LSTM. Its h is an input of the next frame; LSTM_d's is also an output, and LSTM_a's is also the input of
    the query and of LSTM_d."""

    gates: Any  # [T, B, 4n], activated
    dgates: Any  # [T, B, 4n]: gets the gradients of the gates before activation
    c: Any  # [T + 1, B, n] float32
    dc: Any  # [B, n] float32: gradient of c from the next frame; overwritten with this frame's
    next_parts: Any  # [SPLITS, B, n] float32, rows s_next apart: h's gradient from the next frame
    upstream: Any  # [B, T, n], rows s_upstream apart; LSTM_d only
    decoder_parts: Any  # [SPLITS, B, n] float32, rows s_decoder apart: h's gradient from LSTM_d; LSTM_a only
    dquery: Any  # [T, B, A]; LSTM_a only
    query_weight: Any  # [A, n]; LSTM_a only
    seed: Any  # [] int64, of the dropout


class LSTMBackwardSizes(NamedTuple):
    B: Any
    n: Any
    A: Any
    s_next: Any
    s_upstream: Any
    s_decoder: Any


class LSTMBackwardBlocks(NamedTuple):
    BB: Any
    BU: Any
    BK: Any
    SPLITS: Any
    PRECISION: Any


class ProductTensors(NamedTuple):
    dgates: Any  # [T, B, K]
    weight_ih: Any  # [K, n_1], rows s_1 apart
    weight_hh: Any  # [K, n_2]
    parts: Any  # [SPLITS, B, n_1 + n_2] float32


class ProductSizes(NamedTuple):
    B: Any
    K: Any
    n_1: Any
    n_2: Any
    s_1: Any
    n_blocks_1: Any  # blocks of n_1
    depth: Any  # gates per split, a multiple of BK


class ProductBlocks(NamedTuple):
    BB: Any
    BN: Any
    BK: Any
    EVEN_K: Any
    SPLITS: Any
    PRECISION: Any


class AttendBackwardTensors(NamedTuple):
    query: Any  # [T, B, A] float32
    weights: Any  # [T + 1, B, T_in] float32
    cumulative: Any  # [T + 1, B, T_in] float32
    memory: Any  # [B, T_in, D]
    processed_memory: Any  # [B, T_in, A]
    location: Any  # [A, S_LOCATION]
    v: Any  # [A]
    lengths: Any  # [B] int64
    upstream: Any  # [B, T, D], rows s_upstream apart: the context's upstream gradient
    decoder_parts: Any  # [SPLITS, B, D] float32, rows s_decoder apart: the context's gradient from LSTM_d
    next_parts: Any  # [SPLITS, B, D] float32, rows s_next apart: from LSTM_a of the next frame
    dalignments: Any  # [B, T, T_in], upstream; may be absent
    dcontexts: Any  # [T, B, D]: gets the contexts' gradients
    dqueries: Any  # [T, B, A]: gets the queries' gradients
    item_sums: Any  # [B, A + A S_LOCATION + D] float32: gradients of v, of U, of the frame's context
    dweights: Any  # [B, 3, T_in] float32: gradients of previous and cumulative weights, scratch
    dprocessed: Any  # [B, T_in, A] float32: accumulated gradient of the processed memory
    dwindows: Any  # [B, T_in, S_LOCATION] float32, scratch
    dz: Any  # [B, T_in, A], scratch


class AttendBackwardSizes(NamedTuple):
    B: Any
    A: Any
    D: Any
    s_upstream: Any
    s_decoder: Any
    s_next: Any


class AttendBackwardBlocks(NamedTuple):
    """`AttentionBlocks` and more."""

    TAPS: Any
    NORMALIZATION: Any
    PRECISION: Any
    BT: Any
    BA: Any
    BK: Any
    BR: Any
    BD: Any
    S_LOCATION: Any
    FULL_A: Any  # A = BA
    SPLITS: Any


@triton.jit
def _sum_of_parts(p_parts, o_row, o_column, m, s_part, s_row, SPLITS: tl.constexpr):
    """A tile of the product whose SPLITS partial sums `teacher_forced_product_bwd_kernel` wrote."""
    p_tile = p_parts + o_row * s_row + o_column
    b_sum = tl.load(p_tile, mask=m, other=0.0)
    for _ in tl.static_range(SPLITS - 1):
        p_tile += s_part
        b_sum += tl.load(p_tile, mask=m, other=0.0)
    return b_sum


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_lstm_bwd_kernel(
    p_clock, p_addresses, offset, slots, sizes, dropout, blocks, QUERY_ROWS: tl.constexpr
):  # fmt: skip
    """The gates' gradients from h's; grid (blocks of units, blocks of items).

    QUERY_ROWS: BB, the rows of the product with W_q; None for LSTM_d, which has no such product.
    """
    BB: tl.constexpr = blocks.BB
    BU: tl.constexpr = blocks.BU
    BK: tl.constexpr = blocks.BK
    SPLITS: tl.constexpr = blocks.SPLITS
    T = tl.load(p_clock + 1)
    t = T - 1 - tl.load(p_clock) - offset
    if t < 0:
        return
    p_gates = pointer(p_addresses, slots.gates)
    p_dgates = pointer(p_addresses, slots.dgates)
    p_c = pointer(p_addresses, slots.c)
    p_dc = pointer(p_addresses, slots.dc)
    p_next = pointer(p_addresses, slots.next_parts)
    dtype: tl.constexpr = p_dgates.dtype.element_ty
    B, n, A = sizes.B, sizes.n, sizes.A
    o_b = tl.program_id(1) * BB + tl.arange(0, BB)
    o_u = tl.program_id(0) * BU + tl.arange(0, BU)
    m_b, m_u = o_b < B, o_u < n
    m = m_b[:, None] & m_u[None, :]
    row = t * B
    o_item = o_b.to(tl.int64)[:, None]
    o_unit = o_u[None, :]
    if QUERY_ROWS is None:
        p_upstream = pointer(p_addresses, slots.upstream)
        b_dh = tl.load(p_upstream + (o_item * T + t) * sizes.s_upstream + o_unit, mask=m, other=0.0).to(tl.float32)
    else:
        p_decoder = pointer(p_addresses, slots.decoder_parts)
        p_dquery = pointer(p_addresses, slots.dquery)
        p_weight = pointer(p_addresses, slots.query_weight)
        o_k = tl.arange(0, BK)
        b_dh = tl.zeros((BB, BU), tl.float32)
        for k in range(0, A, BK):
            m_k = k + o_k < A
            p_rows = p_dquery + (row + o_b)[:, None] * A + (k + o_k)[None, :]
            b_dq = tl.load(p_rows, mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            b_w = tl.load(p_weight + (k + o_k)[:, None] * n + o_unit, mask=m_k[:, None] & m_u[None, :], other=0.0)
            b_dh = tl.dot(b_dq, b_w, b_dh, input_precision=blocks.PRECISION)
        b_dh += _sum_of_parts(p_decoder, o_item, o_unit, m, B * sizes.s_decoder, sizes.s_decoder, SPLITS)
    b_dh += _sum_of_parts(p_next, o_item, o_unit, m, B * sizes.s_next, sizes.s_next, SPLITS)
    if dropout is not None:
        b_dh *= dropout_factor(p_addresses, slots.seed, dropout, t, o_item, o_unit)
    p_tile = p_gates + (row + o_item) * (4 * n) + o_unit
    b_i = tl.load(p_tile, mask=m, other=0.0).to(tl.float32)
    b_f = tl.load(p_tile + n, mask=m, other=0.0).to(tl.float32)
    b_g = tl.load(p_tile + 2 * n, mask=m, other=0.0).to(tl.float32)
    b_o = tl.load(p_tile + 3 * n, mask=m, other=0.0).to(tl.float32)
    p_tile = p_c + (row + o_item) * n + o_unit
    b_old_c = tl.load(p_tile, mask=m, other=0.0)
    b_tanh = 2.0 * tl.sigmoid(2.0 * tl.load(p_tile + tl.cast(B, tl.int64) * n, mask=m, other=0.0)) - 1.0
    p_tile = p_dc + o_item * n + o_unit
    b_dc = tl.load(p_tile, mask=m, other=0.0) + b_dh * b_o * (1.0 - b_tanh * b_tanh)
    tl.store(p_tile, b_dc * b_f, mask=m)
    p_tile = p_dgates + (row + o_item) * (4 * n) + o_unit
    tl.store(p_tile, (b_dc * b_g * b_i * (1.0 - b_i)).to(dtype), mask=m)
    tl.store(p_tile + n, (b_dc * b_old_c * b_f * (1.0 - b_f)).to(dtype), mask=m)
    tl.store(p_tile + 2 * n, (b_dc * b_i * (1.0 - b_g * b_g)).to(dtype), mask=m)
    tl.store(p_tile + 3 * n, (b_dh * b_tanh * b_o * (1.0 - b_o)).to(dtype), mask=m)


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_product_bwd_kernel(p_clock, p_addresses, offset, slots, sizes, blocks):
    """dgates [weight_ih, weight_hh], split along the depth into SPLITS partial sums.

    Grid (blocks of n_1 then n_2, blocks of items, SPLITS).
    """
    BB: tl.constexpr = blocks.BB
    BN: tl.constexpr = blocks.BN
    BK: tl.constexpr = blocks.BK
    t = tl.load(p_clock + 1) - 1 - tl.load(p_clock) - offset
    if t < 0:
        return
    B, K, n_1, n_2, n_blocks_1 = sizes.B, sizes.K, sizes.n_1, sizes.n_2, sizes.n_blocks_1
    i_n, i_b, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    is_first = i_n < n_blocks_1
    p_dgates = pointer(p_addresses, slots.dgates)
    p_weight = pointer_to_either(p_addresses, is_first, slots.weight_ih, slots.weight_hh)
    p_parts = pointer(p_addresses, slots.parts)
    o_n = (i_n - tl.where(is_first, 0, n_blocks_1)) * BN + tl.arange(0, BN)
    o_b = i_b * BB + tl.arange(0, BB)
    o_k = tl.arange(0, BK)
    m_b = o_b < B
    m_n = o_n < tl.where(is_first, n_1, n_2)
    s_w = tl.where(is_first, sizes.s_1, n_2)
    p_rows = p_dgates + t * B * K + (o_b.to(tl.int64) * K)[:, None] + o_k[None, :]
    p_tile = p_weight + (o_k.to(tl.int64) * s_w)[:, None] + o_n[None, :]
    b_sum = tl.zeros((BB, BN), tl.float32)
    for k in range(i_s * sizes.depth, tl.minimum((i_s + 1) * sizes.depth, K), BK):
        if blocks.EVEN_K:
            b_d = tl.load(p_rows + k, mask=m_b[:, None], other=0.0)  # [BB, BK]
            b_w = tl.load(p_tile + tl.cast(k, tl.int64) * s_w, mask=m_n[None, :], other=0.0)  # [BK, BN]
        else:
            m_k = k + o_k < K
            b_d = tl.load(p_rows + k, mask=m_b[:, None] & m_k[None, :], other=0.0)
            b_w = tl.load(p_tile + tl.cast(k, tl.int64) * s_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_sum = tl.dot(b_d, b_w, b_sum, input_precision=blocks.PRECISION)
    o_column = o_n + tl.where(is_first, 0, n_1)
    p_tile = p_parts + (i_s * B + o_b).to(tl.int64)[:, None] * (n_1 + n_2) + o_column[None, :]
    tl.store(p_tile, b_sum, mask=m_b[:, None] & m_n[None, :])


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_attend_bwd_kernel(p_clock, p_addresses, offset, slots, sizes, blocks):
    """The backward of an item's attention; grid (B,)."""
    BT: tl.constexpr = blocks.BT
    BA: tl.constexpr = blocks.BA
    BD: tl.constexpr = blocks.BD
    SPLITS: tl.constexpr = blocks.SPLITS
    S_LOCATION: tl.constexpr = blocks.S_LOCATION
    T = tl.load(p_clock + 1)
    t = T - 1 - tl.load(p_clock) - offset
    if t < 0:
        return
    B, A, D = sizes.B, sizes.A, sizes.D
    if blocks.FULL_A:
        A = BA  # constant strides save registers, which are scarce here
    T_in = tl.load(p_clock + 2).to(tl.int32)
    p_query = pointer(p_addresses, slots.query)
    p_weights = pointer(p_addresses, slots.weights)
    p_cumulative = pointer(p_addresses, slots.cumulative)
    p_memory = pointer(p_addresses, slots.memory)
    p_processed = pointer(p_addresses, slots.processed_memory)
    p_location = pointer(p_addresses, slots.location)
    p_v = pointer(p_addresses, slots.v)
    p_lengths = pointer(p_addresses, slots.lengths)
    p_upstream = pointer(p_addresses, slots.upstream)
    p_decoder = pointer(p_addresses, slots.decoder_parts)
    p_next = pointer(p_addresses, slots.next_parts)
    p_dcontexts = pointer(p_addresses, slots.dcontexts)
    item = tl.program_id(0).to(tl.int64)
    row = t * B + item
    length = tl.minimum(tl.load(p_lengths + item).to(tl.int32), T_in)
    p_dv = pointer(p_addresses, slots.item_sums) + item * (A + A * S_LOCATION + D)
    p_dcontext = p_dv + A + A * S_LOCATION
    for d0 in range(0, D, BD):
        o_d = d0 + tl.arange(0, BD)
        m_d = o_d < D
        b_dc = tl.load(p_upstream + (item * T + t) * sizes.s_upstream + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_dc += _sum_of_parts(p_decoder, item, o_d, m_d, B * sizes.s_decoder, sizes.s_decoder, SPLITS)
        b_dc += _sum_of_parts(p_next, item, o_d, m_d, B * sizes.s_next, sizes.s_next, SPLITS)
        tl.store(p_dcontext + o_d, b_dc, mask=m_d)
        tl.store(p_dcontexts + row * D + o_d, b_dc.to(p_dcontexts.dtype.element_ty), mask=m_d)
    p_dprevious = pointer(p_addresses, slots.dweights) + item * T_in * 3
    p_dcumulative = p_dprevious + T_in
    for t0 in range(0, T_in, BT):
        o_t = t0 + tl.arange(0, BT)
        m_t = o_t < T_in
        b_dw = tl.load(p_dprevious + o_t, mask=m_t, other=0.0) + tl.load(p_dcumulative + o_t, mask=m_t, other=0.0)
        if slots.dalignments is not None:
            p_row = pointer(p_addresses, slots.dalignments) + (item * T + t) * T_in
            b_dw += tl.load(p_row + o_t, mask=m_t, other=0.0).to(tl.float32)
        tl.store(p_dprevious + o_t, b_dw, mask=m_t)
    tl.debug_barrier()
    o_a = tl.arange(0, BA)
    b_query = tl.load(p_query + row * A + o_a, mask=o_a < A, other=0.0)
    # The structs are built inside the call: assigned to names, their constants would become tensors (Triton 3.3).
    b_dquery = attend_bwd(
        b_query,
        AttentionItem(
            p_memory + item * T_in * D, p_processed + item * T_in * A, p_weights + row * T_in,
            p_cumulative + row * T_in, p_location, p_v, None, None,
        ),
        p_weights + (row + B) * T_in,
        AttentionUpstream(p_dcontext, p_dprevious),
        AttentionGradients(
            pointer(p_addresses, slots.dprocessed) + item * T_in * A, p_dv + A, p_dv, None, p_dprevious, p_dcumulative
        ),
        AttentionScratch(
            p_dcumulative + T_in,
            pointer(p_addresses, slots.dz) + item * T_in * A,
            pointer(p_addresses, slots.dwindows) + item * T_in * S_LOCATION,
        ),
        length, AttentionSizes(T_in, A, D, 1.0), AttentionStrides(D, 1, A, 1, S_LOCATION, None), blocks, True,
    )  # fmt: skip
    # Recomputed: registers are scarce here.
    row = (tl.load(p_clock + 1) - 1 - tl.load(p_clock) - offset) * B + tl.program_id(0)
    p_dqueries = pointer(p_addresses, slots.dqueries)
    tl.store(p_dqueries + row * A + o_a, b_dquery.to(p_dqueries.dtype.element_ty), mask=o_a < A)
