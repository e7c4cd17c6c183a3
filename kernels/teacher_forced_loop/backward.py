"""The LSTMs of a backward frame of the teacher-forced loop, and their products; attention_backward.py has the rest.

Maths, layout and cost: kernels/README.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .frame import dropout_factor, pointer, pointer_to_either, sum_of_parts, tile_config

# By element size, for large batches first. BU units or BN columns of a product; BB items.
LSTM_BACKWARD_CONFIGS = {
    2: tuple(tile_config(4, 2, BB=16, BU=units, BK=64) for units in (64, 32, 16)),
    4: tuple(tile_config(4, 2, BB=16, BU=units, BK=32) for units in (64, 32)),
}
# The products are split until the GPU is full, so the batch alone decides.
PRODUCT_CONFIGS = {
    2: (
        tile_config(4, 4, BB=128, BN=64, BK=64),
        *(tile_config(4, 4, BB=items, BN=64, BK=64) for items in (64, 32, 16)),
    ),
    4: tuple(tile_config(4, 3, BB=items, BN=64, BK=32) for items in (32, 16)),
}


class LSTMBackwardTensors(NamedTuple):
    """Of one LSTM. Its h is an input of the next frame; LSTM_d's is also an output, and LSTM_a's is also the input of
    the query and of LSTM_d."""

    gates: Any  # [T, B, 4n], activated
    dgates: Any  # [T, B, 4n]: gets the gradients of the gates before activation
    c: Any  # [T + 1, B, n] float32
    dc: Any  # [B, n] float32: gradient of c from the next frame; overwritten with this frame's
    next_parts: Any  # [NEXT_SPLITS, B, n] float32, rows s_next apart: h's gradient from the next frame
    upstream: Any  # [B, T, n], rows s_upstream apart; LSTM_d only
    decoder_parts: Any  # [DECODER_SPLITS, B, n] float32, rows s_decoder apart: h's gradient from LSTM_d; LSTM_a only
    dquery_parts: Any  # [CHUNKS, B, A] float32; LSTM_a only
    dquery: Any  # [T, B, A]: gets their sums; LSTM_a only
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
    NEXT_SPLITS: Any
    DECODER_SPLITS: Any
    CHUNKS: Any
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
    PRECISION: Any


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
        p_parts = pointer(p_addresses, slots.dquery_parts)
        p_dquery = pointer(p_addresses, slots.dquery)
        p_weight = pointer(p_addresses, slots.query_weight)
        o_k = tl.arange(0, BK)
        b_dh = tl.zeros((BB, BU), tl.float32)
        for k in range(0, A, BK):
            m_k = k + o_k < A
            o_column = (k + o_k)[None, :]
            m_dq = m_b[:, None] & m_k[None, :]
            b_dq = sum_of_parts(p_parts, o_b[:, None], o_column, m_dq, B * A, A, blocks.CHUNKS).to(dtype)  # [BB, BK]
            if tl.program_id(0) == 0:
                tl.store(p_dquery + (row + o_item) * A + o_column, b_dq, mask=m_dq)
            b_w = tl.load(p_weight + (k + o_k)[:, None] * n + o_unit, mask=m_k[:, None] & m_u[None, :], other=0.0)
            b_dh = tl.dot(b_dq, b_w, b_dh, input_precision=blocks.PRECISION)
        b_dh += sum_of_parts(p_decoder, o_item, o_unit, m, B * sizes.s_decoder, sizes.s_decoder, blocks.DECODER_SPLITS)
    b_dh += sum_of_parts(p_next, o_item, o_unit, m, B * sizes.s_next, sizes.s_next, blocks.NEXT_SPLITS)
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
    """dgates [weight_ih, weight_hh], split along the depth into partial sums.

    Grid (blocks of n_1 then n_2, blocks of items, splits).
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
