"""The attention of a forward frame: the energies, then softmax and context.

An item's positions are shared out among CHUNKS programs: program i takes block i of BT positions, block i + CHUNKS, and
so on, so that one grid works for any number of positions. Maths, layout and cost: kernels/README.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..arguments import item_length
from ..location_attention.attend import (
    AttentionItem,
    AttentionSizes,
    AttentionStrides,
    block_context,
    block_energies,
    softmax_scale,
    write_weights,
)
from .frame import pointer, sum_of_parts, tile_config

# By element size and whether the attention is wide; for large batches first.
ENERGIES_CONFIGS = {
    (2, False): (tile_config(4, 2, BT=32, BK=64, CHUNKS=4), tile_config(4, 2, BT=16, BK=64, CHUNKS=8)),
    (2, True): (tile_config(8, 2, BT=32, BK=64, CHUNKS=4),),
    (4, False): (tile_config(8, 2, BT=32, BK=16, CHUNKS=4),),
    (4, True): (tile_config(8, 2, BT=16, BK=16, CHUNKS=4),),
}
# By element size.
CONTEXT_CONFIGS = {
    2: (tile_config(8, 2, BR=32, BD=256), tile_config(4, 2, BR=32, BD=128), tile_config(4, 2, BR=64, BD=64)),
    4: (tile_config(4, 2, BR=16, BD=256), tile_config(4, 2, BR=16, BD=128), tile_config(4, 2, BR=32, BD=64)),
}


class EnergiesTensors(NamedTuple):
    query_parts: Any  # [SPLITS, B, A] float32: partial sums of the frame's queries
    query: Any  # [T, B, A] float32: gets their sums
    weights: Any  # [T + 1, B, T_in] float32
    cumulative: Any  # [T + 1, B, T_in] float32
    energies: Any  # [B, T_in] float32, of the frame
    processed_memory: Any  # [B, T_in, A]
    location: Any  # [A, S_LOCATION]
    v: Any  # [A]
    lengths: Any  # [B] int64


class EnergiesBlocks(NamedTuple):
    TAPS: Any
    PRECISION: Any
    BT: Any  # positions of a tile
    BA: Any  # attention dimension, padded
    BK: Any  # elements of a window per product
    S_LOCATION: Any  # columns of the location weight
    CHUNKS: Any  # programs per item
    SPLITS: Any  # of the query's product


class ContextTensors(NamedTuple):
    energies: Any  # [B, T_in] float32
    weights: Any  # [T + 1, B, T_in] float32
    cumulative: Any  # [T + 1, B, T_in] float32
    context: Any  # [T, B, D], rows s_context apart
    memory: Any  # [B, T_in, D]
    lengths: Any  # [B] int64


class ContextBlocks(NamedTuple):
    BR: Any  # positions of a tile of the memory
    BD: Any  # columns of a tile of the memory
    BS: Any  # positions of a softmax


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_energies_fwd_kernel(p_clock, p_addresses, offset, slots, B, A, blocks):
    """Grid (B, CHUNKS)."""
    BT: tl.constexpr = blocks.BT
    BA: tl.constexpr = blocks.BA
    t = tl.load(p_clock) + offset
    if t >= tl.load(p_clock + 1):
        return
    T_in = tl.load(p_clock + 2).to(tl.int32)
    p_parts = pointer(p_addresses, slots.query_parts)
    p_query = pointer(p_addresses, slots.query)
    p_weights = pointer(p_addresses, slots.weights)
    p_cumulative = pointer(p_addresses, slots.cumulative)
    p_processed = pointer(p_addresses, slots.processed_memory)
    p_location = pointer(p_addresses, slots.location)
    p_v = pointer(p_addresses, slots.v)
    item, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = t * B + item
    length = item_length(pointer(p_addresses, slots.lengths), item, T_in, True)
    o_a = tl.arange(0, BA)
    b_query = sum_of_parts(p_parts, item, o_a, o_a < A, B * A, A, blocks.SPLITS)
    if i_chunk == 0:
        tl.store(p_query + row * A + o_a, b_query, mask=o_a < A)
    p_energies = pointer(p_addresses, slots.energies) + item * T_in
    for t0 in range(i_chunk * BT, length, blocks.CHUNKS * BT):
        # The structs are built inside the call: assigned to names, their constants would become tensors (Triton 3.3).
        b_e = block_energies(
            b_query,
            AttentionItem(
                None, p_processed + item * T_in * A, p_weights + row * T_in, p_cumulative + row * T_in, p_location,
                p_v, None, None,
            ),
            t0, length, AttentionSizes(T_in, A, None, None),
            AttentionStrides(None, None, A, 1, blocks.S_LOCATION, None), blocks,
        )  # fmt: skip
        o_t = t0 + tl.arange(0, BT)
        tl.store(p_energies + o_t, b_e, mask=o_t < length)


@triton.jit(do_not_specialize=["offset"])
def teacher_forced_context_fwd_kernel(p_clock, p_addresses, offset, slots, B, D, s_context, blocks):
    """Grid (B, blocks of D); block 0 writes the weights too."""
    BD: tl.constexpr = blocks.BD
    t = tl.load(p_clock) + offset
    if t >= tl.load(p_clock + 1):
        return
    T_in = tl.load(p_clock + 2).to(tl.int32)
    p_weights = pointer(p_addresses, slots.weights)
    p_cumulative = pointer(p_addresses, slots.cumulative)
    p_context = pointer(p_addresses, slots.context)
    p_memory = pointer(p_addresses, slots.memory)
    item, i_d = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = t * B + item
    length = item_length(pointer(p_addresses, slots.lengths), item, T_in, True)
    p_energies = pointer(p_addresses, slots.energies) + item * T_in
    b_max, b_scale = softmax_scale(p_energies, length, blocks.BS)
    if i_d == 0:
        write_weights(
            p_energies, b_max, b_scale, p_weights + (row + B) * T_in, p_cumulative + row * T_in,
            p_cumulative + (row + B) * T_in, length, T_in, blocks.BS,
        )  # fmt: skip
    d0 = i_d * BD
    b_context = block_context(
        p_memory + item * T_in * D, p_energies, b_max, b_scale, d0, length, D, blocks.BR, BD
    )  # fmt: skip
    o_d = d0 + tl.arange(0, BD)
    tl.store(p_context + row * s_context + o_d, b_context.to(p_context.dtype.element_ty), mask=o_d < D)
