r"""Tacotron 2's decoder under teacher forcing: all frames in one autograd function, forward and backward.

A frame t, with x the prenet's output, a and d the attention and the decoder LSTM, m their dropout masks:

    h_a = m_a LSTM_a([x, context'], h_a')        ' is of the frame before
    context, w = attention(W_q h_a; w', sum of w')
    h_d = m_d LSTM_d([h_a, context], h_d')

Before the loop: the share of x in LSTM_a's gates, with the biases, as one GEMM. In it, a launch each: LSTM_a, W_q h_a,
the attention, LSTM_d. Backward the frames run the other way round: the gates' derivatives of LSTM_d, dgates_d times
its weights, the attention, the gates' derivatives of LSTM_a (with W_q^T dq), dgates_a times its weights. The two
products are split over their depth to fill the GPU; whoever reads them adds up the parts, always in one order. After
the loop: every weight's gradient is a GEMM over all frames, dW = sum_t dgates_t^T inputs_t, and so are those of x and,
item by item, of the memory. Gradients of the processed memory, of v and of the location layer are summed in the loop,
an item by its own program, in float32.

Layout: histories [T + 1, B, n], frame by frame, slot 0 holding the zeros that frame 0 starts from, so that an LSTM's
inputs and the states of a frame before are slices of them; gates [T, B, 4n], a gate's n units together, activated.
Cell states, weights, cumulative weights and all sums are float32.

Kernels find the frame in device memory, p_clock: frames done by replays so far, T and T_in; a launch adds its own
`offset`, and programs of frames that do not exist return at once. They find their tensors in device memory too,
p_addresses: one row of addresses a launch. So one CUDA graph of FRAMES_PER_GRAPH frames serves any length, any text and
any call: all tensors, those kept for the backward pass among them, are the call's own, nothing is copied, and what
belongs to a graph is its clock and its table.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from . import backend
from .arguments import SMALLEST_DOT
from .decoder_weights import RecurrentWeights, recurrent_shapes
from .graphs import record_graph
from .launch import Config, launch, pick_config, product_precision, uncompiled
from .location_attention.attend import (
    AttentionBlocks,
    AttentionItem,
    AttentionOutputs,
    AttentionSizes,
    AttentionStrides,
    attend,
    attention_too_wide,
    fold_location,
)
from .location_attention.attend_bwd import AttentionGradients, AttentionScratch, AttentionUpstream, attend_bwd
from .lstm_cell.cell import GateBlocks, GateTile, lstm_activate, lstm_gates, lstm_split, lstm_update
from .philox import uniform_noise
from .reference.philox import dropped_words, random_seed
from .reference.teacher_forced_loop import (
    ATTENTION_STREAM,
    DECODER_STREAM,
    as_weights,
    deferred_teacher_forced_loop,
    dropout_scale,
)

OP = "teacher_forced_loop"
FRAMES_PER_GRAPH = 16
GRAPHS_KEPT = 32

_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def _config(num_warps: int, num_stages: int, **blocks: int) -> Config:
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages}


# By the size of an element, for large batches first. BU units are 4 BU rows of the gates' product; BB items.
LSTM_CONFIGS = {
    2: (_config(4, 4, BU=16, BB=64, BK=64), _config(4, 4, BU=16, BB=16, BK=64)),
    4: (_config(4, 3, BU=16, BB=32, BK=32), _config(4, 3, BU=16, BB=16, BK=32)),
}
QUERY_CONFIGS = {2: (_config(4, 4, BM=16, BB=16, BK=128),), 4: (_config(4, 3, BM=16, BB=16, BK=64),)}
LSTM_BACKWARD_CONFIGS = {2: (_config(4, 2, BB=16, BU=64, BK=64),), 4: (_config(4, 2, BB=16, BU=64, BK=32),)}
PRODUCT_CONFIGS = {
    2: (_config(4, 4, BB=64, BN=64, BK=64), _config(4, 4, BB=16, BN=64, BK=64)),
    4: (_config(4, 3, BB=32, BN=64, BK=32), _config(4, 3, BB=16, BN=64, BK=32)),
}
# By the size of an element and whether there are more than 128 attention channels.
ATTEND_CONFIGS = {
    (2, False): (_config(8, 2, BT=64, BK=64, BR=16, BD=512),),
    (2, True): (_config(8, 2, BT=16, BK=64, BR=16, BD=256),),
    (4, False): (_config(8, 2, BT=32, BK=16, BR=16, BD=512),),
    (4, True): (_config(8, 2, BT=16, BK=16, BR=16, BD=512),),
}
ATTEND_BACKWARD_CONFIGS = {
    (2, False): (_config(8, 2, BT=32, BK=32, BR=16, BD=256),),
    (2, True): (_config(8, 2, BT=16, BK=16, BR=16, BD=256),),
    (4, False): (_config(8, 2, BT=32, BK=16, BR=16, BD=256),),
    (4, True): (_config(8, 2, BT=16, BK=16, BR=16, BD=256),),
}
WIDE_ATTENTION = 128
MOST_SPLITS, SMALLEST_DEPTH = 4, 1024  # of the backward products


@triton.jit
def _pointer(p_addresses, slot, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    p = tl.load(p_addresses + slot).to(tl.pointer_type(dtype))
    if ALIGNED:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit
def _dropout_factor(p_addresses, slot, stream, t, o_b, o_u, threshold, scale):
    """0 or `scale` for items o_b and units o_u, which broadcast against each other."""
    b_noise = uniform_noise(tl.load(_pointer(p_addresses, slot, tl.int64, False)), stream, (o_b << 32) + t, o_u)
    return tl.where(b_noise >= threshold, scale, 0.0)


@triton.jit
def teacher_forced_advance_kernel(p_clock, n_frames):
    tl.store(p_clock, tl.load(p_clock) + n_frames)


@triton.jit(do_not_specialize=["offset", "stream"])
def teacher_forced_lstm_fwd_kernel(
    p_clock, p_addresses, offset, B, n, n_1, n_2, s_first, s_1, s_2, s_h, s_w, stream, threshold, scale,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, DROPOUT: tl.constexpr, EVEN_K: tl.constexpr,
    BU: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A step of an LSTM whose input is two tensors; grid (blocks of units, blocks of items).

    Args:
        p_addresses: of what there is of the gates already [T, B, 4n] or, with s_first = 0, [4n]; of the activated
            gates [T, B, 4n]; of the inputs [T, B, n_1] and [T, B, n_2]; of h [T + 1, B, n]; of weight_ih
            [4n, n_1 + n_2] and weight_hh [4n, n]; of c [T + 1, B, n] float32; of the seed.
        s_*: from row to row.
        ROWS: 4 BU.
    """
    t = tl.load(p_clock) + offset
    if t >= tl.load(p_clock + 1):
        return
    p_first = _pointer(p_addresses, 0, DTYPE, ALIGNED)
    p_gates = _pointer(p_addresses, 1, DTYPE, ALIGNED)
    p_1 = _pointer(p_addresses, 2, DTYPE, ALIGNED)
    p_2 = _pointer(p_addresses, 3, DTYPE, ALIGNED)
    p_h = _pointer(p_addresses, 4, DTYPE, ALIGNED)
    p_w_ih = _pointer(p_addresses, 5, DTYPE, ALIGNED)
    p_w_hh = _pointer(p_addresses, 6, DTYPE, ALIGNED)
    p_c = _pointer(p_addresses, 7, tl.float32, ALIGNED)
    row = t * B  # of item 0 in frame t
    o_b = tl.program_id(1) * BB + tl.arange(0, BB)
    m_b = o_b < B
    o_item = o_b.to(tl.int64)[None, :]
    o_unit = tl.program_id(0) * BU + tl.arange(0, BU)[:, None]
    m = (o_unit < n) & m_b[None, :]
    # Loaded before the products, added after them: by then they are there.
    p_tile = p_first + (row + o_item) * s_first + o_unit
    b_first_i = tl.load(p_tile, mask=m, other=0.0)
    b_first_f = tl.load(p_tile + n, mask=m, other=0.0)
    b_first_g = tl.load(p_tile + 2 * n, mask=m, other=0.0)
    b_first_o = tl.load(p_tile + 3 * n, mask=m, other=0.0)
    o_u = tl.program_id(0) * BU + tl.arange(0, ROWS) // 4
    b_gates = tl.zeros((ROWS, BB), tl.float32)
    tile = GateTile(o_u, n, o_b, m_b)
    b_gates = lstm_gates(
        b_gates, tile, p_1 + row * s_1, p_w_ih, n_1, s_1, s_w, EVEN_K, GateBlocks(BU, BK, PRECISION, None)
    )
    b_gates = lstm_gates(
        b_gates, tile, p_2 + row * s_2, p_w_ih + n_1, n_2, s_2, s_w, EVEN_K, GateBlocks(BU, BK, PRECISION, None)
    )
    b_gates = lstm_gates(b_gates, tile, p_h + row * s_h, p_w_hh, n, s_h, n, EVEN_K, GateBlocks(BU, BK, PRECISION, None))
    b_i, b_f, b_g, b_o = lstm_split(b_gates, BU, BB)
    b_i, b_f, b_g, b_o = lstm_activate(
        b_i + b_first_i.to(tl.float32), b_f + b_first_f.to(tl.float32),
        b_g + b_first_g.to(tl.float32), b_o + b_first_o.to(tl.float32),
    )  # fmt: skip
    # The activated gates may take the place of what there was already, which other threads have read.
    tl.debug_barrier()
    p_tile = p_gates + (row + o_item) * (4 * n) + o_unit
    tl.store(p_tile, b_i.to(DTYPE), mask=m)
    tl.store(p_tile + n, b_f.to(DTYPE), mask=m)
    tl.store(p_tile + 2 * n, b_g.to(DTYPE), mask=m)
    tl.store(p_tile + 3 * n, b_o.to(DTYPE), mask=m)
    p_tile = p_c + (row + o_item) * n + o_unit
    b_h, b_c = lstm_update(b_i, b_f, b_g, b_o, tl.load(p_tile, mask=m, other=0.0))
    tl.store(p_tile + tl.cast(B, tl.int64) * n, b_c, mask=m)
    if DROPOUT:
        b_h *= _dropout_factor(p_addresses, 8, stream, t, o_item, o_unit, threshold, scale)
    tl.store(p_h + (row + B + o_item) * s_h + o_unit, b_h.to(DTYPE), mask=m)


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_query_fwd_kernel(
    p_clock, p_addresses, offset, B, n, A,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q = W_q h, [T, B, A] float32; grid (blocks of A, blocks of items). Addresses: h [T, B, n], W_q [A, n], q."""
    t = tl.load(p_clock) + offset
    if t >= tl.load(p_clock + 1):
        return
    p_h = _pointer(p_addresses, 0, DTYPE, ALIGNED)
    p_weight = _pointer(p_addresses, 1, DTYPE, ALIGNED)
    p_query = _pointer(p_addresses, 2, tl.float32, ALIGNED)
    row = t * B
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_b = tl.program_id(1) * BB + tl.arange(0, BB)
    o_k = tl.arange(0, BK)
    m_m, m_b = o_m < A, o_b < B
    p_rows = p_weight + (o_m * n)[:, None] + o_k[None, :]
    p_columns = p_h + row * n + (o_b.to(tl.int64) * n)[None, :] + o_k[:, None]
    b_q = tl.zeros((BM, BB), tl.float32)
    for k in range(0, n, BK):
        if EVEN_K:
            b_w = tl.load(p_rows + k, mask=m_m[:, None], other=0.0)  # [BM, BK]
            b_h = tl.load(p_columns + k, mask=m_b[None, :], other=0.0)  # [BK, BB]
        else:
            m_k = k + o_k < n
            b_w = tl.load(p_rows + k, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_h = tl.load(p_columns + k, mask=m_b[None, :] & m_k[:, None], other=0.0)
        b_q = tl.dot(b_w, b_h, b_q, input_precision=PRECISION)
    p_tile = p_query + (row + o_b)[None, :] * A + o_m[:, None]
    tl.store(p_tile, b_q, mask=m_m[:, None] & m_b[None, :])


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_attend_fwd_kernel(
    p_clock, p_addresses, offset, B, A, D, s_context,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr,
    BK: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    S_LOCATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The attention of an item; grid (B,).

    Addresses: of queries [T, B, A], weights and cumulative weights [T + 1, B, T_in], all float32; of the contexts of
    frames 0 ...; of memory, processed memory, U and v as `attend` takes them; of lengths [B] int64.
    """
    t = tl.load(p_clock) + offset
    if t >= tl.load(p_clock + 1):
        return
    T_in = tl.load(p_clock + 2).to(tl.int32)
    p_query = _pointer(p_addresses, 0, tl.float32, ALIGNED)
    p_weights = _pointer(p_addresses, 1, tl.float32, ALIGNED)
    p_cumulative = _pointer(p_addresses, 2, tl.float32, ALIGNED)
    p_context = _pointer(p_addresses, 3, DTYPE, ALIGNED)
    p_memory = _pointer(p_addresses, 4, DTYPE, ALIGNED)
    p_processed = _pointer(p_addresses, 5, DTYPE, ALIGNED)
    p_location = _pointer(p_addresses, 6, DTYPE, ALIGNED)
    p_v = _pointer(p_addresses, 7, DTYPE, ALIGNED)
    p_lengths = _pointer(p_addresses, 8, tl.int64, ALIGNED)
    item = tl.program_id(0).to(tl.int64)
    row = t * B + item
    length = tl.minimum(tl.load(p_lengths + item).to(tl.int32), T_in)
    o_a = tl.arange(0, BA)
    b_query = tl.load(p_query + row * A + o_a, mask=o_a < A, other=0.0)
    attend(
        b_query,
        AttentionItem(
            p_memory + item * T_in * D, p_processed + item * T_in * A, p_weights + row * T_in,
            p_cumulative + row * T_in, p_location, p_v, None, None,
        ),
        AttentionOutputs(
            p_weights + (row + B) * T_in, p_context + row * s_context, p_cumulative + (row + B) * T_in
        ),
        length,
        AttentionSizes(T_in, A, D, 1.0),
        AttentionStrides(D, 1, A, 1, S_LOCATION, None),
        AttentionBlocks(TAPS, "softmax", PRECISION, BT, BA, BK, BR, BD),
    )  # fmt: skip


@triton.jit
def _sum_of_parts(p_parts, o_row, o_column, m, s_part, s_row, SPLITS: tl.constexpr):
    """A tile of a product that `teacher_forced_product_bwd_kernel` left in parts."""
    p_tile = p_parts + o_row * s_row + o_column
    b_sum = tl.load(p_tile, mask=m, other=0.0)
    for _ in tl.static_range(SPLITS - 1):
        p_tile += s_part
        b_sum += tl.load(p_tile, mask=m, other=0.0)
    return b_sum


@triton.jit(do_not_specialize=["offset", "stream"])
def teacher_forced_lstm_bwd_kernel(
    p_clock, p_addresses, offset, B, n, A, s_new, s_old, stream, threshold, scale,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, DROPOUT: tl.constexpr, SPLITS: tl.constexpr, QUERY_ROWS: tl.constexpr,
    BB: tl.constexpr, BU: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From the gradient of h that of the gates, [T, B, 4n]; grid (blocks of units, blocks of items).

    The decoder LSTM's h is an output [B, T, s_new]; the attention LSTM's makes the query and is an input of the
    decoder LSTM. Both are states of the frame after.

    Args:
        p_addresses: of the activated gates and their gradients [T, B, 4n]; of c [T + 1, B, n] and its gradient
            [B, n], float32; of the parts that hold what comes from the frame after, rows s_old apart; of the upstream
            gradient, or of the parts that hold what comes from the decoder LSTM, rows s_new apart; of the query's
            gradient [T, B, A] and W_q [A, n]; of the seed.
    """
    T = tl.load(p_clock + 1)
    t = T - 1 - tl.load(p_clock) - offset
    if t < 0:
        return
    p_gates = _pointer(p_addresses, 0, DTYPE, ALIGNED)
    p_dgates = _pointer(p_addresses, 1, DTYPE, ALIGNED)
    p_c = _pointer(p_addresses, 2, tl.float32, ALIGNED)
    p_dc = _pointer(p_addresses, 3, tl.float32, ALIGNED)
    p_old = _pointer(p_addresses, 4, tl.float32, ALIGNED)
    o_b = tl.program_id(1) * BB + tl.arange(0, BB)
    o_u = tl.program_id(0) * BU + tl.arange(0, BU)
    m_b, m_u = o_b < B, o_u < n
    m = m_b[:, None] & m_u[None, :]
    row = t * B
    o_item = o_b.to(tl.int64)[:, None]
    o_unit = o_u[None, :]
    if QUERY_ROWS is None:
        p_upstream = _pointer(p_addresses, 5, DTYPE, ALIGNED)
        b_dh = tl.load(p_upstream + (o_item * T + t) * s_new + o_unit, mask=m, other=0.0).to(tl.float32)
    else:
        p_new = _pointer(p_addresses, 5, tl.float32, ALIGNED)
        p_dquery = _pointer(p_addresses, 6, DTYPE, ALIGNED)
        p_weight = _pointer(p_addresses, 7, DTYPE, ALIGNED)
        o_k = tl.arange(0, BK)
        b_dh = tl.zeros((BB, BU), tl.float32)
        for k in range(0, A, BK):
            m_k = k + o_k < A
            p_rows = p_dquery + (row + o_b)[:, None] * A + (k + o_k)[None, :]
            b_dq = tl.load(p_rows, mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            b_w = tl.load(p_weight + (k + o_k)[:, None] * n + o_unit, mask=m_k[:, None] & m_u[None, :], other=0.0)
            b_dh = tl.dot(b_dq, b_w, b_dh, input_precision=PRECISION)
        b_dh += _sum_of_parts(p_new, o_item, o_unit, m, B * s_new, s_new, SPLITS)
    b_dh += _sum_of_parts(p_old, o_item, o_unit, m, B * s_old, s_old, SPLITS)
    if DROPOUT:
        b_dh *= _dropout_factor(p_addresses, 8, stream, t, o_item, o_unit, threshold, scale)
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
    tl.store(p_tile, (b_dc * b_g * b_i * (1.0 - b_i)).to(DTYPE), mask=m)
    tl.store(p_tile + n, (b_dc * b_old_c * b_f * (1.0 - b_f)).to(DTYPE), mask=m)
    tl.store(p_tile + 2 * n, (b_dc * b_i * (1.0 - b_g * b_g)).to(DTYPE), mask=m)
    tl.store(p_tile + 3 * n, (b_dh * b_tanh * b_o * (1.0 - b_o)).to(DTYPE), mask=m)


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_product_bwd_kernel(
    p_clock, p_addresses, offset, B, K, n_1, n_2, s_1, n_blocks_1, depth,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, EVEN_K: tl.constexpr, SPLITS: tl.constexpr,
    BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dgates [weight_ih, weight_hh] in SPLITS parts of `depth` gates each, [SPLITS, B, n_1 + n_2] float32.

    Grid (blocks of n_1 then of n_2, blocks of items, SPLITS). Addresses: dgates [T, B, K]; the weights [K, n_1], rows
    s_1 apart, and [K, n_2]; the parts.
    """
    t = tl.load(p_clock + 1) - 1 - tl.load(p_clock) - offset
    if t < 0:
        return
    i_n, i_b, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    is_first = i_n < n_blocks_1
    p_dgates = _pointer(p_addresses, 0, DTYPE, ALIGNED)
    p_weight = _pointer(p_addresses, tl.where(is_first, 1, 2), DTYPE, ALIGNED)
    p_parts = _pointer(p_addresses, 3, tl.float32, ALIGNED)
    o_n = (i_n - tl.where(is_first, 0, n_blocks_1)) * BN + tl.arange(0, BN)
    o_b = i_b * BB + tl.arange(0, BB)
    o_k = tl.arange(0, BK)
    m_b = o_b < B
    m_n = o_n < tl.where(is_first, n_1, n_2)
    s_w = tl.where(is_first, s_1, n_2)
    p_rows = p_dgates + t * B * K + (o_b.to(tl.int64) * K)[:, None] + o_k[None, :]
    p_tile = p_weight + (o_k.to(tl.int64) * s_w)[:, None] + o_n[None, :]
    b_sum = tl.zeros((BB, BN), tl.float32)
    for k in range(i_s * depth, tl.minimum((i_s + 1) * depth, K), BK):
        if EVEN_K:
            b_d = tl.load(p_rows + k, mask=m_b[:, None], other=0.0)  # [BB, BK]
            b_w = tl.load(p_tile + tl.cast(k, tl.int64) * s_w, mask=m_n[None, :], other=0.0)  # [BK, BN]
        else:
            m_k = k + o_k < K
            b_d = tl.load(p_rows + k, mask=m_b[:, None] & m_k[None, :], other=0.0)
            b_w = tl.load(p_tile + tl.cast(k, tl.int64) * s_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_sum = tl.dot(b_d, b_w, b_sum, input_precision=PRECISION)
    o_column = o_n + tl.where(is_first, 0, n_1)
    p_tile = p_parts + (i_s * B + o_b).to(tl.int64)[:, None] * (n_1 + n_2) + o_column[None, :]
    tl.store(p_tile, b_sum, mask=m_b[:, None] & m_n[None, :])


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_attend_bwd_kernel(
    p_clock, p_addresses, offset, B, A, D, s_upstream, s_decoder, s_attention,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, HAS_DALIGNMENTS: tl.constexpr, SPLITS: tl.constexpr,
    TAPS: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    S_LOCATION: tl.constexpr, FULL_A: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The backward of an item's attention; grid (B,).

    Addresses 0 to 8: of queries, weights, cumulative weights, memory, processed memory, U, v and lengths as in the
    forward kernel; of the upstream gradient of contexts [B, T, s_upstream]; 9, 10: of the parts of the contexts'
    gradient from the decoder LSTM, and from the attention LSTM of the frame after; 11: of the alignments' upstream
    gradient [B, T, T_in]; 12, 13: gets the gradients of contexts [T, B, D] and queries [T, B, A]; 14 to 16, float32:
    an item's gradients of v [A], U [A, S_LOCATION] and the context [D], one after the other; of previous and
    cumulative weights, and scratch, [3, T_in]; of processed memory [T_in, A]; 17, 18: an item's scratch,
    [T_in, S_LOCATION] float32 and [T_in, A] in the dtype of the products.
    """
    T = tl.load(p_clock + 1)
    t = T - 1 - tl.load(p_clock) - offset
    if t < 0:
        return
    if FULL_A:
        A = BA  # strides that are known save registers, which are scarce here
    T_in = tl.load(p_clock + 2).to(tl.int32)
    p_query = _pointer(p_addresses, 0, tl.float32, ALIGNED)
    p_weights = _pointer(p_addresses, 1, tl.float32, ALIGNED)
    p_cumulative = _pointer(p_addresses, 2, tl.float32, ALIGNED)
    p_memory = _pointer(p_addresses, 3, DTYPE, ALIGNED)
    p_processed = _pointer(p_addresses, 4, DTYPE, ALIGNED)
    p_location = _pointer(p_addresses, 5, DTYPE, ALIGNED)
    p_v = _pointer(p_addresses, 6, DTYPE, ALIGNED)
    p_lengths = _pointer(p_addresses, 7, tl.int64, ALIGNED)
    p_upstream = _pointer(p_addresses, 8, DTYPE, ALIGNED)
    p_decoder = _pointer(p_addresses, 9, tl.float32, ALIGNED)
    p_attention = _pointer(p_addresses, 10, tl.float32, ALIGNED)
    p_dcontexts = _pointer(p_addresses, 12, DTYPE, ALIGNED)
    item = tl.program_id(0).to(tl.int64)
    row = t * B + item
    length = tl.minimum(tl.load(p_lengths + item).to(tl.int32), T_in)
    p_dv = _pointer(p_addresses, 14, tl.float32, ALIGNED) + item * (A + A * S_LOCATION + D)
    p_dcontext = p_dv + A + A * S_LOCATION
    for d0 in range(0, D, BD):
        o_d = d0 + tl.arange(0, BD)
        m_d = o_d < D
        b_dc = tl.load(p_upstream + (item * T + t) * s_upstream + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_dc += _sum_of_parts(p_decoder, item, o_d, m_d, B * s_decoder, s_decoder, SPLITS)
        b_dc += _sum_of_parts(p_attention, item, o_d, m_d, B * s_attention, s_attention, SPLITS)
        tl.store(p_dcontext + o_d, b_dc, mask=m_d)
        tl.store(p_dcontexts + row * D + o_d, b_dc.to(DTYPE), mask=m_d)
    p_dprevious = _pointer(p_addresses, 15, tl.float32, ALIGNED) + item * T_in * 3
    p_dcumulative = p_dprevious + T_in
    for t0 in range(0, T_in, BT):
        o_t = t0 + tl.arange(0, BT)
        m_t = o_t < T_in
        b_dw = tl.load(p_dprevious + o_t, mask=m_t, other=0.0) + tl.load(p_dcumulative + o_t, mask=m_t, other=0.0)
        if HAS_DALIGNMENTS:
            p_row = _pointer(p_addresses, 11, DTYPE, ALIGNED) + (item * T + t) * T_in
            b_dw += tl.load(p_row + o_t, mask=m_t, other=0.0).to(tl.float32)
        tl.store(p_dprevious + o_t, b_dw, mask=m_t)
    tl.debug_barrier()
    o_a = tl.arange(0, BA)
    b_query = tl.load(p_query + row * A + o_a, mask=o_a < A, other=0.0)
    b_dquery = attend_bwd(
        b_query,
        AttentionItem(
            p_memory + item * T_in * D, p_processed + item * T_in * A, p_weights + row * T_in,
            p_cumulative + row * T_in, p_location, p_v, None, None,
        ),
        p_weights + (row + B) * T_in,
        AttentionUpstream(p_dcontext, p_dprevious),
        AttentionGradients(
            _pointer(p_addresses, 16, tl.float32, ALIGNED) + item * T_in * A,
            p_dv + A, p_dv, None, p_dprevious, p_dcumulative,
        ),
        AttentionScratch(
            p_dcumulative + T_in,
            _pointer(p_addresses, 18, DTYPE, ALIGNED) + item * T_in * A,
            _pointer(p_addresses, 17, tl.float32, ALIGNED) + item * T_in * S_LOCATION,
        ),
        length,
        AttentionSizes(T_in, A, D, 1.0),
        AttentionStrides(D, 1, A, 1, S_LOCATION, None),
        AttentionBlocks(TAPS, "softmax", PRECISION, BT, BA, BK, BR, BD),
        True,
    )  # fmt: skip
    # Found only now, for the sake of registers.
    row = (tl.load(p_clock + 1) - 1 - tl.load(p_clock) - offset) * B + tl.program_id(0)
    tl.store(_pointer(p_addresses, 13, DTYPE, ALIGNED) + row * A + o_a, b_dquery.to(DTYPE), mask=o_a < A)


class _Launch(NamedTuple):
    """A kernel of a frame: all that a CUDA graph of it has built in."""

    kernel: Any
    grid: tuple[int, ...]
    sizes: tuple[int | float, ...]
    options: tuple[tuple[str, Any], ...]


class _Loop(NamedTuple):
    """What a frame launches, and the addresses of the tensors of each launch."""

    step: tuple[_Launch, ...]
    addresses: tuple[tuple[int, ...], ...]


class _Graph:
    """CUDA graph of FRAMES_PER_GRAPH frames, over a clock and a table of its own."""

    def __init__(self, loop: _Loop, device: torch.device):
        self.clock, self.table = _new_clock(device), _new_table(loop, device)
        self.graph = record_graph(lambda: _launch_replay(loop.step, self.clock, self.table), device)


_graphs: OrderedDict[tuple, _Graph | None] = OrderedDict()  # None: the kernels have run once and are loaded
_graphs_lock = threading.Lock()


def _stream_to_record_on(device: torch.device) -> int | None:
    """The current stream, or None where no graph is recorded: on a CPU, and while the caller records one."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream(device).cuda_stream


def _new_clock(device: torch.device) -> Tensor:
    return torch.zeros(3, dtype=torch.int64, device=device)


def _new_table(loop: _Loop, device: torch.device) -> Tensor:
    width = 2 * ((max(map(len, loop.addresses)) + 1) // 2)  # rows are aligned
    return torch.zeros((len(loop.addresses), width), dtype=torch.int64, device=device)


def _launch_frame(step: tuple[_Launch, ...], clock: Tensor, table: Tensor, offset: int) -> None:
    for row, (kernel, grid, sizes, options) in zip(table.unbind(), step, strict=True):
        launch(OP, kernel, grid, clock, row, offset, *sizes, device=table.device, **dict(options))


def _launch_replay(step: tuple[_Launch, ...], clock: Tensor, table: Tensor) -> None:
    """What a graph consists of."""
    for offset in range(FRAMES_PER_GRAPH):
        _launch_frame(step, clock, table, offset)
    _launch_advance(clock)


def _launch_advance(clock: Tensor) -> None:
    launch(OP, teacher_forced_advance_kernel, (1,), clock, FRAMES_PER_GRAPH, device=clock.device)


def _set(tensor: Tensor, values: Sequence[int]) -> None:
    """Writes integers from the host, in the order of the stream and without waiting for it."""
    flat = tensor.flatten()
    if not tensor.is_cuda:
        flat.copy_(torch.tensor(values, device="cpu"))
    elif torch.cuda.is_current_stream_capturing():
        # A copy would read the host's memory at every replay.
        for element, value in zip(flat.unbind(), values, strict=True):
            element.fill_(value)
    else:
        flat.copy_(torch.tensor(values, device="cpu", pin_memory=True), non_blocking=True)


def _start(loop: _Loop, clock: Tensor, table: Tensor, T: int, T_in: int) -> None:
    _set(clock, (0, T, T_in))
    width = table.shape[1]
    _set(table, [a for row in loop.addresses for a in (*row, *(0,) * (width - len(row)))])


def _run(launches: Sequence[tuple[_Launch, tuple[int, ...]]], T: int, T_in: int, device: torch.device) -> None:
    """All frames: on a GPU by replays of a CUDA graph from the second call with these launches on.

    Graphs are kept by stream, so that nothing else writes into a graph's table while it runs.
    """
    loop = _Loop(*(tuple(x) for x in zip(*launches, strict=True)))
    stream = _stream_to_record_on(device)
    key = (loop.step, device, stream)
    with _graphs_lock:
        if stream is not None and key in _graphs:
            if _graphs[key] is None:
                _graphs[key] = _Graph(loop, device)
            _graphs.move_to_end(key)
            graph = _graphs[key]
            _start(loop, graph.clock, graph.table, T, T_in)
            for _ in range(triton.cdiv(T, FRAMES_PER_GRAPH)):
                graph.graph.replay()
                backend.launches[OP] += 1
            return
    clock, table = _new_clock(device), _new_table(loop, device)
    _start(loop, clock, table, T, T_in)
    for offset in range(T):
        _launch_frame(loop.step, clock, table, offset)
    if stream is None:
        return
    _launch_advance(clock)  # to have it loaded, too: a kernel cannot be while a graph is recorded
    with _graphs_lock:
        _graphs.setdefault(key, None)
        if len(_graphs) > GRAPHS_KEPT:
            _graphs.popitem(last=False)


class _Plan(NamedTuple):
    """Sizes and options of a call."""

    T: int
    B: int
    P: int
    T_in: int
    D: int
    A: int
    n_a: int
    n_d: int
    taps: int
    p_attention_dropout: float
    p_decoder_dropout: float

    def dropout(self, decoder: bool) -> tuple[tuple[int, float, float], bool]:
        """(arguments, whether there is any) of a kernel."""
        p = self.p_decoder_dropout if decoder else self.p_attention_dropout
        stream = DECODER_STREAM if decoder else ATTENTION_STREAM
        return (stream, dropped_words(p) / 2**24, dropout_scale(p)), p > 0


class _Histories(NamedTuple):
    """What the forward pass keeps; [frames, B, ...]."""

    outputs: Tensor  # [T + 1, B, n_d + D], hidden states and contexts
    states: Tensor  # [T + 1, B, n_a], of the attention LSTM
    gates_a: Tensor
    gates_d: Tensor
    cells_a: Tensor
    cells_d: Tensor
    queries: Tensor
    weights: Tensor
    cumulative: Tensor


def _make_launch(
    kernel: Any, grid: tuple[int, ...], sizes: tuple, tensors: Sequence[Tensor], dtype: torch.dtype, **options: Any
) -> tuple[_Launch, tuple[int, ...]]:
    """A kernel of a frame, and the addresses for it."""
    addresses = tuple(x.data_ptr() for x in tensors)
    options |= {"DTYPE": _DTYPES[dtype], "ALIGNED": all(address % 16 == 0 for address in addresses)}
    return _Launch(kernel, grid, sizes, tuple(sorted(options.items()))), addresses


def _pick(kernel: str, configs: tuple[Config, ...], x: Tensor, batch: int, units: int) -> Config:
    def largest_that_fills(dtype: torch.dtype, batch: int, units: int) -> Config:
        return next((c for c in configs if batch >= c.get("BB", 0)), configs[-1])

    return pick_config(kernel, configs, largest_that_fills, x, batch=batch, units=units)


def _forward(
    decoder_inputs: Tensor,
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seed: Tensor,
    weights: RecurrentWeights,
    plan: _Plan,
) -> _Histories:
    T, B, P, T_in, D, A, n_a, n_d = plan[:8]
    device, dtype = memory.device, memory.dtype
    kept = _Histories(
        outputs=memory.new_empty(T + 1, B, n_d + D),
        states=memory.new_empty(T + 1, B, n_a),
        gates_a=F.linear(
            decoder_inputs,
            weights.attention_rnn.weight_ih[:, :P],
            weights.attention_rnn.bias_ih + weights.attention_rnn.bias_hh,
        ),
        gates_d=memory.new_empty(T, B, 4 * n_d),
        cells_a=memory.new_empty(T + 1, B, n_a, dtype=torch.float32),
        cells_d=memory.new_empty(T + 1, B, n_d, dtype=torch.float32),
        queries=memory.new_empty(T, B, A, dtype=torch.float32),
        weights=memory.new_empty(T + 1, B, T_in, dtype=torch.float32),
        cumulative=memory.new_empty(T + 1, B, T_in, dtype=torch.float32),
    )
    for x in (kept.outputs, kept.states, kept.cells_a, kept.cells_d, kept.weights, kept.cumulative):
        x[0].zero_()
    if not T or not B:
        return kept
    bias = weights.decoder_rnn.bias_ih + weights.decoder_rnn.bias_hh
    location = fold_location(weights.attention.location_conv, weights.attention.location_dense, dtype)

    def lstm(n: int, n_1: int, row_of_h: int, first: Tensor, *addresses: int | Tensor, decoder: bool):
        config = _pick("teacher_forced_lstm_fwd", LSTM_CONFIGS[memory.itemsize], memory, B, n)
        dropout, has_dropout = plan.dropout(decoder)
        even = all(k % config["BK"] == 0 for k in (n, n_1, D))
        return _make_launch(
            teacher_forced_lstm_fwd_kernel,
            (triton.cdiv(n, config["BU"]), triton.cdiv(B, config["BB"])),
            (B, n, n_1, D, 4 * n if first.dim() == 3 else 0, n_a, n_d + D, row_of_h, (n_1 or P) + D, *dropout),
            (first, *addresses, seed),
            dtype,
            DROPOUT=has_dropout,
            EVEN_K=even,
            ROWS=4 * config["BU"],
            PRECISION=product_precision(dtype),
            **config,
        )

    query_config = _pick("teacher_forced_query_fwd", QUERY_CONFIGS[memory.itemsize], memory, B, n_a)
    attend_config = _pick(
        "teacher_forced_attend_fwd", ATTEND_CONFIGS[memory.itemsize, A > WIDE_ATTENTION], memory, B, A
    )
    contexts = kept.outputs[:, :, n_d:]
    weight_ih, weight_hh = weights.attention_rnn[:2]
    _run(
        [
            lstm(
                n_a, 0, n_a, kept.gates_a,
                kept.gates_a, kept.states, contexts, kept.states, weight_ih[:, P:], weight_hh, kept.cells_a,
                decoder=False,
            ),
            _make_launch(
                teacher_forced_query_fwd_kernel,
                (triton.cdiv(A, query_config["BM"]), triton.cdiv(B, query_config["BB"])),
                (B, n_a, A),
                (kept.states[1:], weights.attention.query, kept.queries),
                dtype,
                EVEN_K=n_a % query_config["BK"] == 0,
                PRECISION=product_precision(dtype),
                **query_config,
            ),
            _make_launch(
                teacher_forced_attend_fwd_kernel,
                (B,),
                (B, A, D, n_d + D),
                (
                    kept.queries, kept.weights, kept.cumulative, contexts[1:], memory, processed_memory, location,
                    weights.attention.v, lengths,
                ),
                dtype,
                **_attend_options(plan, location),
                **attend_config,
            ),
            lstm(
                n_d, n_a, n_d + D, bias,
                kept.gates_d, kept.states[1:], contexts[1:], kept.outputs, *weights.decoder_rnn[:2], kept.cells_d,
                decoder=True,
            ),
        ],
        T, T_in, device,
    )  # fmt: skip
    return kept


def _attend_options(plan: _Plan, location: Tensor) -> dict:
    return {
        "TAPS": plan.taps,
        "BA": max(SMALLEST_DOT, triton.next_power_of_2(plan.A)),
        "S_LOCATION": location.shape[1],
        "PRECISION": product_precision(location.dtype),
    }


class _Gradients(NamedTuple):
    """What the backward loop leaves for the products after it."""

    gates_a: Tensor  # [T, B, 4 n_a]
    gates_d: Tensor  # [T, B, 4 n_d]
    contexts: Tensor  # [T, B, D]
    queries: Tensor  # [T, B, A]
    processed_memory: Tensor  # [B, T_in, A] float32
    of_items: Tensor  # [B, A + A * padded 2k + D] float32: of v, of U and of a frame's context


def _backward(
    d_hidden_contexts: Tensor,
    d_alignments: Tensor | None,
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seed: Tensor,
    weights: RecurrentWeights,
    kept: _Histories,
    plan: _Plan,
) -> _Gradients:
    T, B, P, T_in, D, A, n_a, n_d = plan[:8]
    device, dtype = memory.device, memory.dtype
    location = fold_location(weights.attention.location_conv, weights.attention.location_dense, dtype)
    gradients = _Gradients(
        gates_a=torch.empty_like(kept.gates_a),
        gates_d=torch.empty_like(kept.gates_d),
        contexts=memory.new_empty(T, B, D),
        queries=memory.new_empty(T, B, A),
        processed_memory=memory.new_zeros(B, T_in, A, dtype=torch.float32),
        of_items=memory.new_zeros(B, A + location.numel() + D, dtype=torch.float32),
    )
    if not T or not B:
        return gradients
    product_config = _pick("teacher_forced_product_bwd", PRODUCT_CONFIGS[memory.itemsize], memory, B, n_a)
    lstm_config = _pick("teacher_forced_lstm_bwd", LSTM_BACKWARD_CONFIGS[memory.itemsize], memory, B, n_a)
    attend_config = _pick(
        "teacher_forced_attend_bwd", ATTEND_BACKWARD_CONFIGS[memory.itemsize, A > WIDE_ATTENTION], memory, B, A
    )
    splits = max(1, min(MOST_SPLITS, 4 * max(n_a, n_d) // SMALLEST_DEPTH))
    # Of frame T - 1 nothing comes from the frame after.
    parts_d = memory.new_zeros(splits, B, n_a + D + n_d, dtype=torch.float32)
    parts_a = memory.new_zeros(splits, B, D + n_a, dtype=torch.float32)
    d_cells_a, d_cells_d = kept.cells_a.new_zeros(B, n_a), kept.cells_d.new_zeros(B, n_d)
    weights_rows = memory.new_zeros(B, 3, T_in, dtype=torch.float32)
    d_sums = memory.new_empty(B, T_in, A)
    products = memory.new_empty(B, T_in, location.shape[1], dtype=torch.float32)

    def lstm(n: int, row_of_new: int, *addresses: Tensor, decoder: bool):
        dropout, has_dropout = plan.dropout(decoder)
        parts = parts_d if decoder else parts_a
        return _make_launch(
            teacher_forced_lstm_bwd_kernel,
            (triton.cdiv(n, lstm_config["BU"]), triton.cdiv(B, lstm_config["BB"])),
            (B, n, A, row_of_new, parts.shape[2], *dropout),
            (*addresses, gradients.queries, weights.attention.query, seed),
            dtype,
            QUERY_ROWS=None if decoder else lstm_config["BB"],
            DROPOUT=has_dropout,
            SPLITS=splits,
            PRECISION=product_precision(dtype),
            **lstm_config,
        )

    def product(d_gates: Tensor, weight_ih: Tensor, weight_hh: Tensor, parts: Tensor):
        depth = triton.cdiv(triton.cdiv(len(weight_ih), product_config["BK"]), splits) * product_config["BK"]
        blocks = [triton.cdiv(x.shape[1], product_config["BN"]) for x in (weight_ih, weight_hh)]
        return _make_launch(
            teacher_forced_product_bwd_kernel,
            (sum(blocks), triton.cdiv(B, product_config["BB"]), splits),
            (B, *weight_ih.shape, weight_hh.shape[1], weight_ih.stride(0), blocks[0], depth),
            (d_gates, weight_ih, weight_hh, parts),
            dtype,
            EVEN_K=len(weight_ih) % product_config["BK"] == 0,
            SPLITS=splits,
            PRECISION=product_precision(dtype),
            **product_config,
        )

    weight_ih, weight_hh = weights.attention_rnn[:2]
    _run(
        [
            lstm(
                n_d, n_d + D,
                kept.gates_d, gradients.gates_d, kept.cells_d, d_cells_d, parts_d[:, :, n_a + D :], d_hidden_contexts,
                decoder=True,
            ),
            product(gradients.gates_d, *weights.decoder_rnn[:2], parts_d),
            _make_launch(
                teacher_forced_attend_bwd_kernel,
                (B,),
                (B, A, D, n_d + D, parts_d.shape[2], parts_a.shape[2]),
                (
                    kept.queries, kept.weights, kept.cumulative, memory, processed_memory, location,
                    weights.attention.v, lengths, d_hidden_contexts[:, :, n_d:], parts_d[:, :, n_a:], parts_a,
                    memory if d_alignments is None else d_alignments, gradients.contexts, gradients.queries,
                    gradients.of_items, weights_rows, gradients.processed_memory, products, d_sums,
                ),
                dtype,
                HAS_DALIGNMENTS=d_alignments is not None,
                FULL_A=max(SMALLEST_DOT, triton.next_power_of_2(A)) == A,
                SPLITS=splits,
                **_attend_options(plan, location),
                **attend_config,
            ),
            lstm(
                n_a, parts_d.shape[2],
                kept.gates_a, gradients.gates_a, kept.cells_a, d_cells_a, parts_a[:, :, D:], parts_d,
                decoder=False,
            ),
            product(gradients.gates_a, weight_ih[:, P:], weight_hh, parts_a),
        ],
        T, T_in, device,
    )  # fmt: skip
    return gradients


class _TeacherForcedLoop(Function):
    @staticmethod
    def forward(ctx, plan, decoder_inputs, memory, processed_memory, lengths, seed, *weights):
        with backend.without_autocast(memory):
            kept = _forward(decoder_inputs, memory, processed_memory, lengths, seed, as_weights(weights), plan)
        ctx.plan = plan
        ctx.save_for_backward(decoder_inputs, memory, processed_memory, lengths, seed, *weights, *kept)
        ctx.set_materialize_grads(False)
        # A copy, which callers may change in place.
        alignments = kept.weights[1:].transpose(0, 1).to(memory.dtype, copy=True)
        return kept.outputs[1:].transpose(0, 1), alignments

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hidden_contexts, d_alignments):
        if d_hidden_contexts is None and d_alignments is None:
            return (None,) * 18
        decoder_inputs, memory, processed_memory, lengths, seed, *others = ctx.saved_tensors
        weights, kept = as_weights(others[:12]), _Histories(*others[12:])
        T, B, P, T_in, D, A, n_a, n_d = ctx.plan[:8]
        # Upstream gradients may be expanded.
        if d_hidden_contexts is None:
            d_hidden_contexts = memory.new_zeros(B, T, n_d + D)
        d_hidden_contexts = d_hidden_contexts.contiguous()
        d_alignments = None if d_alignments is None else d_alignments.contiguous()
        with backend.without_autocast(memory):
            gradients = _backward(
                d_hidden_contexts, d_alignments, memory, processed_memory, lengths, seed, weights, kept, ctx.plan
            )
            return (None, *_after_the_loop(decoder_inputs, memory, weights, kept, gradients, ctx.needs_input_grad[1:]))


_differentiable = uncompiled(_TeacherForcedLoop.apply)


def _after_the_loop(
    decoder_inputs: Tensor,
    memory: Tensor,
    weights: RecurrentWeights,
    kept: _Histories,
    gradients: _Gradients,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the tensor arguments of `_TeacherForcedLoop`, each a product or a sum over all frames."""
    P, n_d = decoder_inputs.shape[2], kept.cells_d.shape[2]
    conv, dense = weights.attention.location_conv, weights.attention.location_dense
    d_a, d_d = gradients.gates_a.flatten(0, 1), gradients.gates_d.flatten(0, 1)  # [T B, 4n]
    states, hidden, contexts = kept.states, kept.outputs[:, :, :n_d], kept.outputs[:, :, n_d:]
    d_v, d_location = gradients.of_items.sum(dim=0)[: -memory.shape[2]].tensor_split([len(dense)])
    d_location = d_location.view(len(dense), -1)[:, : conv[0].numel()]

    def product(i: int, d: Tensor, *inputs: Tensor) -> Tensor | None:
        """d^T inputs, the inputs side by side: the gradient of argument i, if it is wanted."""
        if not needs[i]:
            return None
        widths = [x.shape[2] for x in inputs]
        gradient = d.new_empty(d.shape[1], sum(widths))
        for part, x in zip(gradient.split(widths, dim=1), inputs, strict=True):
            torch.mm(d.T, x.flatten(0, 1), out=part)
        return gradient

    bias_a = d_a.sum(dim=0) if needs[7] or needs[8] else None
    bias_d = d_d.sum(dim=0) if needs[15] or needs[16] else None
    return [
        gradients.gates_a @ weights.attention_rnn.weight_ih[:, :P] if needs[0] else None,
        torch.bmm(kept.weights[1:].to(memory.dtype).permute(1, 2, 0), gradients.contexts.transpose(0, 1))
        if needs[1]
        else None,
        gradients.processed_memory.to(memory.dtype) if needs[2] else None,
        None,
        None,
        product(5, d_a, decoder_inputs, contexts[:-1]),
        product(6, d_a, states[:-1]),
        bias_a,
        bias_a,
        product(9, gradients.queries.flatten(0, 1), states[1:]),
        (dense.to(d_location.dtype).T @ d_location).view_as(conv).to(conv.dtype) if needs[10] else None,
        (d_location @ conv.to(d_location.dtype).flatten(1).T).to(dense.dtype) if needs[11] else None,
        d_v.unsqueeze(0).to(memory.dtype) if needs[12] else None,
        product(13, d_d, states[1:], contexts[1:]),
        product(14, d_d, hidden[:-1]),
        bias_d,
        bias_d,
    ]


def teacher_forced_loop(
    decoder_inputs: Tensor,
    memory: Tensor,
    processed_memory: Tensor,
    memory_lengths: Tensor,
    weights: RecurrentWeights,
    *,
    p_attention_dropout: float = 0.0,
    p_decoder_dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All steps of Tacotron 2's decoder (Shen et al. 2018, section 2.2) from the prenet's outputs to those of the
    decoder LSTM; once differentiable.

    Args:
        decoder_inputs: prenet outputs of all frames, [T, B, P]; float32, float16 or bfloat16. Fastest with all widths
            multiples of 64.
        memory: encoder outputs, [B, T_in, D]; processed_memory: through the memory layer, [B, T_in, A].
        memory_lengths: [B] integers; symbols beyond an item's length get no attention.
        weights: of both LSTMs and of the attention between them.
        p_attention_dropout, p_decoder_dropout: of the hidden state of the attention and of the decoder LSTM.
            What is left is both the output and the next step's state.
        seed: of the dropout's masks, an integer or a 0-d int64 tensor on the device of `memory`, which must not
            change until the backward pass is done. One seed gives one mask on every device. None: on the kernels a
            seed is drawn from PyTorch's generator, elsewhere the masks are, frame after frame, the attention LSTM's
            first.

    Returns:
        (decoder LSTM's hidden states and contexts [B, T, n + D], attention weights [B, T, T_in]). Under autocast both
        have its dtype.

    Raises:
        FastglowError: shapes, probabilities or a seed that do not fit the above.
    """
    _check(decoder_inputs, memory, processed_memory, memory_lengths, weights, seed)
    for name, p in (("p_attention_dropout", p_attention_dropout), ("p_decoder_dropout", p_decoder_dropout)):
        if not 0 <= p <= 1:
            raise FastglowError(f"{name} {p} is no probability: use 0 to 1")
    tensors = [decoder_inputs, memory, processed_memory, *(x for part in weights for x in part)]
    dtype = backend.autocast_dtype(memory)
    if dtype is not None:
        tensors = [x.to(dtype) for x in tensors]
    reason = _unsupported(tensors)
    if not backend.picks_triton(OP, *tensors, memory_lengths, unsupported=reason):
        with backend.without_autocast(memory):
            return deferred_teacher_forced_loop(
                *tensors[:3],
                memory_lengths,
                as_weights(tensors[3:]),
                p_attention_dropout=p_attention_dropout,
                p_decoder_dropout=p_decoder_dropout,
                seed=seed,
            )
    lengths = memory_lengths.to(torch.int64).contiguous()
    if not p_attention_dropout and not p_decoder_dropout:
        seed = lengths  # nothing reads it
    elif seed is None:
        seed = random_seed(memory.device)
    elif not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=memory.device)
    decoder_inputs, memory, processed_memory, *tensors = (x.contiguous() for x in tensors)
    weights = as_weights(tensors)
    plan = _Plan(
        T=decoder_inputs.shape[0],
        B=decoder_inputs.shape[1],
        P=decoder_inputs.shape[2],
        T_in=memory.shape[1],
        D=memory.shape[2],
        A=processed_memory.shape[2],
        n_a=weights.attention_rnn.weight_hh.shape[1],
        n_d=weights.decoder_rnn.weight_hh.shape[1],
        taps=weights.attention.location_conv.shape[2],
        p_attention_dropout=p_attention_dropout,
        p_decoder_dropout=p_decoder_dropout,
    )
    return _differentiable(plan, decoder_inputs, memory, processed_memory, lengths, seed, *tensors)


def _unsupported(tensors: list[Tensor]) -> str | None:
    dtypes = {str(x.dtype).removeprefix("torch.") for x in tensors}
    if len(dtypes) > 1:
        return f"its tensors have the dtypes {', '.join(sorted(dtypes))}"
    return attention_too_wide(tensors[2].shape[2], tensors[2].dtype, sums=True)


def _check(decoder_inputs, memory, processed_memory, memory_lengths, weights: RecurrentWeights, seed) -> None:
    if decoder_inputs.dim() != 3 or memory.dim() != 3 or processed_memory.dim() != 3:
        shapes = ", ".join(str(tuple(x.shape)) for x in (decoder_inputs, memory, processed_memory))
        raise FastglowError(f"the inputs have shapes {shapes}: pass [T, B, P], [B, T_in, D] and [B, T_in, A]")
    B, T_in, D = memory.shape
    A = len(weights.attention.query)
    expected = {
        "decoder_inputs": (decoder_inputs, (len(decoder_inputs), B, decoder_inputs.shape[2])),
        "processed_memory": (processed_memory, (B, T_in, A)),
        "memory_lengths": (memory_lengths, (B,)),
        **recurrent_shapes(weights, decoder_inputs.shape[2], D),
    }
    for name, (x, shape) in expected.items():
        if x.shape != shape:
            raise FastglowError(
                f"{name} has shape {tuple(x.shape)}, not {shape}, beside memory {tuple(memory.shape)} and "
                f"decoder_inputs {tuple(decoder_inputs.shape)}"
            )
    if isinstance(seed, Tensor) and (seed.dim() or seed.dtype != torch.int64 or seed.device != memory.device):
        raise FastglowError(
            f"seed is a tensor of shape {tuple(seed.shape)}, {seed.dtype} on {seed.device}: "
            f"pass an integer, or a 0-d torch.int64 tensor on {memory.device}"
        )
    if isinstance(seed, int) and not -(2**63) <= seed < 2**63:
        raise FastglowError(f"seed {seed} does not fit 64 bits: pass one from -2^63 to 2^63 - 1")
