"""The attention of a backward frame, and the sums over all frames that follow the loop.

In the loop an item's positions are shared out among CHUNKS programs, as in attention.py. Maths, layout and cost:
kernels/README.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..arguments import item_length
from ..location_attention.attend import (
    AttentionItem,
    AttentionSizes,
    AttentionStrides,
    attend_hidden,
    load_location,
    load_v,
    load_windows,
)
from ..location_attention.attend_bwd import fold_windows
from .frame import pointer, sum_of_parts, tile_config

# By element size, for large batches first.
CONTEXT_BACKWARD_CONFIGS = {
    2: (tile_config(8, 2, BT=32, BK=32, BD=256, CHUNKS=4), tile_config(4, 2, BT=16, BK=32, BD=128, CHUNKS=8)),
    4: (tile_config(8, 2, BT=32, BK=32, BD=128, CHUNKS=4),),
}
# By element size and whether the attention is wide.
ENERGIES_BACKWARD_CONFIGS = {
    (2, False): (tile_config(8, 2, BT=32, BK=64, CHUNKS=4), tile_config(8, 2, BT=16, BK=64, CHUNKS=8)),
    (2, True): (tile_config(8, 2, BT=16, BK=64, CHUNKS=4),),
    (4, False): (tile_config(8, 2, BT=32, BK=16, CHUNKS=4),),
    (4, True): (tile_config(8, 2, BT=16, BK=16, CHUNKS=4),),
}
ATTENTION_SUMS_CONFIGS = {
    (2, False): (tile_config(8, 2, BT=32, BK=64),),
    (2, True): (tile_config(8, 2, BT=16, BK=32),),
    (4, False): (tile_config(8, 2, BT=32, BK=16),),
    (4, True): (tile_config(8, 2, BT=16, BK=16),),
}


class ContextBackwardTensors(NamedTuple):
    memory: Any  # [B, T_in, D]
    lengths: Any  # [B] int64
    upstream: Any  # [B, T, D], rows s_upstream apart: the context's upstream gradient
    decoder_parts: Any  # [DECODER_SPLITS, B, D] float32, rows s_decoder apart: the context's gradient from LSTM_d
    next_parts: Any  # [NEXT_SPLITS, B, D] float32, rows s_next apart: from LSTM_a of the next frame
    dalignments: Any  # [B, T, T_in], upstream; may be absent
    dwindows: Any  # [B, T_in, S_LOCATION] float32, of the next frame
    dcumulative: Any  # [B, T_in] float32: gradient of the cumulative weights; accumulated over the frames
    dcontexts: Any  # [T, B, D]: gets the contexts' gradients
    dweights: Any  # [B, T_in] float32: gets g, the gradient of the frame's weights


class ContextBackwardSizes(NamedTuple):
    B: Any
    D: Any
    s_upstream: Any
    s_decoder: Any
    s_next: Any


class ContextBackwardBlocks(NamedTuple):
    TAPS: Any
    BT: Any  # positions of a tile
    BK: Any  # elements of a window at a time
    BD: Any  # columns of a tile of the memory
    S_LOCATION: Any
    CHUNKS: Any
    DECODER_SPLITS: Any
    NEXT_SPLITS: Any


class EnergiesBackwardTensors(NamedTuple):
    query: Any  # [T, B, A] float32
    weights: Any  # [T + 1, B, T_in] float32
    cumulative: Any  # [T + 1, B, T_in] float32
    processed_memory: Any  # [B, T_in, A]
    location: Any  # [A, S_LOCATION]
    v: Any  # [A]
    lengths: Any  # [B] int64
    dweights: Any  # [B, T_in] float32
    denergies: Any  # [T, B, T_in] float32: gets the energies' gradients
    dquery_parts: Any  # [CHUNKS, B, A] float32: gets partial sums of the queries' gradients
    dwindows: Any  # [B, T_in, S_LOCATION] float32: gets the gradients of the windows


class EnergiesBackwardBlocks(NamedTuple):
    TAPS: Any
    PRECISION: Any
    BT: Any
    BA: Any
    BK: Any
    S_LOCATION: Any
    CHUNKS: Any
    BS: Any  # positions of a sum over all


class SumsInputs(NamedTuple):
    """Pointers, of all frames; see `EnergiesBackwardTensors`."""

    query: Any
    weights: Any
    cumulative: Any
    processed_memory: Any
    location: Any
    v: Any
    lengths: Any
    denergies: Any


class SumsOutputs(NamedTuple):
    """Pointers to partial sums, float32."""

    processed_memory: Any  # [SEGMENTS, B, T_in, A]
    location: Any  # [SEGMENTS, B, chunks, A, S_LOCATION]
    v: Any  # [SEGMENTS, B, chunks, A]


class SumsBlocks(NamedTuple):
    TAPS: Any
    PRECISION: Any
    BT: Any
    BA: Any
    BK: Any
    S_LOCATION: Any


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_context_bwd_kernel(p_clock, p_addresses, offset, slots, sizes, blocks):
    """The whole gradients of the context and of the weights; grid (B, CHUNKS)."""
    BT: tl.constexpr = blocks.BT
    BD: tl.constexpr = blocks.BD
    T = tl.load(p_clock + 1)
    t = T - 1 - tl.load(p_clock) - offset
    if t < 0:
        return
    B, D = sizes.B, sizes.D
    T_in = tl.load(p_clock + 2).to(tl.int32)
    p_memory = pointer(p_addresses, slots.memory)
    p_decoder = pointer(p_addresses, slots.decoder_parts)
    p_next = pointer(p_addresses, slots.next_parts)
    p_dwindows = pointer(p_addresses, slots.dwindows)
    p_dcumulative = pointer(p_addresses, slots.dcumulative)
    p_dcontexts = pointer(p_addresses, slots.dcontexts)
    p_dweights = pointer(p_addresses, slots.dweights)
    item, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_upstream = pointer(p_addresses, slots.upstream) + (item * T + t) * sizes.s_upstream
    length = item_length(pointer(p_addresses, slots.lengths), item, T_in, True)
    o_r, o_d = tl.arange(0, BT), tl.arange(0, BD)
    for t0 in range(i_chunk * BT, length, blocks.CHUNKS * BT):
        o_t = t0 + o_r
        m_t = o_t < length
        b_products = tl.zeros((BT, BD), tl.float32)
        for d0 in range(0, D, BD):
            m_d = d0 + o_d < D
            b_dc = tl.load(p_upstream + d0 + o_d, mask=m_d, other=0.0).to(tl.float32)
            b_dc += sum_of_parts(
                p_decoder, item, d0 + o_d, m_d, B * sizes.s_decoder, sizes.s_decoder, blocks.DECODER_SPLITS
            )
            b_dc += sum_of_parts(p_next, item, d0 + o_d, m_d, B * sizes.s_next, sizes.s_next, blocks.NEXT_SPLITS)
            p_tile = p_memory + (item * T_in + t0) * D + (o_r[:, None] * D + (d0 + o_d)[None, :])
            b_m = tl.load(p_tile, mask=m_t[:, None] & m_d[None, :], other=0.0)
            b_products += b_m.to(tl.float32) * b_dc[None, :]
            if t0 == 0:
                p_row = p_dcontexts + (t * B + item) * D + d0
                tl.store(p_row + o_d, b_dc.to(p_dcontexts.dtype.element_ty), mask=m_d)
        b_previous, b_cumulative = fold_windows(
            p_dwindows + item * T_in * blocks.S_LOCATION, t0, length, blocks.S_LOCATION, blocks
        )
        b_cumulative += tl.load(p_dcumulative + item * T_in + o_t, mask=m_t, other=0.0)
        b_g = tl.sum(b_products, axis=1) + b_previous + b_cumulative
        if slots.dalignments is not None:
            p_row = pointer(p_addresses, slots.dalignments) + (item * T + t) * T_in
            b_g += tl.load(p_row + o_t, mask=m_t, other=0.0).to(tl.float32)
        # With fewer positions than threads, several threads load the same one: all must have loaded before any stores.
        tl.debug_barrier()
        tl.store(p_dcumulative + item * T_in + o_t, b_cumulative, mask=m_t)
        tl.store(p_dweights + item * T_in + o_t, b_g, mask=m_t)
    # Nothing follows from an empty item's context.
    if (i_chunk == 0) & (length == 0):
        for d0 in range(0, D, BD):
            p_row = p_dcontexts + (t * B + item) * D + d0
            tl.store(p_row + o_d, tl.zeros((BD,), p_dcontexts.dtype.element_ty), mask=d0 + o_d < D)


@triton.jit
def _energies_gradient(b_query, b_de, item, t0, length, sizes, strides, blocks):
    """(h, dz) [BT, BA] float32 at positions t0 ..., from the gradients of their energies."""
    b_h = attend_hidden(b_query, item, t0, length, sizes, strides, blocks)
    b_v, _ = load_v(item, sizes.A, blocks.BA)
    return b_h, b_de[:, None] * b_v[None, :] * (1.0 - b_h * b_h)


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_energies_bwd_kernel(p_clock, p_addresses, offset, slots, B, A, blocks):
    """The gradients of the energies, the query and the windows; grid (B, CHUNKS)."""
    BT: tl.constexpr = blocks.BT
    BA: tl.constexpr = blocks.BA
    BK: tl.constexpr = blocks.BK
    S_LOCATION: tl.constexpr = blocks.S_LOCATION
    t = tl.load(p_clock + 1) - 1 - tl.load(p_clock) - offset
    if t < 0:
        return
    T_in = tl.load(p_clock + 2).to(tl.int32)
    p_query = pointer(p_addresses, slots.query)
    p_weights = pointer(p_addresses, slots.weights)
    p_cumulative = pointer(p_addresses, slots.cumulative)
    p_processed = pointer(p_addresses, slots.processed_memory)
    p_location = pointer(p_addresses, slots.location)
    p_v = pointer(p_addresses, slots.v)
    dtype: tl.constexpr = p_location.dtype.element_ty
    item, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = t * B + item
    length = item_length(pointer(p_addresses, slots.lengths), item, T_in, True)
    p_w = p_weights + (row + B) * T_in
    p_g = pointer(p_addresses, slots.dweights) + item * T_in
    p_de = pointer(p_addresses, slots.denergies) + row * T_in
    p_dwindows = pointer(p_addresses, slots.dwindows) + item * T_in * S_LOCATION
    o_r, o_a, o_k, o_s = tl.arange(0, BT), tl.arange(0, BA), tl.arange(0, BK), tl.arange(0, blocks.BS)
    b_query = tl.load(p_query + row * A + o_a, mask=o_a < A, other=0.0)
    b_total = tl.zeros((blocks.BS,), tl.float32)
    for t0 in range(0, length, blocks.BS):
        m_t = t0 + o_s < length
        b_total += tl.load(p_w + t0 + o_s, mask=m_t, other=0.0) * tl.load(p_g + t0 + o_s, mask=m_t, other=0.0)
    b_total = tl.sum(b_total, axis=0)
    b_dquery = tl.zeros((BA,), tl.float32)
    for t0 in range(i_chunk * BT, length, blocks.CHUNKS * BT):
        o_t = t0 + o_r
        m_t = o_t < length
        b_de = tl.load(p_w + o_t, mask=m_t, other=0.0) * (tl.load(p_g + o_t, mask=m_t, other=0.0) - b_total)
        tl.store(p_de + o_t, b_de, mask=m_t)
        # The structs are built inside the call: assigned to names, their constants would become tensors (Triton 3.3).
        _, b_dz = _energies_gradient(
            b_query, b_de,
            AttentionItem(
                None, p_processed + item * T_in * A, p_weights + row * T_in, p_cumulative + row * T_in, p_location,
                p_v, None, None,
            ),
            t0, length, AttentionSizes(T_in, A, None, None),
            AttentionStrides(None, None, A, 1, S_LOCATION, None), blocks,
        )  # fmt: skip
        b_dquery += tl.sum(b_dz, axis=0)
        b_dz = b_dz.to(dtype)
        for k0 in range(0, 2 * blocks.TAPS, BK):
            b_u = load_location(p_location, k0, A, S_LOCATION, BA, BK)
            b_df = tl.dot(b_dz, b_u, input_precision=blocks.PRECISION)  # [BT, BK]
            p_tile = p_dwindows + tl.cast(t0, tl.int64) * S_LOCATION + k0 + (o_r[:, None] * S_LOCATION + o_k[None, :])
            tl.store(p_tile, b_df, mask=m_t[:, None])
    p_parts = pointer(p_addresses, slots.dquery_parts) + (i_chunk * B + item) * A
    tl.store(p_parts + o_a, b_dquery, mask=o_a < A)


@triton.jit(do_not_specialize=["T", "n_frames"])
def teacher_forced_attention_sums_bwd_kernel(inputs, outputs, T, B, T_in, A, n_frames, n_columns, blocks):
    """The gradients of the processed memory, U and v, summed over the frames.

    Grid (B, chunks x n_columns blocks of a window's elements, segments of n_frames frames). A program sums in
    registers: over the frames of its segment for the processed memory, also over its positions for U and v.
    """
    BT: tl.constexpr = blocks.BT
    BA: tl.constexpr = blocks.BA
    BK: tl.constexpr = blocks.BK
    S_LOCATION: tl.constexpr = blocks.S_LOCATION
    dtype: tl.constexpr = inputs.location.dtype.element_ty
    item, i_segment = tl.program_id(0).to(tl.int64), tl.program_id(2)
    i_chunk, i_column = tl.program_id(1) // n_columns, tl.program_id(1) % n_columns
    n_chunks = tl.num_programs(1) // n_columns
    length = item_length(inputs.lengths, item, T_in, True)
    first = i_segment * n_frames
    last = tl.minimum(first + n_frames, T)
    o_r, o_a, o_k = tl.arange(0, BT), tl.arange(0, BA), tl.arange(0, BK)
    m_a = o_a < A
    b_dlocation = tl.zeros((BK, BA), tl.float32)
    b_dv = tl.zeros((BA,), tl.float32)
    for t0 in range(i_chunk * BT, T_in, n_chunks * BT):
        o_t = t0 + o_r
        m_t = o_t < length
        b_dm = tl.zeros((BT, BA), tl.float32)
        for t in range(first, tl.where(t0 < length, last, first)):
            row = tl.cast(t, tl.int64) * B + item
            b_query = tl.load(inputs.query + row * A + o_a, mask=m_a, other=0.0)
            b_de = tl.load(inputs.denergies + row * T_in + o_t, mask=m_t, other=0.0)
            b_h, b_dz = _energies_gradient(
                b_query, b_de,
                AttentionItem(
                    None, inputs.processed_memory + item * T_in * A, inputs.weights + row * T_in,
                    inputs.cumulative + row * T_in, inputs.location, inputs.v, None, None,
                ),
                t0, length, AttentionSizes(T_in, A, None, None),
                AttentionStrides(None, None, A, 1, S_LOCATION, None), blocks,
            )  # fmt: skip
            b_dm += b_dz
            b_dv += tl.sum(b_de[:, None] * b_h, axis=0)
            b_f = load_windows(
                AttentionItem(
                    None, None, inputs.weights + row * T_in, inputs.cumulative + row * T_in, None, None, None, None
                ),
                t0, i_column * BK, T_in, dtype, blocks,
            )  # fmt: skip
            b_dlocation = tl.dot(tl.trans(b_f), b_dz.to(dtype), b_dlocation, input_precision=blocks.PRECISION)
        if i_column == 0:
            p_tile = outputs.processed_memory + ((i_segment * B + item) * T_in + t0) * A
            m_tile = (o_t < T_in)[:, None] & m_a[None, :]
            tl.store(p_tile + (o_r[:, None] * A + o_a[None, :]), b_dm, mask=m_tile)
    i_part = (i_segment * B + item) * n_chunks + i_chunk
    p_tile = outputs.location + i_part * A * S_LOCATION + i_column * BK
    tl.store(p_tile + (o_a[None, :] * S_LOCATION + o_k[:, None]), b_dlocation, mask=m_a[None, :])
    if i_column == 0:
        tl.store(outputs.v + i_part * A + o_a, b_dv, mask=m_a)
