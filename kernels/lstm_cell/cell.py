"""The parts of an LSTM step as device functions that any kernel can call.

A tile holds all four gates of BU units: row 4u + q is gate q (i, f, g, o) of unit u, columns are batch items. `blocks`
is any struct with the fields of `GateBlocks`. Maths, layout and cost: kernels/README.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class GateTile(NamedTuple):
    """The units and items of a tile of gates."""

    o_u: Any  # [4 BU], the unit of each row: first + arange // 4
    n: Any  # units of the LSTM
    o_b: Any  # [BB], the items: rows of x
    m_b: Any  # [BB], which of them exist


class GateBlocks(NamedTuple):
    """Compile-time constants, for kernels whose own struct has no such fields."""

    BU: Any  # units of a tile
    BK: Any  # depth of a product
    PRECISION: Any  # `input_precision` of the products
    STAGES: Any  # of the products' pipelines; None: the kernel's num_stages


@triton.jit
def add_product(b_y, p_w, p_x, m_row, m_b, K, EVEN_K: tl.constexpr, blocks):
    """y + W x^T, [rows, BB] float32.

    Args:
        p_w, p_x: [rows] and [BB], pointers to rows of K contiguous elements.
        m_row, m_b: [rows] and [BB], which of them exist.
        EVEN_K: whether K is a multiple of BK.
    """
    o_k = tl.arange(0, blocks.BK)
    p_w = p_w[:, None] + o_k[None, :]
    p_x = p_x[None, :] + o_k[:, None]
    for k in tl.range(0, K, blocks.BK, num_stages=blocks.STAGES):
        if EVEN_K:
            b_w = tl.load(p_w + k, mask=m_row[:, None], other=0.0)  # [rows, BK]
            b_x = tl.load(p_x + k, mask=m_b[None, :], other=0.0)  # [BK, BB]
        else:
            m_k = k + o_k < K
            b_w = tl.load(p_w + k, mask=m_row[:, None] & m_k[None, :], other=0.0)
            b_x = tl.load(p_x + k, mask=m_b[None, :] & m_k[:, None], other=0.0)
        b_y = tl.dot(b_w, b_x, b_y, input_precision=blocks.PRECISION)
    return b_y


@triton.jit
def gate_rows(p_weight, o_u, n, s_w, BU: tl.constexpr):
    """Pointers to a tile's rows of W [4n, K], s_w apart, for the units o_u of a `GateTile`."""
    o_row = (tl.arange(0, 4 * BU) % 4) * n + o_u
    return p_weight + o_row.to(tl.int64) * s_w


@triton.jit
def lstm_gates(b_gates, tile, p_x, p_weight, K, s_x, s_w, EVEN_K: tl.constexpr, blocks):
    """gates + W x^T, [4 BU, BB] float32.

    Args:
        b_gates: [4 BU, BB] float32.
        tile: GateTile.
        p_x: rows of K contiguous elements, s_x apart.
        p_weight: [4n, K], rows s_w apart.
        EVEN_K: whether K is a multiple of BK.
    """
    p_w = gate_rows(p_weight, tile.o_u, tile.n, s_w, blocks.BU)
    p_rows = p_x + tile.o_b.to(tl.int64) * s_x
    return add_product(b_gates, p_w, p_rows, tile.o_u < tile.n, tile.m_b, K, EVEN_K, blocks)


@triton.jit
def lstm_split(b_gates, BU: tl.constexpr, BB: tl.constexpr):
    """A tile [4 BU, BB] as gates i, f, g, o before their activation, each [BU, BB]."""
    b_pairs = tl.permute(tl.reshape(b_gates, (BU, 2, 2, BB)), (0, 3, 2, 1))  # [BU, BB, low bit of q, high bit]
    b_if, b_go = tl.split(b_pairs)
    b_i, b_f = tl.split(b_if)
    b_g, b_o = tl.split(b_go)
    return b_i, b_f, b_g, b_o


@triton.jit
def lstm_activate(b_i, b_f, b_g, b_o):
    """sigmoid(i), sigmoid(f), tanh(g), sigmoid(o), with tanh in a form that does not overflow."""
    return tl.sigmoid(b_i), tl.sigmoid(b_f), 2.0 * tl.sigmoid(2.0 * b_g) - 1.0, tl.sigmoid(b_o)


@triton.jit
def lstm_update(b_i, b_f, b_g, b_o, b_c):
    """(h', c') from activated gates and c, float32."""
    b_c = b_f * b_c + b_i * b_g
    return b_o * (2.0 * tl.sigmoid(2.0 * b_c) - 1.0), b_c
