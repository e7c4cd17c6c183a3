"""The tiles of a frame, one device function per kind.

A tile reads what earlier phases wrote, and nothing that another tile of its phase writes. Products have BB items as
columns. Maths, layout and cost: kernels/README.md.
"""

import triton
import triton.language as tl

from ..location_attention.attend import (
    WINDOW,
    AttentionBlocks,
    AttentionItem,
    AttentionSizes,
    AttentionStrides,
    block_context,
    block_energies,
    softmax_scale,
    write_weights,
)
from ..lstm_cell.cell import add_product, gate_rows, lstm_activate, lstm_split, lstm_update
from ..philox import uniform_noise
from .prefetch import add_product_of_held
from .structs import Frame

QUERY_BLOCK = tl.constexpr(128)  # partial sums of the query added at a time
_WINDOW = tl.constexpr(WINDOW)


@triton.jit
def load_items(p_items, n_items, i_b, BB: tl.constexpr):
    """The items of block i_b of a list, and which of them exist, both [BB]."""
    o_i = i_b * BB + tl.arange(0, BB)
    m_b = o_i < n_items
    return tl.load(p_items + o_i, mask=m_b, other=0), m_b


@triton.jit
def load_frame(t, n_items, running, B, blocks):
    """Frame t, in which n_items run."""
    p_items = running.items + t % 2 * B
    o_first, m_first = load_items(p_items, n_items, 0, blocks.BB)
    return Frame(t, p_items, n_items, o_first, m_first, B)


