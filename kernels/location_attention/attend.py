"""One attention step of one batch item, forward, as device functions that any kernel can call.

`attend_weights` and `attend_context` compute it by one program. `block_energies`, `softmax_scale`, `write_weights` and
`block_context` are its parts for several programs: with a softmax, no bias and no mask.

The structs hold pointers to the data of one item; `fold_location` and `attention_too_wide` are for callers on the
host. Maths, layout and cost: kernels/README.md.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .. import backend

WINDOW = 64
"""The columns of the folded location weight are padded to a multiple of this."""

MAX_ATTENTION = {2: 512, 4: 256}
"""Largest attention dimension A by element size in bytes: a tile holds all of A, and a larger one spills."""

MAX_ATTENTION_IN_LOOP = 256
"""Largest A of `teacher_forced_loop`, in any dtype: its kernels sum over frames in registers."""

WIDE_ATTENTION = 128
"""A larger A has its own configurations."""


class AttentionItem(NamedTuple):
    """Pointers to what one item attends to, in any float dtypes."""

    memory: Any  # [T, D]
    processed_memory: Any  # [T, A]
    previous: Any  # [T] contiguous: the last step's weights
    cumulative: Any  # [T] contiguous, of the same dtype: the sum of all weights so far
    location: Any  # U [A, 2k and padding] as `fold_location` makes it, in the dtype of the products
    v: Any  # [A]
    v_bias: Any  # [1] or None
    mask: Any  # [T] uint8 or None: positions where it is not 0 get no weight


class AttentionSizes(NamedTuple):
    T: Any
    A: Any
    D: Any
    sharpening: Any  # factor of the energies, float


class AttentionStrides(NamedTuple):
    memory_t: Any
    memory_d: Any
    processed_t: Any
    processed_a: Any
    location: Any  # of a row
    mask: Any


class AttentionBlocks(NamedTuple):
    """Compile-time constants. BT, BK and BA are at least 16, BA at least A."""

    TAPS: Any  # k, odd
    NORMALIZATION: Any  # 'softmax' or 'sigmoid'
    PRECISION: Any  # `input_precision` of the products
    BT: Any  # positions of a tile of energies
    BA: Any  # attention dimensions of a tile: all
    BK: Any  # elements of a window per product
    BR: Any  # positions of a tile of the memory
    BD: Any  # columns of a tile of the memory


def attention_too_wide(A: int, dtype: torch.dtype, in_loop: bool = False) -> str | None:
    """`unsupported` of `backend.picks_triton` for this attention dimension.

    Args:
        A: the attention dimension.
        dtype: of the products.
        in_loop: whether for `teacher_forced_loop`.
    """
    most = MAX_ATTENTION_IN_LOOP if in_loop else MAX_ATTENTION.get(dtype.itemsize, A)
    return f"attention dimension {A} is above {most}" if A > most else None


def fold_location(location_conv_weight: Tensor, location_dense_weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The location convolution and the dense layer after it as one matrix U; differentiable.

    Args:
        location_conv_weight: [F, 2, k].
        location_dense_weight: [A, F].
        dtype: of the result; the product is computed in float32 or wider.

    Returns:
        [A, 2k padded with zeros to a multiple of 64]: column `channel * k + tap`, channel 0 for the previous weights.
    """
    wide = torch.promote_types(location_conv_weight.dtype, torch.float32)
    with backend.without_autocast(location_conv_weight):
        product = location_dense_weight.to(wide) @ location_conv_weight.to(wide).flatten(1)
    return F.pad(product.to(dtype), (0, -product.shape[1] % WINDOW))


# Offsets inside a tile have 32 bits. Only the offset of a tile's first row may exceed 2^31: it is a 64-bit scalar.


