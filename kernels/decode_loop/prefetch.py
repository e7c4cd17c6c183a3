"""Weights that a program of the persistent kernel loads before it waits at a barrier.

No phase writes weights, so a program may load those of its next tile while others still work. It holds the last
PREFETCH blocks of the tile's last product in registers: the pipeline of `add_product` takes the blocks before them, and
the order of the sums stays. Cost: kernels/README.md.
"""

import triton
import triton.language as tl

from ..lstm_cell.cell import add_product, gate_rows


@triton.jit
def last_blocks(p_w, m_row, K, EVEN_K: tl.constexpr, blocks):
    """The last PREFETCH blocks of rows of W, each [rows, BK]. Arguments as `add_product`."""
    o_k = tl.arange(0, blocks.BK)
    first = tl.cdiv(K, blocks.BK) - blocks.PREFETCH
    held = ()
    for i in tl.static_range(blocks.PREFETCH):
        k = (first + i) * blocks.BK
        m_w = m_row[:, None] if EVEN_K else m_row[:, None] & (k + o_k < K)[None, :]
        b_w = tl.load(p_w[:, None] + k + o_k[None, :], mask=m_w, other=0.0)
        held = held + (b_w,)  # type: ignore[assignment]  # mypy infers a tuple of no elements
    return held


@triton.jit
def last_gate_blocks(i_u, p_weight, s_w, n, K, EVEN_K: tl.constexpr, blocks):
    """`last_blocks` of tile i_u of an LSTM of n units; zeros if there is no such tile."""
    o_u = i_u * blocks.BU + tl.arange(0, 4 * blocks.BU) // 4
    p_w = gate_rows(p_weight, o_u, n, s_w, blocks.BU)
    return last_blocks(p_w, (o_u >= 0) & (o_u < n), K, EVEN_K, blocks)


@triton.jit
def add_product_of_held(b_y, p_w, p_x, m_row, m_b, K, EVEN_K: tl.constexpr, held, blocks):
    """`add_product`, with the last blocks of W held: the same sums in the same order."""
    if blocks.PREFETCH == 0:
        return add_product(b_y, p_w, p_x, m_row, m_b, K, EVEN_K, blocks)
    else:
        o_k = tl.arange(0, blocks.BK)
        first = tl.cdiv(K, blocks.BK) - blocks.PREFETCH
        x = ()
        for i in tl.static_range(blocks.PREFETCH):
            k = (first + i) * blocks.BK
            m_x = m_b[None, :] if EVEN_K else m_b[None, :] & (k + o_k < K)[:, None]
            b_x = tl.load(p_x[None, :] + k + o_k[:, None], mask=m_x, other=0.0)
            x = x + (b_x,)  # type: ignore[assignment]  # as above
        b_y = add_product(b_y, p_w, p_x, m_row, m_b, first * blocks.BK, True, blocks)
        for i in tl.static_range(blocks.PREFETCH):
            b_y = tl.dot(held[i], x[i], b_y, input_precision=blocks.PRECISION)
        return b_y
