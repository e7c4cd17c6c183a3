"""Tacotron 2's free-running decoder: the loop of frames on the device, for a batch of items that end one by one.

A frame is six phases. A phase is made of tiles that any programs may share out among themselves; a tile reads what
earlier phases wrote, and nothing that another tile of its phase writes:

    ATTENTION_RNN  the last part of the gates, W x2; h', c'; a tile's share of the query W_q h'
    ENERGIES       the query from its shares, energies of a block of positions
    CONTEXT        softmax, weights, a block of the context's columns
    DECODER_RNN    the last part of the gates, W context; h', c'
    OUTPUT         W [h', context]: the frame, the gate, and the prenet's first layer of the frame. That layer is
                   linear in the frame and so folded into the projection: W_1 W_frame
    PRENET         the prenet's second layer, x2; the list of the items that go on

The attention and the prenet have few tiles. Beside them, in tiles of their own, is computed what an LSTM's gates
need that is known already: the weights of the LSTMs are nine tenths of all that is read. ENERGIES: the decoder
LSTM's of the attention LSTM's h'; CONTEXT: both LSTMs' of their own h; PRENET: the attention LSTM's of the context.

Who runs them:

    steps       six launches a frame
    graph       the same launches, FRAMES_PER_GRAPH frames of them, recorded in a CUDA graph and replayed until the
                list is empty, of which the host has one asynchronous look a replay
    persistent  one launch a batch: a program a multiprocessor goes through all frames, with a barrier of the whole
                grid between phases

All three run the same tiles, so one seed gives the same bits. Items are addressed through the list of those that
still run, compacted every frame: finished ones cost nothing, and in a batch no item meets another's numbers.

States need one buffer each: no phase reads what it writes but in the same tile. Cells, weights of the attention and
sums are float32.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastglow.errors import FastglowError

from . import backend
from .arguments import SMALLEST_DOT
from .decoder_weights import OutputWeights, RecurrentWeights, recurrent_shapes
from .graphs import FRAMES_PER_GRAPH, record_graph
from .launch import Config, launch, pick_config, product_precision
from .location_attention.attend import (
    AttentionBlocks,
    AttentionItem,
    AttentionSizes,
    AttentionStrides,
    attend_hidden,
    attention_too_wide,
    fold_location,
)
from .lstm_cell.cell import GateBlocks, GateTile, add_product, lstm_activate, lstm_gates, lstm_split, lstm_update
from .philox import uniform_noise
from .reference.decode_loop import DecodeResult
from .reference.decode_loop import decode_loop as reference_decode_loop

OP = "decode_loop"

ATTENTION_RNN, ENERGIES, CONTEXT, DECODER_RNN, OUTPUT, PRENET = (tl.constexpr(i) for i in range(6))
N_PHASES = tl.constexpr(6)

PERSISTENT_ITEMS = 8  # beyond, launches should matter less than products; not measured yet
DECODINGS_KEPT = 8  # of one model's weights


def _as_it_is(condition: Any, disable_licm: bool) -> Any:
    return condition


# The interpreter takes Triton's annotation of a condition for the condition itself.
_condition = getattr(tl, "condition", _as_it_is) if not backend.interprets() else _as_it_is

SHARES = tl.constexpr(128)  # of the query, added up at a time

BB = 16  # items of a tile: the fewest columns of a tensor core's product
MAX_POLLS = 1 << 22  # looks at a barrier, of about a microsecond, before a program gives the others up


def _config(bu: int, br: int, bk: int, stages: int, bt: int, bl: int, bd: int, num_warps: int) -> Config:
    blocks = {"BU": bu, "BR": br, "BK": bk, "STAGES": stages, "BT": bt, "BL": bl, "BD": bd, "BS": 256}
    return blocks | {"num_warps": num_warps, "num_stages": 1}


# By the size of an element: tiles of BU units of an LSTM or BR rows of another product, of depth BK; BT positions
# and BD columns of an attention step. With 8 units, 1024 of them are 128 tiles: one a multiprocessor. Sums are
# grouped by them, so the choice must not depend on the batch.
CONFIGS = {
    2: (_config(8, 16, 64, 6, 32, 32, 64, 8),),
    4: (_config(8, 16, 32, 6, 16, 16, 64, 8),),
}


@triton.jit
def _items(p_active, i_b, n_active, BB: tl.constexpr):
    """The items of block i_b of the list, and which of them there are, [BB]."""
    o_i = i_b * BB + tl.arange(0, BB)
    m_b = o_i < n_active
    return tl.load(p_active + o_i, mask=m_b, other=0), m_b


@triton.jit
def _tile(i, n_tiles, p_active, n_active, o_first, m_first, BB: tl.constexpr, ONE_BLOCK: tl.constexpr):
    """Number of tile i among its block's, and the block's items; o_first, m_first are those of block 0."""
    if ONE_BLOCK:
        return i, o_first.to(tl.int64), m_first
    else:
        o_b, m_b = _items(p_active, i // n_tiles, n_active, BB)
        return i % n_tiles, o_b.to(tl.int64), m_b


@triton.jit
def _product(
    b_y, p_w, o_row, m_row, p_x, o_b, m_b, K, s_w, s_x,
    BK: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y + W x^T, [rows, BB]; rows of W and of x are K contiguous numbers, s_w and s_x apart."""
    return add_product(
        b_y, p_w + o_row * s_w, p_x + o_b * s_x, m_row, m_b, K, EVEN_K, GateBlocks(None, BK, PRECISION, STAGES)
    )