@triton.jit
def _items_of_tile(i, n_tiles, frame, blocks):
    """Tile i of n_tiles per block of items: its index within its block, and the block's items."""
    if blocks.ONE_BLOCK:
        return i, frame.o_first.to(tl.int64), frame.m_first
    else:
        o_b, m_b = load_items(frame.p_items, frame.n_items, i // n_tiles, blocks.BB)
        return i % n_tiles, o_b.to(tl.int64), m_b


@triton.jit
def _add_gates(i, frame, lstm, product, held, blocks, FIRST: tl.constexpr):
    """The partial sums of a tile's gates, or zeros if FIRST, plus the product, [4 BU, BB].

    held: the last blocks of the tile's weights, as in `prefetch`.

    Returns the gates, their address, the tile's index, and its items.
    """
    BU: tl.constexpr = blocks.BU
    i_u, o_b, m_b = _items_of_tile(i, tl.cdiv(lstm.n, BU), frame, blocks)
    o_row = i_u * 4 * BU + tl.arange(0, 4 * BU)
    p_gates = lstm.gates + (o_row * frame.B)[:, None] + o_b[None, :]
    b_gates = tl.zeros((4 * BU, blocks.BB), tl.float32)
    if not FIRST:
        b_gates = tl.load(p_gates, mask=m_b[None, :], other=0.0)
    o_u = i_u * BU + tl.arange(0, 4 * BU) // 4
    p_w = gate_rows(product.p_w, o_u, lstm.n, product.s_w, BU)
    p_x = product.p_x + o_b * product.K
    b_gates = add_product_of_held(b_gates, p_w, p_x, o_u < lstm.n, m_b, product.K, product.EVEN_K, held, blocks)
    return b_gates, p_gates, i_u, o_b, m_b


@triton.jit
def partial_gates_tile(i, frame, lstm, product, held, blocks, FIRST: tl.constexpr):
    """Adds a product to the partial sums of an LSTM's gates; FIRST: it is the first one."""
    b_gates, p_gates, _, _, m_b = _add_gates(i, frame, lstm, product, held, blocks, FIRST)
    tl.debug_barrier()  # as in lstm_tile
    tl.store(p_gates, b_gates, mask=m_b[None, :])


@triton.jit
def lstm_tile(i, frame, lstm, product, held, blocks):
    """Adds the last product to the gates; overwrites c and h with the new c and h.

    Returns the new h, [BU, BB], rounded to the dtype of h, the tile's index, and its items.
    """
    BU: tl.constexpr = blocks.BU
    b_gates, _, i_u, o_b, m_b = _add_gates(i, frame, lstm, product, held, blocks, FIRST=False)
    b_i, b_f, b_g, b_o = lstm_split(b_gates, BU, blocks.BB)
    n = lstm.n
    o_u = i_u * BU + tl.arange(0, BU)
    m_u = o_u < n
    b_i += tl.load(lstm.bias + o_u, mask=m_u, other=0.0)[:, None]
    b_f += tl.load(lstm.bias + n + o_u, mask=m_u, other=0.0)[:, None]
    b_g += tl.load(lstm.bias + 2 * n + o_u, mask=m_u, other=0.0)[:, None]
    b_o += tl.load(lstm.bias + 3 * n + o_u, mask=m_u, other=0.0)[:, None]
    b_i, b_f, b_g, b_o = lstm_activate(b_i, b_f, b_g, b_o)
    o_state = (o_b * n)[None, :] + o_u[:, None]
    m_state = m_u[:, None] & m_b[None, :]
    b_h, b_c = lstm_update(b_i, b_f, b_g, b_o, tl.load(lstm.c + o_state, mask=m_state, other=0.0))
    # With fewer elements than threads, several threads load the same one: all must have loaded before any stores.
    tl.debug_barrier()
    tl.store(lstm.c + o_state, b_c, mask=m_state)
    b_h = b_h.to(lstm.h.dtype.element_ty)
    tl.store(lstm.h + o_state, b_h, mask=m_state)
    return b_h, i_u, o_b, m_b


@triton.jit
def partial_query(b_h, i_u, o_b, m_b, attention, N, A, BU: tl.constexpr):
    """Writes the partial sums of the query W_q h over the BU units in b_h [BU, BB]."""
    o_u = i_u * BU + tl.arange(0, BU)
    b_h = tl.trans(tl.where((o_u < N)[:, None], b_h.to(tl.float32), 0.0))  # [BB, BU]
    for a in range(0, A, 16):
        o_a = a + tl.arange(0, 16)
        m_w = (o_a < A)[:, None] & (o_u < N)[None, :]
        p_w = attention.query_weight + o_a[:, None] * N + o_u[None, :]
        b_w = tl.load(p_w, mask=m_w, other=0.0).to(tl.float32)  # [16, BU]
        # With the axes in this order Triton does not turn the sum into a dot, which would round to TF32.
        b_sum = tl.sum(b_w[:, None, :] * b_h[None, :, :], axis=2)  # [16, BB]
        p_sum = attention.query + ((o_b * tl.cdiv(N, BU) + i_u) * A)[None, :] + o_a[:, None]
        tl.store(p_sum, b_sum, mask=(o_a < A)[:, None] & m_b[None, :])


@triton.jit
def energies_tile(item, i_t, length, t, attention, n_sums, sizes, blocks):
    """Writes one item's energies of block i_t of its positions; the query is the sum of n_sums partial sums."""
    T, A = sizes.T, sizes.A
    o_a = tl.arange(0, blocks.BA)
    b_query = tl.zeros((blocks.BA,), tl.float32)
    for first in range(0, n_sums, QUERY_BLOCK):
        o_sum = first + tl.arange(0, QUERY_BLOCK)
        m = (o_sum < n_sums)[:, None] & (o_a < A)[None, :]
        p_sums = attention.query + item * n_sums * A + o_sum[:, None] * A + o_a[None, :]
        b_query += tl.sum(tl.load(p_sums, mask=m, other=0.0), axis=0)
    # The structs are built inside the call: assigned to names, their constants would become tensors.
    b_e = block_energies(
        b_query,
        AttentionItem(
            memory=None,
            processed_memory=attention.processed_memory + item * T * A,
            previous=attention.alignments + (item * (sizes.max_steps + 1) + t) * T,
            cumulative=attention.cumulative + item * T,
            location=attention.location,
            v=attention.v,
            v_bias=None,
            mask=None,
        ),
        i_t * blocks.BT,
        length,
        AttentionSizes(T, A, None, None),
        AttentionStrides(None, None, A, 1, location=tl.cdiv(2 * blocks.TAPS, _WINDOW) * _WINDOW, mask=None),
        AttentionBlocks(blocks.TAPS, None, blocks.PRECISION, blocks.BT, blocks.BA, BK=blocks.BL, BR=None, BD=None),
    )
    o_t = i_t * blocks.BT + tl.arange(0, blocks.BT)
    tl.store(attention.energies + item * T + o_t, b_e, mask=o_t < length)


@triton.jit
def context_tile(item, i_d, length, t, attention, sizes, blocks):
    """Writes block i_d of one item's context; block 0 also writes its weights and adds them to the cumulative ones."""
    T, D = sizes.T, sizes.D
    p_energies = attention.energies + item * T
    b_max, b_scale = softmax_scale(p_energies, length, blocks.BS)
    if i_d == 0:
        p_weights = attention.alignments + (item * (sizes.max_steps + 1) + t + 1) * T
        p_cumulative = attention.cumulative + item * T
        write_weights(
            p_energies, b_max, b_scale, p_weights, p_cumulative, p_cumulative, length, T, blocks.BS,
        )  # fmt: skip
    d0 = i_d * blocks.BD
    b_context = block_context(
        attention.memory + item * T * D, p_energies, b_max, b_scale, d0, length, D, blocks.BT, blocks.BD
    )
    o_d = d0 + tl.arange(0, blocks.BD)
    tl.store(attention.context + item * D + o_d, b_context.to(attention.context.dtype.element_ty), mask=o_d < D)


@triton.jit
def _relu_dropout(b_x, p_seeds, o_b, m_b, stream, position, o_unit, sizes):
    """A prenet layer's activation and dropout, [units, BB]."""
    b_seed = tl.load(p_seeds + o_b, mask=m_b, other=0)
    b_noise = uniform_noise(b_seed[None, :], stream, position, o_unit[:, None])
    b_x = tl.where(b_x < 0.0, 0.0, b_x)  # NaN stays NaN
    return tl.where(b_noise >= sizes.p_dropout, b_x * sizes.scale, 0.0)


@triton.jit
def output_tile(i, frame, output, p_h, n, p_context, sizes, held, blocks):
    """Writes BR rows of [frame, gate, first prenet layer of the next frame]."""
    BR: tl.constexpr = blocks.BR
    D, n_frame = sizes.D, sizes.n_frame
    n_rows = n_frame + 1 + sizes.P1
    i_r, o_b, m_b = _items_of_tile(i, tl.cdiv(n_rows, BR), frame, blocks)
    o_row = i_r * BR + tl.arange(0, BR)
    m_row = o_row < n_rows
    b_y = tl.zeros((BR, blocks.BB), tl.float32)
    p_w = output.weight + o_row * (n + D)
    b_y = add_product(b_y, p_w, p_h + o_b * n, m_row, m_b, n, blocks.EVEN_ND, blocks)
    b_y = add_product_of_held(b_y, p_w + n, p_context + o_b * D, m_row, m_b, D, blocks.EVEN_D, held, blocks)
    b_y += tl.load(output.bias + o_row, mask=m_row, other=0.0)[:, None]
    p_frame = output.frames + ((o_b * sizes.max_steps + frame.t) * n_frame)[None, :] + o_row[:, None]
    m_frame = (o_row < n_frame)[:, None] & m_b[None, :]
    tl.store(p_frame, b_y.to(output.frames.dtype.element_ty), mask=m_frame)
    if i_r == n_frame // BR:
        b_gate = tl.sum(tl.where((o_row == n_frame)[:, None], b_y, 0.0), axis=0)  # [BB]
        b_running = (tl.sigmoid(b_gate) <= sizes.gate_threshold).to(tl.int32)
        tl.store(output.steps + o_b, frame.t + b_running, mask=m_b)
        tl.store(output.fired + o_b, 1 - b_running, mask=m_b)
    o_unit = o_row - n_frame - 1
    b_x = _relu_dropout(b_y, output.seeds, o_b, m_b, 0, frame.t + 1, o_unit, sizes)
    p_unit = output.x1 + (o_b * sizes.P1)[None, :] + o_unit[:, None]
    m_unit = ((o_unit >= 0) & m_row)[:, None] & m_b[None, :]
    tl.store(p_unit, b_x.to(output.x1.dtype.element_ty), mask=m_unit)


@triton.jit
def prenet_tile(i, frame, output, sizes, blocks):
    """Writes BR units of the second prenet layer of the next frame."""
    BR: tl.constexpr = blocks.BR
    P1, P = sizes.P1, sizes.P
    i_r, o_b, m_b = _items_of_tile(i, tl.cdiv(P, BR), frame, blocks)
    o_row = i_r * BR + tl.arange(0, BR)
    m_row = o_row < P
    b_x = tl.zeros((BR, blocks.BB), tl.float32)
    p_w, p_x = output.prenet + o_row * P1, output.x1 + o_b * P1
    b_x = add_product(b_x, p_w, p_x, m_row, m_b, P1, blocks.EVEN_P1, blocks)
    b_x = _relu_dropout(b_x, output.seeds, o_b, m_b, 1, frame.t + 1, o_row, sizes)
    p_unit = output.x2 + (o_b * P)[None, :] + o_row[:, None]
    tl.store(p_unit, b_x.to(output.x2.dtype.element_ty), mask=m_row[:, None] & m_b[None, :])


@triton.jit
def write_items(b_item, m_keep, p_items, p_n):
    """Writes a list of the items to keep, and its length."""
    b_keep = m_keep.to(tl.int32)
    tl.store(p_items + tl.cumsum(b_keep, 0) - 1, b_item, mask=m_keep)
    tl.store(p_n, tl.sum(b_keep, 0))


@triton.jit
def next_items_tile(frame, running, p_fired, max_steps, BATCH: tl.constexpr):
    """Writes the next frame's list: this frame's items, in order, whose gate did not fire; none after the last."""
    i_next, is_last = (frame.t + 1) % 2, (frame.t + 1 >= max_steps).to(tl.int32)
    o_i = tl.arange(0, BATCH)
    m_i = o_i < frame.n_items
    b_item = tl.load(frame.p_items + o_i, mask=m_i, other=0)
    b_fired = tl.load(p_fired + b_item, mask=m_i, other=1)
    write_items(b_item, m_i & (b_fired == 0) & (is_last == 0), running.items + i_next * frame.B, running.n + i_next)
