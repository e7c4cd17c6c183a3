"""An LSTM cell: the parts that every kernel with an LSTM in it is made of.

The four gates of a unit stay together: a tile of BU units has 4 BU rows, row 4 u + q being gate q (i, f, g, o) of
unit u, so that c' and h' are the epilogue of the product that makes the gates. Rows are units and columns are items:
the weights are the operand with many rows, which is what tensor cores want at any batch size.
"""

import triton
import triton.language as tl


@triton.jit
def lstm_gates(
    b_gates, p_x, p_weight, o_u, o_b, m_b, n, K, s_xb, s_w,
    BU: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gates + W x^T for units o_u[0] .. o_u[0] + BU - 1, [4 BU, BB] float32.

    Args:
        b_gates: [4 BU, BB] float32.
        p_x: rows of K contiguous numbers, s_xb apart; p_weight: [4n, K], rows s_w apart, gate q's n rows after q n.
        o_u: [4 BU], the unit of each row, `first + arange // 4`; o_b: [BB] rows of x; m_b: [BB], which are there.
        EVEN_K: K is a multiple of BK.
    """
    o_k = tl.arange(0, BK)
    o_row = (tl.arange(0, 4 * BU) % 4) * n + o_u
    p_w = p_weight + (o_row.to(tl.int64) * s_w)[:, None] + o_k[None, :]
    p_columns = p_x + (o_b.to(tl.int64) * s_xb)[None, :] + o_k[:, None]
    m_u = o_u < n
    for k in range(0, K, BK):
        if EVEN_K:
            b_w = tl.load(p_w + k, mask=m_u[:, None], other=0.0)  # [4 BU, BK]
            b_x = tl.load(p_columns + k, mask=m_b[None, :], other=0.0)  # [BK, BB]
        else:
            m_k = k + o_k < K
            b_w = tl.load(p_w + k, mask=m_u[:, None] & m_k[None, :], other=0.0)
            b_x = tl.load(p_columns + k, mask=m_b[None, :] & m_k[:, None], other=0.0)
        b_gates = tl.dot(b_w, b_x, b_gates, input_precision=PRECISION)
    return b_gates


@triton.jit
def lstm_split(b_gates, BU: tl.constexpr, BB: tl.constexpr):
    """[4 BU, BB], rows 4 u + q, -> gates i, f, g, o before their activation, each [BU, BB]."""
    b_pairs = tl.permute(tl.reshape(b_gates, (BU, 2, 2, BB)), (0, 3, 2, 1))  # [BU, BB, low bit of q, high bit]
    b_if, b_go = tl.split(b_pairs)
    b_i, b_f = tl.split(b_if)
    b_g, b_o = tl.split(b_go)
    return b_i, b_f, b_g, b_o


@triton.jit
def lstm_activate(b_i, b_f, b_g, b_o):
    """sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)."""
    # The sigmoid form of tanh overflows nowhere.
    return tl.sigmoid(b_i), tl.sigmoid(b_f), 2.0 * tl.sigmoid(2.0 * b_g) - 1.0, tl.sigmoid(b_o)


@triton.jit
def lstm_update(b_i, b_f, b_g, b_o, b_c):
    """(h', c') from activated gates and c, float32."""
    b_c = b_f * b_c + b_i * b_g
    return b_o * (2.0 * tl.sigmoid(2.0 * b_c) - 1.0), b_c