@triton.jit
def _gates(
    i, p_active, n_active, o_first, m_first, p_gates, p_x, p_weight, n, K, s_w, B, BU: tl.constexpr, BB: tl.constexpr,
    ONE_BLOCK: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    """W x^T, added to what p_gates [rows of tiles, B] holds of a tile unless FIRST; its number, items and address."""
    i_u, o_b, m_b = _tile(i, tl.cdiv(n, BU), p_active, n_active, o_first, m_first, BB, ONE_BLOCK)
    p_tile = p_gates + ((i_u * 4 * BU + tl.arange(0, 4 * BU)) * B)[:, None] + o_b[None, :]
    b_gates = tl.zeros((4 * BU, BB), tl.float32)
    if not FIRST:
        b_gates = tl.load(p_tile, mask=m_b[None, :], other=0.0)
    o_row = i_u * BU + tl.arange(0, 4 * BU) // 4
    tile = GateTile(o_row, n, o_b, m_b)
    b_gates = lstm_gates(b_gates, tile, p_x, p_weight, K, K, s_w, EVEN_K, GateBlocks(BU, BK, PRECISION, STAGES))
    return b_gates, i_u, o_b, m_b, p_tile


@triton.jit
def _early_gates(
    i, p_active, n_active, o_first, m_first, p_gates, p_x, p_weight, n, K, s_w, B, BU: tl.constexpr, BB: tl.constexpr,
    ONE_BLOCK: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    """A part of an LSTM's gates, before the rest can be computed."""
    b_gates, _, _, m_b, p_tile = _gates(
        i, p_active, n_active, o_first, m_first, p_gates, p_x, p_weight, n, K, s_w, B, BU, BB, ONE_BLOCK, BK, EVEN_K,
        PRECISION, STAGES, FIRST,
    )  # fmt: skip
    tl.debug_barrier()  # as for an LSTM's cells
    tl.store(p_tile, b_gates, mask=m_b[None, :])


@triton.jit
def _cell(
    i, p_active, n_active, o_first, m_first, p_gates, p_x, p_weight, p_bias, p_c, p_h, n, K, s_w, B, BU: tl.constexpr,
    BB: tl.constexpr, ONE_BLOCK: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The last part of the gates; writes c' over c and h' to p_h, both [B, n]; h' as rounded there [BU, BB], ..."""
    b_gates, i_u, o_b, m_b, _ = _gates(
        i, p_active, n_active, o_first, m_first, p_gates, p_x, p_weight, n, K, s_w, B, BU, BB, ONE_BLOCK, BK, EVEN_K,
        PRECISION, STAGES, False,
    )  # fmt: skip
    b_i, b_f, b_g, b_o = lstm_split(b_gates, BU, BB)
    o_u = i_u * BU + tl.arange(0, BU)
    m_u = o_u < n
    b_i += tl.load(p_bias + o_u, mask=m_u, other=0.0)[:, None]
    b_f += tl.load(p_bias + n + o_u, mask=m_u, other=0.0)[:, None]
    b_g += tl.load(p_bias + 2 * n + o_u, mask=m_u, other=0.0)[:, None]
    b_o += tl.load(p_bias + 3 * n + o_u, mask=m_u, other=0.0)[:, None]
    b_i, b_f, b_g, b_o = lstm_activate(b_i, b_f, b_g, b_o)
    o_state = (o_b * n)[None, :] + o_u[:, None]
    m_state = m_u[:, None] & m_b[None, :]
    b_h, b_c = lstm_update(b_i, b_f, b_g, b_o, tl.load(p_c + o_state, mask=m_state, other=0.0))
    # With fewer numbers than threads, several load one: all are to have it before one writes it.
    tl.debug_barrier()
    tl.store(p_c + o_state, b_c, mask=m_state)
    b_h = b_h.to(p_h.dtype.element_ty)
    tl.store(p_h + o_state, b_h, mask=m_state)
    return b_h, i_u, o_b, m_b


@triton.jit
def _query_share(
    b_h, i_u, o_b, m_b, p_query_weight, p_query, n, A, BU: tl.constexpr
):  # fmt: skip
    """What BU units of h' [BU, BB] add to the query of every item, to [B, tiles, A]."""
    o_u = i_u * BU + tl.arange(0, BU)
    b_h = tl.trans(tl.where((o_u < n)[:, None], b_h.to(tl.float32), 0.0))  # [BB, BU]
    for a in range(0, A, 16):
        o_a = a + tl.arange(0, 16)
        m_w = (o_a < A)[:, None] & (o_u < n)[None, :]
        b_w = tl.load(p_query_weight + o_a[:, None] * n + o_u[None, :], mask=m_w, other=0.0).to(tl.float32)  # [16, BU]
        # Axes in an order that Triton does not take for a product, which it would round to TF32.
        b_share = tl.sum(b_w[:, None, :] * b_h[None, :, :], axis=2)  # [16, BB]
        p_share = p_query + ((o_b * tl.cdiv(n, BU) + i_u) * A)[None, :] + o_a[:, None]
        tl.store(p_share, b_share, mask=(o_a < A)[:, None] & m_b[None, :])


@triton.jit
def _energies(
    item, t, i_t, length, p_processed_memory, p_location_weight, p_v, p_query, p_cumulative, p_alignments, p_energies,
    n_shares, T, A, max_steps,
    TAPS: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One item's energies of block i_t of its positions. Row t of its alignments: the weights of the step before."""
    o_a = tl.arange(0, BA)
    b_query = tl.zeros((BA,), tl.float32)
    for share in range(0, n_shares, SHARES):
        o_share = share + tl.arange(0, SHARES)
        m = (o_share < n_shares)[:, None] & (o_a < A)[None, :]
        p_shares = p_query + item * n_shares * A + o_share[:, None] * A + o_a[None, :]
        b_query += tl.sum(tl.load(p_shares, mask=m, other=0.0), axis=0)
    b_h = attend_hidden(
        b_query,
        AttentionItem(
            None,
            p_processed_memory + item * T * A,
            p_alignments + (item * (max_steps + 1) + t) * T,
            p_cumulative + item * T,
            p_location_weight,
            None,
            None,
            None,
        ),
        i_t * BT,
        length,
        AttentionSizes(T, A, None, 1.0),
        AttentionStrides(None, None, A, 1, tl.cdiv(2 * TAPS, 64) * 64, None),
        AttentionBlocks(TAPS, "softmax", PRECISION, BT, BA, BL, None, None),
    )
    b_v = tl.load(p_v + o_a, mask=o_a < A, other=0.0).to(tl.float32)
    o_t = i_t * BT + tl.arange(0, BT)
    tl.store(p_energies + item * T + o_t, tl.sum(b_h * b_v[None, :], axis=1), mask=o_t < length)


@triton.jit
def _context(
    item, t, i_d, length, p_memory, p_energies, p_cumulative, p_alignments, p_context, T, D, max_steps,
    BS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Block i_d of an item's context; with block 0 the weights, row t + 1 of its alignments, and their sums."""
    o_s = tl.arange(0, BS)
    p_energies += item * T
    b_max = tl.full((BS,), float("-inf"), tl.float32)
    for t0 in range(0, length, BS):
        b_max = tl.maximum(b_max, tl.load(p_energies + t0 + o_s, mask=t0 + o_s < length, other=float("-inf")))
    b_max = tl.max(b_max, axis=0)
    b_sum = tl.zeros((BS,), tl.float32)
    for t0 in range(0, length, BS):
        b_e = tl.load(p_energies + t0 + o_s, mask=t0 + o_s < length, other=float("-inf"))
        b_sum += tl.exp(b_e - b_max)
    b_scale = 1.0 / tl.sum(b_sum, axis=0)
    if i_d == 0:
        p_weights = p_alignments + (item * (max_steps + 1) + t + 1) * T
        p_sums = p_cumulative + item * T
        for t0 in range(0, T, BS):
            b_e = tl.load(p_energies + t0 + o_s, mask=t0 + o_s < length, other=float("-inf"))
            b_w = tl.exp(b_e - b_max) * b_scale
            m_t = t0 + o_s < T
            tl.store(p_weights + t0 + o_s, b_w, mask=m_t)
            b_w += tl.load(p_sums + t0 + o_s, mask=m_t, other=0.0)
            tl.debug_barrier()  # as for an LSTM's cells
            tl.store(p_sums + t0 + o_s, b_w, mask=m_t)
    o_r, o_d = tl.arange(0, BT), i_d * BD + tl.arange(0, BD)
    p_tile = p_memory + item * T * D + o_r[:, None] * D + o_d[None, :]
    b_context = tl.zeros((BT, BD), tl.float32)
    for t0 in range(0, length, BT):
        m_t = t0 + o_r < length
        b_e = tl.load(p_energies + t0 + o_r, mask=m_t, other=float("-inf"))
        b_m = tl.load(p_tile + tl.cast(t0, tl.int64) * D, mask=m_t[:, None] & (o_d < D)[None, :], other=0.0)
        b_context += (tl.exp(b_e - b_max) * b_scale)[:, None] * b_m.to(tl.float32)
    b_context = tl.sum(b_context, axis=0).to(p_context.dtype.element_ty)
    tl.store(p_context + item * D + o_d, b_context, mask=o_d < D)


@triton.jit
def _relu_dropout(b_x, p_seeds, o_b, m_b, stream, position, o_unit, p_dropout, scale):
    """[units, BB]."""
    b_seed = tl.load(p_seeds + o_b, mask=m_b, other=0)
    b_noise = uniform_noise(b_seed[None, :], stream, position, o_unit[:, None])
    b_x = tl.where(b_x < 0.0, 0.0, b_x)  # NaN stays NaN
    return tl.where(b_noise >= p_dropout, b_x * scale, 0.0)


@triton.jit
def _output(
    i, t, p_active, n_active, o_first, m_first, p_h, p_context, p_weight, p_bias, p_seeds, p_frames, p_steps,
    p_fired, p_x1,
    n, D, n_frame, P, max_steps, p_dropout, scale, gate_threshold,
    BR: tl.constexpr, BB: tl.constexpr, ONE_BLOCK: tl.constexpr, BK: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows: n_frame of the frame, one of the gate, P of the prenet's first layer."""
    n_rows = n_frame + 1 + P
    n_tiles = tl.cdiv(n_rows, BR)
    i_r, o_b, m_b = _tile(i, n_tiles, p_active, n_active, o_first, m_first, BB, ONE_BLOCK)
    o_row = i_r * BR + tl.arange(0, BR)
    m_row = o_row < n_rows
    b_y = tl.zeros((BR, BB), tl.float32)
    b_y = _product(b_y, p_weight, o_row, m_row, p_h, o_b, m_b, n, n + D, n, BK, EVEN_N, PRECISION, STAGES)
    b_y = _product(b_y, p_weight + n, o_row, m_row, p_context, o_b, m_b, D, n + D, D, BK, EVEN_D, PRECISION, STAGES)
    b_y += tl.load(p_bias + o_row, mask=m_row, other=0.0)[:, None]
    p_frame = p_frames + ((o_b * max_steps + t) * n_frame)[None, :] + o_row[:, None]
    tl.store(p_frame, b_y.to(p_frames.dtype.element_ty), mask=(o_row < n_frame)[:, None] & m_b[None, :])
    if i_r == n_frame // BR:
        b_gate = tl.sum(tl.where((o_row == n_frame)[:, None], b_y, 0.0), axis=0)  # [BB]
        b_running = (tl.sigmoid(b_gate) <= gate_threshold).to(tl.int32)
        tl.store(p_steps + o_b, t + b_running, mask=m_b)
        tl.store(p_fired + o_b, 1 - b_running, mask=m_b)
    o_unit = o_row - n_frame - 1
    b_x = _relu_dropout(b_y, p_seeds, o_b, m_b, 0, t + 1, o_unit, p_dropout, scale)
    p_unit = p_x1 + (o_b * P)[None, :] + o_unit[:, None]
    tl.store(p_unit, b_x.to(p_x1.dtype.element_ty), mask=((o_unit >= 0) & m_row)[:, None] & m_b[None, :])


@triton.jit
def _prenet(
    i, t, p_active, n_active, o_first, m_first, p_x1, p_x2, p_weight, p_seeds, P1, P, p_dropout, scale,
    BR: tl.constexpr, BB: tl.constexpr, ONE_BLOCK: tl.constexpr, BK: tl.constexpr, EVEN_P1: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    n_tiles = tl.cdiv(P, BR)
    i_r, o_b, m_b = _tile(i, n_tiles, p_active, n_active, o_first, m_first, BB, ONE_BLOCK)
    o_row = i_r * BR + tl.arange(0, BR)
    m_row = o_row < P
    b_x = tl.zeros((BR, BB), tl.float32)
    b_x = _product(b_x, p_weight, o_row, m_row, p_x1, o_b, m_b, P1, P1, P1, BK, EVEN_P1, PRECISION, STAGES)
    b_x = _relu_dropout(b_x, p_seeds, o_b, m_b, 1, t + 1, o_row, p_dropout, scale)
    p_unit = p_x2 + (o_b * P)[None, :] + o_row[:, None]
    tl.store(p_unit, b_x.to(p_x2.dtype.element_ty), mask=m_row[:, None] & m_b[None, :])


@triton.jit
def _write_list(b_item, m_keep, p_active, p_n_active):
    b_keep = m_keep.to(tl.int32)
    tl.store(p_active + tl.cumsum(b_keep, 0) - 1, b_item, mask=m_keep)
    tl.store(p_n_active, tl.sum(b_keep, 0))


@triton.jit
def _keep_running(p_active, n_active, p_next_active, p_n_next, p_fired, is_last, BA: tl.constexpr):
    """The next frame's list: this one's items, in order, without those whose gate fired; none after the last."""
    o_i = tl.arange(0, BA)
    m_i = o_i < n_active
    b_item = tl.load(p_active + o_i, mask=m_i, other=0)
    b_fired = tl.load(p_fired + b_item, mask=m_i, other=1)
    _write_list(b_item, m_i & (b_fired == 0) & (is_last == 0), p_next_active, p_n_next)


@triton.jit
def _phase(
    PHASE: tl.constexpr, t, pid, n_active, o_first, m_first,
    p_memory, p_processed_memory, p_lengths, p_seeds,
    p_attention_ih, p_attention_hh, p_attention_bias, p_query_weight, p_location_weight, p_v,
    p_decoder_ih, p_decoder_hh, p_decoder_bias, p_output_weight, p_output_bias, p_prenet_weight,
    p_active, p_n_active, p_x1, p_x2, p_context, p_attention_h, p_attention_c, p_decoder_h, p_decoder_c,
    p_query, p_attention_gates, p_decoder_gates, p_energies, p_cumulative, p_alignments, p_frames, p_steps, p_fired,
    B, T, D, A, N, n, n_frame, P1, P, max_steps, p_dropout, scale, gate_threshold,
    BU: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BB: tl.constexpr,
    ONE_BLOCK: tl.constexpr, BA: tl.constexpr,
    BL: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, BATCH: tl.constexpr, TAPS: tl.constexpr,
    EVEN_P1: tl.constexpr, EVEN_P: tl.constexpr, EVEN_D: tl.constexpr, EVEN_A: tl.constexpr, EVEN_N: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tiles pid, pid + programs, ... of a phase of frame t. N, n: units of the attention and of the decoder LSTM."""
    now, then = t % 2, (t + 1) % 2
    n_programs = tl.num_programs(0)
    p_list = p_active + now * B
    n_blocks = tl.cdiv(n_active, BB)
    n_attention, n_decoder = tl.cdiv(N, BU) * n_blocks, tl.cdiv(n, BU) * n_blocks
    if PHASE == ATTENTION_RNN:
        for i in range(pid, n_attention, n_programs):
            b_h, i_u, o_b, m_b = _cell(
                i, p_list, n_active, o_first, m_first, p_attention_gates, p_x2, p_attention_ih, p_attention_bias,
                p_attention_c, p_attention_h, N, P, P + D, B, BU, BB, ONE_BLOCK, BK, EVEN_P, PRECISION, STAGES,
            )  # fmt: skip
            _query_share(b_h, i_u, o_b, m_b, p_query_weight, p_query, N, A, BU)
    elif PHASE == ENERGIES:
        n_energies = tl.cdiv(T, BT) * n_active
        for i in range(pid, n_energies + n_decoder, n_programs):
            if i < n_energies:
                item = tl.load(p_list + i % n_active).to(tl.int64)
                length = tl.load(p_lengths + item)
                if i // n_active * BT < length:
                    _energies(
                        item, t, i // n_active, length, p_processed_memory, p_location_weight, p_v, p_query,
                        p_cumulative, p_alignments, p_energies, tl.cdiv(N, BU), T, A, max_steps, TAPS, BT, BA, BL,
                        PRECISION,
                    )  # fmt: skip
            else:
                _early_gates(
                    i - n_energies, p_list, n_active, o_first, m_first, p_decoder_gates, p_attention_h,
                    p_decoder_ih, n, N, N + D, B, BU, BB, ONE_BLOCK, BK, EVEN_A, PRECISION, STAGES, True,
                )  # fmt: skip
    elif PHASE == CONTEXT:
        n_contexts = tl.cdiv(D, BD) * n_active
        for i in range(pid, n_contexts + n_decoder + n_attention, n_programs):
            if i < n_contexts:
                item = tl.load(p_list + i % n_active).to(tl.int64)
                _context(
                    item, t, i // n_active, tl.load(p_lengths + item), p_memory, p_energies, p_cumulative,
                    p_alignments, p_context, T, D, max_steps, BS, BT, BD,
                )  # fmt: skip
            elif i < n_contexts + n_decoder:
                _early_gates(
                    i - n_contexts, p_list, n_active, o_first, m_first, p_decoder_gates, p_decoder_h,
                    p_decoder_hh, n, n, n, B, BU, BB, ONE_BLOCK, BK, EVEN_N, PRECISION, STAGES, False,
                )  # fmt: skip
            else:
                _early_gates(
                    i - n_contexts - n_decoder, p_list, n_active, o_first, m_first, p_attention_gates,
                    p_attention_h, p_attention_hh, N, N, N, B, BU, BB, ONE_BLOCK, BK, EVEN_A, PRECISION, STAGES,
                    True,
                )  # fmt: skip
    elif PHASE == DECODER_RNN:
        for i in range(pid, n_decoder, n_programs):
            _cell(
                i, p_list, n_active, o_first, m_first, p_decoder_gates, p_context, p_decoder_ih + N, p_decoder_bias,
                p_decoder_c, p_decoder_h, n, D, N + D, B, BU, BB, ONE_BLOCK, BK, EVEN_D, PRECISION, STAGES,
            )  # fmt: skip
    elif PHASE == OUTPUT:
        for i in range(pid, tl.cdiv(n_frame + 1 + P1, BR) * n_blocks, n_programs):
            _output(
                i, t, p_list, n_active, o_first, m_first, p_decoder_h, p_context, p_output_weight, p_output_bias,
                p_seeds, p_frames, p_steps, p_fired, p_x1, n, D, n_frame, P1, max_steps, p_dropout, scale,
                gate_threshold, BR, BB, ONE_BLOCK, BK, EVEN_N, EVEN_D, PRECISION, STAGES,
            )  # fmt: skip
    else:
        n_units = tl.cdiv(P, BR) * n_blocks
        for i in range(pid, 1 + n_units + n_attention, n_programs):
            if i == 0:
                # Also when no item is left: the list of the frame before must not come back.
                is_last = (t + 1 >= max_steps).to(tl.int32)
                _keep_running(p_list, n_active, p_active + then * B, p_n_active + then, p_fired, is_last, BATCH)
            elif i <= n_units:
                _prenet(
                    i - 1, t, p_list, n_active, o_first, m_first, p_x1, p_x2, p_prenet_weight, p_seeds, P1, P,
                    p_dropout, scale, BR, BB, ONE_BLOCK, BK, EVEN_P1, PRECISION, STAGES,
                )  # fmt: skip
            else:
                _early_gates(
                    i - 1 - n_units, p_list, n_active, o_first, m_first, p_attention_gates, p_context,
                    p_attention_ih + P, N, D, P + D, B, BU, BB, ONE_BLOCK, BK, EVEN_D, PRECISION, STAGES, False,
                )  # fmt: skip


@triton.jit(do_not_specialize=["B"])
def decode_begin_kernel(p_lengths, p_active, p_n_active, B, BATCH: tl.constexpr):
    """The first list: every item that has a length."""
    o_i = tl.arange(0, BATCH)
    b_length = tl.load(p_lengths + o_i, mask=o_i < B, other=0)
    _write_list(o_i, b_length > 0, p_active, p_n_active)


@triton.jit(do_not_specialize=["B", "offset"])
def decode_phase_kernel(
    p_memory, p_processed_memory, p_lengths, p_seeds,
    p_attention_ih, p_attention_hh, p_attention_bias, p_query_weight, p_location_weight, p_v,
    p_decoder_ih, p_decoder_hh, p_decoder_bias, p_output_weight, p_output_bias, p_prenet_weight,
    p_active, p_n_active, p_x1, p_x2, p_context, p_attention_h, p_attention_c, p_decoder_h, p_decoder_c,
    p_query, p_attention_gates, p_decoder_gates, p_energies, p_cumulative, p_alignments, p_frames, p_steps, p_fired,
    B, T, D, A, N, n, n_frame, P1, P, max_steps, p_dropout, scale, gate_threshold,
    p_frame, offset, PHASE: tl.constexpr,
    BU: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BB: tl.constexpr,
    ONE_BLOCK: tl.constexpr, BA: tl.constexpr,
    BL: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, BATCH: tl.constexpr, TAPS: tl.constexpr,
    EVEN_P1: tl.constexpr, EVEN_P: tl.constexpr, EVEN_D: tl.constexpr, EVEN_A: tl.constexpr, EVEN_N: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One phase of frame `*p_frame + offset`: its number is in device memory, so that one graph serves any frame."""
    t = tl.load(p_frame) + offset
    n_active = tl.load(p_n_active + t % 2)
    o_first, m_first = _items(p_active + t % 2 * B, 0, n_active, BB)
    _phase(
        PHASE, t, tl.program_id(0), n_active, o_first, m_first,
        p_memory, p_processed_memory, p_lengths, p_seeds,
        p_attention_ih, p_attention_hh, p_attention_bias, p_query_weight, p_location_weight, p_v,
        p_decoder_ih, p_decoder_hh, p_decoder_bias, p_output_weight, p_output_bias, p_prenet_weight,
        p_active, p_n_active, p_x1, p_x2, p_context, p_attention_h, p_attention_c, p_decoder_h, p_decoder_c,
        p_query, p_attention_gates, p_decoder_gates, p_energies, p_cumulative, p_alignments, p_frames, p_steps, p_fired,
        B, T, D, A, N, n, n_frame, P1, P, max_steps, p_dropout, scale, gate_threshold,
        BU, BR, BK, BT, BB, ONE_BLOCK, BA,
        BL, BD, BS, BATCH, TAPS,
        EVEN_P1, EVEN_P, EVEN_D, EVEN_A, EVEN_N,
        PRECISION, STAGES,
    )  # fmt: skip


@triton.jit
def _wait_for_all(p_barrier, target, patience, alive):
    """Returns when `target` arrivals were counted: 1, or 0 if that was not seen in time or `alive` is 0."""
    tl.debug_barrier()  # every thread's writes come before this program's arrival
    arrived = tl.atomic_add(p_barrier, 1, sem="acq_rel") + 1
    looks = 0
    while (arrived < target) & (looks < patience * alive):
        arrived = tl.atomic_add(p_barrier, 0, sem="acquire")
        looks += 1
    tl.debug_barrier()
    return alive * (arrived >= target).to(tl.int32)


@triton.jit(do_not_specialize=["B"])
def decode_loop_kernel(
    p_memory, p_processed_memory, p_lengths, p_seeds,
    p_attention_ih, p_attention_hh, p_attention_bias, p_query_weight, p_location_weight, p_v,
    p_decoder_ih, p_decoder_hh, p_decoder_bias, p_output_weight, p_output_bias, p_prenet_weight,
    p_active, p_n_active, p_x1, p_x2, p_context, p_attention_h, p_attention_c, p_decoder_h, p_decoder_c,
    p_query, p_attention_gates, p_decoder_gates, p_energies, p_cumulative, p_alignments, p_frames, p_steps, p_fired,
    B, T, D, A, N, n, n_frame, P1, P, max_steps, p_dropout, scale, gate_threshold,
    p_barrier, p_lost, patience,
    BU: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BB: tl.constexpr,
    ONE_BLOCK: tl.constexpr, BA: tl.constexpr,
    BL: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, BATCH: tl.constexpr, TAPS: tl.constexpr,
    EVEN_P1: tl.constexpr, EVEN_P: tl.constexpr, EVEN_D: tl.constexpr, EVEN_A: tl.constexpr, EVEN_N: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """All frames. p_barrier counts arrivals, from 0; *p_lost becomes 1 if a program did not arrive."""
    t = 0
    target = 0
    alive = 1
    n_active = tl.load(p_n_active)
    # Nothing is computed before the loop that could be: for the addresses of all phases there are not the registers.
    while _condition(n_active * alive > 0, disable_licm=True):
        pid = tl.program_id(0) + tl.load(p_lost)  # 0, which the compiler cannot know
        o_first, m_first = _items(p_active + t % 2 * B, 0, n_active, BB)
        for phase in tl.static_range(N_PHASES):
            _phase(
                phase, t, pid, n_active, o_first, m_first,
                p_memory, p_processed_memory, p_lengths, p_seeds,
                p_attention_ih, p_attention_hh, p_attention_bias, p_query_weight, p_location_weight, p_v,
                p_decoder_ih, p_decoder_hh, p_decoder_bias, p_output_weight, p_output_bias, p_prenet_weight,
                p_active, p_n_active, p_x1, p_x2, p_context, p_attention_h, p_attention_c, p_decoder_h, p_decoder_c,
                p_query, p_attention_gates, p_decoder_gates, p_energies, p_cumulative, p_alignments, p_frames, p_steps,
                p_fired,
                B, T, D, A, N, n, n_frame, P1, P, max_steps, p_dropout, scale, gate_threshold,
                BU, BR, BK, BT, BB,
                ONE_BLOCK, BA,
                BL, BD, BS, BATCH, TAPS,
                EVEN_P1, EVEN_P, EVEN_D, EVEN_A, EVEN_N,
                PRECISION, STAGES,
            )  # fmt: skip
            target += tl.num_programs(0)
            alive = _wait_for_all(p_barrier, target, patience, alive)
        t += 1
        n_active = tl.load(p_n_active + t % 2)
    if alive == 0:
        tl.store(p_lost, 1)


@dataclass(frozen=True)
class FoldedDecoder:
    """The weights of one decoder as the kernels read them: in the dtype that is computed in, biases in float32."""

    attention_ih: Tensor  # [4N, P + D]
    attention_hh: Tensor  # [4N, N]
    attention_bias: Tensor  # [4N]
    query: Tensor  # [A, N]
    location: Tensor  # [A, 2k and padding]: convolution and dense layer in one
    v: Tensor  # [A]
    decoder_ih: Tensor  # [4n, N + D]
    decoder_hh: Tensor  # [4n, n]
    decoder_bias: Tensor  # [4n]
    output: Tensor  # [n_frame + 1 + P1, n + D]: projection, gate, and the prenet's first layer of the projection
    output_bias: Tensor  # [n_frame + 1 + P1]
    prenet: Tensor  # [P, P1]
    n_frame: int
    taps: int  # k
    kept: OrderedDict = field(default_factory=OrderedDict, compare=False, repr=False)
    """What was made to decode with these weights, by sizes and options, the latest used last."""

    @property
    def dtype(self) -> torch.dtype:
        return self.output.dtype


@torch.no_grad()
def fold_decoder(recurrent: RecurrentWeights, output: OutputWeights, dtype: torch.dtype | None = None) -> FoldedDecoder:
    """The weights that `decode_loop`'s kernels read: to be kept until a parameter changes.

    Args:
        recurrent, output: of the model.
        dtype: that is to be computed in; default: the weights'.

    Raises:
        FastglowError: the prenet has not two layers.
    """
    if len(output.prenet) != 2:
        raise FastglowError(f"a prenet of {len(output.prenet)} layers: the kernels, and so fold_decoder, take one of 2")
    dtype = output.projection.dtype if dtype is None else dtype
    wide = torch.promote_types(dtype, torch.float32)
    first, second = (weight.to(wide) for weight in output.prenet)
    projection, projection_bias = output.projection.to(wide), output.projection_bias.to(wide)
    attention, decoder = recurrent.attention_rnn, recurrent.decoder_rnn
    with backend.without_autocast(projection):
        rows = (projection, output.gate.to(wide), first @ projection)
        biases = (projection_bias, output.gate_bias.to(wide), first @ projection_bias)
    weights = recurrent.attention
    location = fold_location(weights.location_conv, weights.location_dense, dtype)
    return FoldedDecoder(
        *(x.to(dtype).contiguous() for x in (attention.weight_ih, attention.weight_hh)),
        attention.bias_ih.to(wide) + attention.bias_hh.to(wide),
        recurrent.attention.query.to(dtype).contiguous(),
        location,
        recurrent.attention.v.to(dtype).flatten().contiguous(),
        *(x.to(dtype).contiguous() for x in (decoder.weight_ih, decoder.weight_hh)),
        decoder.bias_ih.to(wide) + decoder.bias_hh.to(wide),
        torch.cat(rows).to(dtype),
        torch.cat(biases),
        second.to(dtype).contiguous(),
        len(projection),
        weights.location_conv.shape[2],
    )


class _Decoding:
    """One batch's decoding: its numbers on the device, at addresses that a recorded graph may keep, and its launches.

    For `_padded` sizes. One batch at a time: `in_use` is to be held from `begin` to `result`.
    """

    def __init__(self, weights: FoldedDecoder, B: int, T: int, max_steps: int, p_dropout: float, gate_threshold: float):
        B, T = _padded(B, T)
        A, N = weights.query.shape
        D = weights.decoder_ih.shape[1] - N
        n = weights.decoder_hh.shape[1]
        P, P1 = weights.prenet.shape
        self.in_use = Lock()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._last: torch.cuda.Event | None = None
        self.max_steps = max_steps
        self.device = device = weights.output.device
        candidates = CONFIGS[weights.dtype.itemsize]
        config = pick_config("decode_loop", candidates, lambda dtype, **shape: candidates[0], weights.output, N=N, n=n)
        tiles = {name: triton.cdiv(size, config["BU"]) for name, size in (("attention", N), ("decoder", n))}

        def empty(*shape: int, dtype: torch.dtype = weights.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.memory, self.processed_memory = empty(B, T, D), empty(B, T, A)
        self.lengths, self.seeds = empty(B, dtype=torch.int32), empty(B, dtype=torch.int64)
        self.frames = empty(B, max_steps, weights.n_frame)
        # Row 0: the weights before the first step. Float32, as they are read again.
        self.alignments = empty(B, max_steps + 1, T, dtype=torch.float32)
        self.alignments[:, 0].zero_()
        # What begins at zero, in one piece for each dtype.
        self._zeros = []
        hidden = self._allot(weights.dtype, (B, N), (B, n), (B, D), (B, P))
        attention_h, decoder_h, context, x2 = hidden
        gate_rows = {name: n_tiles * 4 * config["BU"] for name, n_tiles in tiles.items()}
        attention_c, decoder_c, cumulative, attention_gates = self._allot(
            torch.float32, (B, N), (B, n), (B, T), (gate_rows["attention"], B)
        )
        self.steps, self.frame, self.barrier, self.n_active, fired, active = self._allot(
            torch.int32, (B + 1,), (1,), (1,), (2,), (B,), (2, B)
        )
        x1 = empty(B, P1)
        query = empty(B, tiles["attention"], A, dtype=torch.float32)
        decoder_gates = empty(gate_rows["decoder"], B, dtype=torch.float32)
        energies = empty(B, T, dtype=torch.float32)
        self._arguments = (
            self.memory, self.processed_memory, self.lengths, self.seeds,
            weights.attention_ih, weights.attention_hh, weights.attention_bias,
            weights.query, weights.location, weights.v,
            weights.decoder_ih, weights.decoder_hh, weights.decoder_bias,
            weights.output, weights.output_bias, weights.prenet,
            active, self.n_active, x1, x2, context, attention_h, attention_c, decoder_h, decoder_c,
            query, attention_gates, decoder_gates, energies, cumulative, self.alignments, self.frames, self.steps,
            fired,
            B, T, D, A, N, n, weights.n_frame, P1, P, max_steps,
            p_dropout, 1.0 / (1.0 - p_dropout), gate_threshold,
        )  # fmt: skip
        self._begin_arguments = (self.lengths, active, self.n_active, B)
        self._constants = {
            "BB": BB,
            "ONE_BLOCK": B <= BB,
            "BA": max(SMALLEST_DOT, triton.next_power_of_2(A)),
            "BATCH": max(64, B),
            "TAPS": weights.taps,
            **{
                f"EVEN_{name}": size % config["BK"] == 0
                for name, size in (("P1", P1), ("P", P), ("D", D), ("A", N), ("N", n))
            },
            "PRECISION": product_precision(weights.dtype),
            **config,
        }
        blocks = triton.cdiv(B, BB)
        outputs = triton.cdiv(weights.n_frame + 1 + P1, config["BR"])
        attention, decoder = (tiles[name] * blocks for name in ("attention", "decoder"))
        self._tiles = (
            attention,
            triton.cdiv(T, config["BT"]) * B + decoder,
            triton.cdiv(D, config["BD"]) * B + decoder + attention,
            decoder,
            outputs * blocks,
            1 + triton.cdiv(P, config["BR"]) * blocks + attention,
        )

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """What is queued inside comes after what was queued so the last time, on whatever streams."""
        if self.device.type != "cuda":
            yield
            return
        if self._last is not None:
            torch.cuda.current_stream().wait_event(self._last)
        try:
            yield
        finally:
            self._last = torch.cuda.current_stream().record_event()

    def begin(self, memory: Tensor, processed_memory: Tensor, lengths: Tensor, seeds: Tensor) -> None:
        B, T = memory.shape[:2]
        self.memory[:B, :T] = memory
        self.processed_memory[:B, :T] = processed_memory
        self.lengths[B:] = 0
        self.lengths[:B] = lengths.clamp(max=T)
        self.seeds[:B] = seeds
        for x in self._zeros:
            x.zero_()
        launch(
            OP, decode_begin_kernel, (1,), *self._begin_arguments, device=self.device,
            BATCH=self._constants["BATCH"], num_warps=4,
        )  # fmt: skip

    def run_frames(self, n: int) -> None:
        """The next n frames, launch by launch; those after the last do nothing."""
        for offset in range(n):
            for phase, tiles in enumerate(self._tiles):
                launch(
                    OP, decode_phase_kernel, (tiles,), *self._arguments, self.frame, offset,
                    device=self.device, PHASE=phase, **self._constants,
                )  # fmt: skip
        self.frame += n

    def run_steps(self) -> None:
        """All frames, launch by launch, until no item is left."""
        for _ in range(0, self.max_steps, FRAMES_PER_GRAPH):
            self.run_frames(FRAMES_PER_GRAPH)
            if self.n_active[0].item() == 0:
                return

    def run_graph(self) -> None:
        """All frames, FRAMES_PER_GRAPH of them a replay, until no item is left.

        While the host waits for its last look at how many are, the next replay runs already.
        """
        left = [torch.empty(1, dtype=torch.int32, device="cpu", pin_memory=True) for _ in range(2)]
        looked = [torch.cuda.Event() for _ in range(2)]
        for i in range(triton.cdiv(self.max_steps, FRAMES_PER_GRAPH)):
            self._graph.replay()
            left[i % 2].copy_(self.n_active[:1], non_blocking=True)
            looked[i % 2].record()
            if i > 0:
                looked[(i - 1) % 2].synchronize()
                if left[(i - 1) % 2].item() == 0:
                    return

    def record(self) -> None:
        """Makes the graph, if there is none. What a batch that was begun has is lost."""
        if self._graph is not None:
            return
        for x in self._zeros:
            x.zero_()
        self.run_frames(1)  # of no items: compiles and loads the kernels
        self._graph = record_graph(lambda: self.run_frames(FRAMES_PER_GRAPH), self.device)

    def run_loop(self, n_programs: int, **options) -> None:
        """All frames in one launch of programs that must all be on the device at once."""
        launch(
            OP, decode_loop_kernel, (n_programs,), *self._arguments, self.barrier, self.steps[-1:], MAX_POLLS,
            device=self.device, **self._constants, **options,
        )  # fmt: skip

    def result(self, B: int, T: int, early_stopping: bool) -> DecodeResult:
        """Waits for the device.

        Raises:
            FastglowError: a program of `run_loop` was lost.
        """
        *steps, lost = self.steps.tolist()
        if lost:
            raise FastglowError(
                "decode_loop: a program of the persistent kernel did not arrive at a barrier, so its results are "
                "lost: pass method='graph'"
            )
        n = min(max(steps) + 1, self.max_steps) if early_stopping else self.max_steps
        steps = self.steps[:B].long()
        over = torch.arange(n, device=self.device) > steps.unsqueeze(1)  # [B, n]
        over |= self.lengths[:B].unsqueeze(1) < 1
        return DecodeResult(
            self.frames[:B, :n].masked_fill(over.unsqueeze(2), 0.0),
            steps,
            self.alignments[:B, 1 : n + 1, :T].masked_fill(over.unsqueeze(2), 0.0).to(self.frames.dtype),
        )

    def _allot(self, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Tensors of these shapes, in one of which `begin` makes zeros."""
        sizes = [math.prod(shape) for shape in shapes]
        # Each begins at a multiple of 16 numbers: its loads are as wide as those of a tensor of its own.
        padded = [triton.cdiv(size, 16) * 16 for size in sizes]
        whole = torch.empty(sum(padded), dtype=dtype, device=self.device)
        self._zeros.append(whole)
        parts = whole.split(padded)
        return [part[:size].view(shape) for part, size, shape in zip(parts, sizes, shapes, strict=True)]


def _decoding_of(weights: FoldedDecoder, *sizes_and_options) -> _Decoding:
    """Kept with the weights: recording a graph takes longer than a sentence does."""
    B, T, *others = sizes_and_options
    key = (_padded(B, T), *others, product_precision(weights.dtype))
    decoding = weights.kept.pop(key, None) or _Decoding(weights, *sizes_and_options)
    weights.kept[key] = decoding
    while len(weights.kept) > DECODINGS_KEPT:
        weights.kept.popitem(last=False)
    return decoding


def _padded(B: int, T: int) -> tuple[int, int]:
    """Sizes rounded up: what is not there has no length and is not computed, and few kernels and graphs serve all."""
    return triton.next_power_of_2(B), triton.cdiv(T, 64) * 64


def _against_persistent(B: int, device: torch.device) -> str | None:
    """Why the persistent kernel cannot serve, or None."""
    if B > PERSISTENT_ITEMS:
        return f"{B} items are more than {PERSISTENT_ITEMS}"
    if device.type == "cuda" and not hasattr(tl, "condition"):
        return "this version of Triton is too old: use 3.5 or newer"
    return None


def decode_loop(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    *,
    p_prenet_dropout: float,
    gate_threshold: float,
    max_steps: int,
    early_stopping: bool = True,
    method: str | None = None,
    folded: FoldedDecoder | Callable[[torch.dtype], FoldedDecoder] | None = None,
) -> DecodeResult:
    """Tacotron 2's decoder running free, until every item's gate has fired.

    Shen et al. 2018; Decoder.infer in NVIDIA's tacotron2/model.py. Carries no gradient on Triton. Waits for the
    device: how long a batch speaks is known only then.

    Args:
        memory: encoder outputs, [B, T, D]; processed_memory: through the memory layer, [B, T, A].
        lengths: [B] integers; an item of length 0 takes no steps.
        seeds: [B] int64, of the prenet's dropout: an item's result depends on its own seed and on nothing else of
            its batch.
        recurrent, output: the weights.
        p_prenet_dropout: probability, in [0, 1).
        gate_threshold: an item ends with the step whose gate, through a sigmoid, is above it.
        max_steps: the most steps, at least 1.
        early_stopping: False: the result has max_steps steps whatever the gates say, zeros where an item has ended.
        method: of the kernels: 'steps' launches every frame, 'graph' replays recorded frames (only on a GPU),
            'persistent' is one launch for all frames, of at most PERSISTENT_ITEMS items. The results are the
            same bits. None: persistent where it can serve, else graph.
        folded: `fold_decoder(recurrent, output, dtype)`, if it was kept, or what gives it for a dtype, asked only
            where the kernels serve. Graphs are kept with it: without it one is recorded at every call.

    Returns:
        frames [B, steps, n_frame] and alignments [B, steps, T], zeros after the step on which an item's gate fired;
        steps [B] int64 before that one, max_steps where it did not fire.

    Raises:
        FastglowError: shapes, dtypes, probability, max_steps or method that do not fit the above; a method that
            cannot serve this batch; a lost program of the persistent kernel.
    """
    _check(memory, processed_memory, lengths, seeds, recurrent, output, p_prenet_dropout, max_steps, method)
    dtype = backend.autocast_dtype(memory) or memory.dtype
    unsupported = None
    if len(output.prenet) != 2:
        unsupported = f"a prenet of {len(output.prenet)} layers is none of 2"
    elif dtype not in backend.KERNEL_DTYPES:
        unsupported = f"{str(dtype).removeprefix('torch.')} is not among float32, float16 and bfloat16"
    else:
        unsupported = attention_too_wide(processed_memory.shape[2], dtype)
    inputs = (memory, processed_memory, lengths, seeds)
    if len(memory) == 0 or not backend.picks_triton(OP, *inputs, output.projection, unsupported=unsupported):
        return reference_decode_loop(
            *inputs,
            recurrent,
            output,
            p_prenet_dropout=p_prenet_dropout,
            gate_threshold=gate_threshold,
            max_steps=max_steps,
            early_stopping=early_stopping,
        )
    B, T = memory.shape[:2]
    method = _picked_method(method, B, memory.device)
    # What is kept must not be made in inference mode: it is written to again, perhaps outside of it.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        backend.without_autocast(memory),
        torch.cuda.device(memory.device) if memory.is_cuda else nullcontext(),
    ):
        if callable(folded):
            folded = folded(dtype)
        if folded is None or folded.dtype != dtype:
            folded = fold_decoder(recurrent, output, dtype)
        decoding = _decoding_of(folded, B, T, max_steps, p_prenet_dropout, gate_threshold)
        with decoding.in_use, decoding.in_order():
            if method == "graph":
                decoding.record()
            decoding.begin(*inputs)
            if method == "graph":
                decoding.run_graph()
            elif method == "steps":
                decoding.run_steps()
            elif memory.is_cuda:
                n_programs = torch.cuda.get_device_properties(memory.device).multi_processor_count
                decoding.run_loop(n_programs, launch_cooperative_grid=True)
            else:
                decoding.run_loop(1)  # the interpreter runs programs one after the other
            return decoding.result(B, T, early_stopping)


def _picked_method(method: str | None, B: int, device: torch.device) -> str:
    reason = _against_persistent(B, device) if method in (None, "persistent") else None
    if method is None:
        return "persistent" if reason is None else "graph" if device.type == "cuda" else "steps"
    if method == "graph" and device.type != "cuda":
        reason = f"{device.type} has no CUDA graphs"
    if reason is not None:
        raise FastglowError(f"decode_loop: method {method!r} cannot serve this call: {reason}")
    return method


def _check(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    p_prenet_dropout: float,
    max_steps: int,
    method: str | None,
) -> None:
    if memory.dim() != 3 or memory.shape[1] == 0:
        raise FastglowError(f"memory has shape {tuple(memory.shape)}: pass encoder outputs [B, T, D], T at least 1")
    B, T, D = memory.shape
    A, n = len(recurrent.attention.query), recurrent.decoder_rnn.weight_hh.shape[1]
    n_frame = len(output.projection)
    widths = (n_frame, *map(len, output.prenet))
    expected = {
        "processed_memory": (processed_memory, (B, T, A)),
        "lengths": (lengths, (B,)),
        "seeds": (seeds, (B,)),
        **recurrent_shapes(recurrent, widths[-1], D),
        **{f"prenet[{i}]": (weight, (widths[i + 1], widths[i])) for i, weight in enumerate(output.prenet)},
        "projection": (output.projection, (n_frame, n + D)),
        "projection_bias": (output.projection_bias, (n_frame,)),
        "gate": (output.gate, (1, n + D)),
        "gate_bias": (output.gate_bias, (1,)),
    }
    for name, (x, shape) in expected.items():
        if x.shape != shape:
            raise FastglowError(f"{name} has shape {tuple(x.shape)}, not {shape}, beside memory {tuple(memory.shape)}")
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise FastglowError(f"lengths have dtype {lengths.dtype}: pass integers")
    if seeds.dtype != torch.int64:
        raise FastglowError(f"seeds have dtype {seeds.dtype}: pass torch.int64")
    if not 0 <= p_prenet_dropout < 1:
        raise FastglowError(f"p_prenet_dropout {p_prenet_dropout} is not a probability below 1")
    if max_steps < 1:
        raise FastglowError(f"max_steps {max_steps} must be at least 1")
    if method not in (None, "steps", "graph", "persistent"):
        raise FastglowError(f"method {method!r} is unknown: pass 'steps', 'graph', 'persistent' or None")