@triton.jit
def load_windows(item, t0, k0, T, dtype: tl.constexpr, blocks):
    """Elements k0 ... of the windows around positions t0 ..., [BT, BK]: column channel * TAPS + tap, zeros outside."""
    TAPS: tl.constexpr = blocks.TAPS
    o_column = k0 + tl.arange(0, blocks.BK)
    is_cumulative = o_column >= TAPS
    o_tap = o_column - tl.where(is_cumulative, TAPS, 0)
    o_source = (t0 + tl.arange(0, blocks.BT))[:, None] + (o_tap - TAPS // 2)[None, :]
    m = (o_source >= 0) & (o_source < T) & (o_column < 2 * TAPS)[None, :]
    p_rows = tl.where(is_cumulative, item.cumulative, item.previous)  # [BK]
    return tl.load(p_rows[None, :] + o_source, mask=m, other=0.0).to(dtype)


@triton.jit
def load_location(p_location, k0, A, s_row, BA: tl.constexpr, BK: tl.constexpr):
    """Columns k0 ... of U, [BA, BK], zeros beyond A."""
    o_a, o_k = tl.arange(0, BA), k0 + tl.arange(0, BK)
    return tl.load(p_location + ((o_a * s_row)[:, None] + o_k[None, :]), mask=(o_a < A)[:, None], other=0.0)


@triton.jit
def load_v(item, A, BA: tl.constexpr):
    """v [BA] and its bias, float32."""
    o_a = tl.arange(0, BA)
    b_v = tl.load(item.v + o_a, mask=o_a < A, other=0.0).to(tl.float32)
    b_bias = 0.0
    if item.v_bias is not None:
        b_bias = tl.load(item.v_bias).to(tl.float32)
    return b_v, b_bias


@triton.jit
def attend_hidden(b_query, item, t0, length, sizes, strides, blocks):
    """tanh(q + m_t + U f_t) at positions t0 ..., [BT, BA] float32, zeros beyond A; arguments as `attend_weights`."""
    o_r, o_a = tl.arange(0, blocks.BT), tl.arange(0, blocks.BA)
    m = (t0 + o_r < length)[:, None] & (o_a < sizes.A)[None, :]
    o_tile = (o_r * strides.processed_t)[:, None] + (o_a * strides.processed_a)[None, :]
    p_tile = item.processed_memory + tl.cast(t0, tl.int64) * strides.processed_t + o_tile
    b_z = tl.load(p_tile, mask=m, other=0.0).to(tl.float32) + b_query[None, :]
    for k0 in range(0, 2 * blocks.TAPS, blocks.BK):
        b_f = load_windows(item, t0, k0, sizes.T, item.location.dtype.element_ty, blocks)
        b_u = load_location(item.location, k0, sizes.A, strides.location, blocks.BA, blocks.BK)
        b_z = tl.dot(b_f, tl.trans(b_u), b_z, input_precision=blocks.PRECISION)
    return 2.0 * tl.sigmoid(2.0 * b_z) - 1.0  # tanh in a form that does not overflow


@triton.jit
def attend_weights(b_query, item, p_weights, length, sizes, strides, blocks):
    """Writes an item's weights, [T] float32, zero beyond the length and where masked; by one program.

    The caller provides barriers: before the call if other programs or threads wrote the inputs, and after it
    (tl.debug_barrier) before other threads read the weights.

    Args:
        b_query: the projected query, [BA] float32, zeros beyond A.
        item: AttentionItem. `previous` and `cumulative` are read at all T positions and should hold zeros beyond
            the length.
        p_weights: overlaps neither `previous` nor `cumulative`.
        length: positions that count, 0 to T.
        sizes, strides, blocks: AttentionSizes, AttentionStrides, AttentionBlocks.
    """
    SOFTMAX: tl.constexpr = blocks.NORMALIZATION == "softmax"
    BT: tl.constexpr = blocks.BT
    T = sizes.T
    o_r = tl.arange(0, BT)
    b_v, b_bias = load_v(item, sizes.A, blocks.BA)
    # One maximum and sum per row of the tile: reducing to a scalar inside the loop crashes Triton 3.7 on sm_100.
    b_max = tl.full((BT,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BT,), tl.float32)
    # p_weights holds the energies, or their sigmoids, until they are normalised.
    for t0 in range(0, length, BT):
        m_t = t0 + o_r < length
        b_h = attend_hidden(b_query, item, t0, length, sizes, strides, blocks)
        b_e = sizes.sharpening * (tl.sum(b_h * b_v[None, :], axis=1) + b_bias)  # [BT]
        m_in = m_t
        if item.mask is not None:
            m_in = m_in & (tl.load(item.mask + (t0 + o_r).to(tl.int64) * strides.mask, mask=m_t, other=1) == 0)
        if SOFTMAX:
            b_e = tl.where(m_in, b_e, float("-inf"))
            b_next_max = tl.maximum(b_max, b_e)
            # -inf while every position so far is masked.
            b_shift = tl.where(b_next_max == float("-inf"), 0.0, b_next_max)
            b_sum = b_sum * tl.exp(b_max - b_shift) + tl.exp(b_e - b_shift)
            b_max = b_next_max
        else:
            b_e = tl.where(m_in, tl.sigmoid(b_e), 0.0)
            b_sum += b_e
        tl.store(p_weights + t0 + o_r, b_e, mask=m_t)
    tl.debug_barrier()
    if SOFTMAX:
        b_shift = tl.max(b_max, axis=0)
        b_shift = tl.where(b_shift == float("-inf"), 0.0, b_shift)
        b_sum *= tl.exp(b_max - b_shift)
    b_total = tl.sum(b_sum, axis=0)
    b_scale = tl.where(b_total == 0.0, 0.0, 1.0 / tl.where(b_total == 0.0, 1.0, b_total))
    for t0 in range(0, T, BT):
        o_t = t0 + o_r
        if SOFTMAX:
            b_w = tl.load(p_weights + o_t, mask=o_t < length, other=float("-inf"))
            b_w = tl.exp(b_w - b_shift) * b_scale
        else:
            b_w = tl.load(p_weights + o_t, mask=o_t < length, other=0.0) * b_scale
        # With more threads than positions, several threads load the same one: all must have loaded before any stores.
        tl.debug_barrier()
        tl.store(p_weights + o_t, b_w, mask=o_t < T)


@triton.jit
def attend_context(p_memory, p_weights, d0, length, D, strides, blocks):
    """Columns d0 ... of the context, [BD] float32; all threads must see the weights [T] float32."""
    o_r, o_d = tl.arange(0, blocks.BR), d0 + tl.arange(0, blocks.BD)
    b_sums = tl.zeros((blocks.BR, blocks.BD), tl.float32)
    o_tile = (o_r * strides.memory_t)[:, None] + (o_d * strides.memory_d)[None, :]
    for t0 in range(0, length, blocks.BR):
        m_t = t0 + o_r < length
        b_w = tl.load(p_weights + t0 + o_r, mask=m_t, other=0.0)
        m = m_t[:, None] & (o_d < D)[None, :]
        b_m = tl.load(p_memory + tl.cast(t0, tl.int64) * strides.memory_t + o_tile, mask=m, other=0.0)
        b_sums += b_w[:, None] * b_m.to(tl.float32)
    return tl.sum(b_sums, axis=0)


@triton.jit
def block_energies(b_query, item, t0, length, sizes, strides, blocks):
    """v . tanh(q + m_t + U f_t) at positions t0 ..., [BT] float32; arguments as `attend_weights`."""
    b_h = attend_hidden(b_query, item, t0, length, sizes, strides, blocks)
    b_v, _ = load_v(item, sizes.A, blocks.BA)
    return tl.sum(b_h * b_v[None, :], axis=1)


@triton.jit
def softmax_scale(p_energies, length, BS: tl.constexpr):
    """(m, z) for weights exp(e - m) z, from the energies of all positions, BS at a time; without positions (0, 0)."""
    o_s = tl.arange(0, BS)
    b_max = tl.full((BS,), float("-inf"), tl.float32)
    for t0 in range(0, length, BS):
        b_max = tl.maximum(b_max, tl.load(p_energies + t0 + o_s, mask=t0 + o_s < length, other=float("-inf")))
    b_max = tl.max(b_max, axis=0)
    b_max = tl.where(length > 0, b_max, 0.0)
    b_sum = tl.zeros((BS,), tl.float32)
    for t0 in range(0, length, BS):
        b_sum += tl.exp(tl.load(p_energies + t0 + o_s, mask=t0 + o_s < length, other=float("-inf")) - b_max)
    b_sum = tl.sum(b_sum, axis=0)
    return b_max, tl.where(length > 0, 1.0 / tl.where(length > 0, b_sum, 1.0), 0.0)


@triton.jit
def write_weights(p_energies, b_max, b_scale, p_weights, p_cumulative, p_next, length, T, BS: tl.constexpr):
    """Writes the weights, [T] float32, and at p_next, which may be p_cumulative, their sums, BS positions at a time."""
    o_s = tl.arange(0, BS)
    for t0 in range(0, T, BS):
        b_e = tl.load(p_energies + t0 + o_s, mask=t0 + o_s < length, other=float("-inf"))
        b_w = tl.exp(b_e - b_max) * b_scale
        m_t = t0 + o_s < T
        tl.store(p_weights + t0 + o_s, b_w, mask=m_t)
        b_w += tl.load(p_cumulative + t0 + o_s, mask=m_t, other=0.0)
        # With fewer positions than threads, several threads load the same one: all must have loaded before any stores.
        tl.debug_barrier()
        tl.store(p_next + t0 + o_s, b_w, mask=m_t)


@triton.jit
def block_context(p_memory, p_energies, b_max, b_scale, d0, length, D, BR: tl.constexpr, BD: tl.constexpr):
    """Columns d0 ... of the context, [BD] float32, BR positions of the memory [T, D] at a time."""
    o_r, o_d = tl.arange(0, BR), d0 + tl.arange(0, BD)
    p_tile = p_memory + o_r[:, None] * D + o_d[None, :]
    b_context = tl.zeros((BR, BD), tl.float32)
    for t0 in range(0, length, BR):
        m_t = t0 + o_r < length
        b_e = tl.load(p_energies + t0 + o_r, mask=m_t, other=float("-inf"))
        b_m = tl.load(p_tile + tl.cast(t0, tl.int64) * D, mask=m_t[:, None] & (o_d < D)[None, :], other=0.0)
        b_context += (tl.exp(b_e - b_max) * b_scale)[:, None] * b_m.to(tl.float32)
    return tl.sum(b_context, axis=0)
