r"""A WaveNet layer (WaveGlow's, also VITS' and Glow-TTS'), forward and backward.

With u = W_in * h (dilated convolution) + W_cond c + biases, [B, T, 2C], and a = tanh(u[:C]) sigmoid(u[C:]):

    h' = (W_res a + b_res + h) mask        skip' = skip + W_skip a + b_skip

Inside, everything is channels-last. Forward: one implicit GEMM of depth kC + D, whose epilogue is the gate, then one
of depth C, whose epilogue adds the residual and the skip; for C <= 256 one kernel does both and `a` stays on the
chip. For a backward pass it also writes tanh and sigmoid, which is all that is kept besides the inputs.

Backward, from dh' and dskip':

    da = W_res^T (dh' mask) + W_skip^T dskip'             GEMM of depth C + S
    du = [da s (1 - t^2), da t s (1 - s)]                 its epilogue
    dh = W_in^T * du (transposed convolution) + dh' mask  implicit GEMM of depth 2kC

Gradients of weights and conditioning are plain GEMMs over all positions, which cuBLAS does: du^T against the shifted
h, tap by tap, against c, and [dh', dskip']^T against a; dc = du W_cond.

Positions at or beyond an item's length are neither read nor computed; zeros are written there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from . import backend
from .arguments import SMALLEST_DOT
from .launch import Config, launch, pick_config, product_precision
from .reference.wavenet_layer import wavenet_layer as reference_wavenet_layer

OP = "wavenet_layer"
# Beyond, the two halves of u for all channels do not fit the registers; the compiler of Triton 3.2 dies of them.
FUSED_CHANNELS = 256 if backend.TRITON_VERSION >= (3, 3) else 0


def _config(bt: int, bn: int, bk: int, num_warps: int, num_stages: int) -> Config:
    return {"BT": bt, "BN": bn, "BK": bk, "num_warps": num_warps, "num_stages": num_stages}


# By the size of an element, the largest first: tiles of [BT, BN] with depth BK. All fit registers and shared memory
# from sm_80 on, which tests/kernels/test_compile.py proves.
GATE_CONFIGS = {  # two accumulators of [BT, BN]
    2: (_config(128, 64, 64, 8, 3), _config(64, 64, 64, 4, 3), _config(32, 32, 32, 4, 2)),
    4: (_config(64, 32, 32, 4, 3), _config(32, 32, 32, 4, 2)),
}
RES_SKIP_CONFIGS = {
    2: (_config(128, 128, 64, 8, 3), _config(64, 64, 64, 4, 3), _config(32, 32, 32, 4, 2)),
    4: (_config(128, 64, 32, 8, 3), _config(64, 64, 32, 4, 3), _config(32, 32, 32, 4, 2)),
}
GATE_BACKWARD_CONFIGS = {  # beside the accumulator, tanh and sigmoid
    2: (_config(128, 64, 64, 8, 3), _config(64, 64, 64, 4, 3), _config(32, 32, 32, 4, 2)),
    4: (_config(64, 64, 32, 8, 3), _config(32, 32, 32, 4, 2)),
}
INPUT_BACKWARD_CONFIGS = {
    2: (_config(128, 128, 64, 8, 3), _config(64, 64, 64, 4, 3), _config(32, 32, 32, 4, 2)),
    4: (_config(128, 64, 32, 8, 3), _config(64, 64, 32, 4, 3), _config(32, 32, 32, 4, 2)),
}
# Of the kernel for all channels, by the size of an element and whether there are more than 64 channels. BN is the
# width of a block of residual or skip channels.
FUSED_CONFIGS = {
    (2, True): (_config(64, 64, 32, 8, 3), _config(32, 32, 32, 8, 2)),
    (2, False): (_config(128, 32, 32, 8, 3), _config(32, 32, 32, 4, 2)),
    (4, True): (_config(32, 32, 16, 8, 2), _config(16, 16, 16, 8, 2)),
    (4, False): (_config(64, 32, 16, 8, 2), _config(32, 32, 32, 4, 2)),
}


# Offsets inside a tile are 32 bits wide and the same in every iteration; what can pass 2^31, the way to a tile's
# first row, is a scalar of 64 bits added to the pointer.


@triton.jit
def _load_tile(p_tile, o_row, m_row, s_row, o_col, n_col, EVEN: tl.constexpr):
    """[rows, columns] of a matrix whose columns are contiguous; zeros outside."""
    p_elements = p_tile + (o_row[:, None] * s_row + o_col[None, :])
    if EVEN:
        return tl.load(p_elements, mask=m_row[:, None], other=0.0)
    return tl.load(p_elements, mask=m_row[:, None] & (o_col < n_col)[None, :], other=0.0)


@triton.jit
def _store_tile(p_tile, b_x, o_row, m_row, s_row, o_col, n_col):
    p_elements = p_tile + (o_row[:, None] * s_row + o_col[None, :])
    tl.store(p_elements, b_x.to(p_tile.dtype.element_ty), mask=m_row[:, None] & (o_col < n_col)[None, :])


@triton.jit
def _length_of(p_lengths, i_b, T, HAS_LENGTHS: tl.constexpr):
    if HAS_LENGTHS:
        return tl.minimum(tl.load(p_lengths + i_b).to(tl.int32), T)
    return T


@triton.jit
def _add_bias(b_x, p_bias, o_n, m_n):
    return b_x + tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _multiply_mask(b_x, p_mask, i_b, t0, o_r, m_t, s_mb, s_mt):
    p_rows = p_mask + i_b.to(tl.int64) * s_mb + t0 * s_mt + o_r * s_mt
    return b_x * tl.load(p_rows, mask=m_t, other=0.0).to(b_x.dtype)[:, None]


@triton.jit
def _gate(
    p_h, p_cond, p_in_weight, p_in_bias, p_cond_weight, p_cond_bias, p_added,
    i_b, i_t, o_n, length, C, D, dilation,
    s_hb, s_ht, s_cb, s_ct, s_wn, s_wk, s_vn, s_ab, s_at, s_ac,
    TAPS: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HAS_COND: tl.constexpr,
    HAS_ADDED: tl.constexpr, HAS_IN_BIAS: tl.constexpr, HAS_COND_BIAS: tl.constexpr,
    EVEN_C: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """tanh and sigmoid halves of the positions of block i_t and channels o_n, each [BT, BN] float32."""
    o_r = tl.arange(0, BT)
    o_k = tl.arange(0, BK)
    t0 = i_t.to(tl.int64) * BT
    m_t = i_t * BT + o_r < length
    m_n = o_n < C
    b_tanh = tl.zeros((BT, BN), tl.float32)
    b_sigmoid = tl.zeros((BT, BN), tl.float32)
    p_block = p_h + i_b.to(tl.int64) * s_hb + t0 * s_ht
    # One loop over taps and channels, so that its loads are pipelined from end to end.
    n_blocks = tl.cdiv(C, BK)
    for i in range(0, TAPS * n_blocks):
        tap = i // n_blocks
        c = (i - tap * n_blocks) * BK
        shift = (tap - TAPS // 2) * dilation
        o_source = i_t * BT + shift + o_r
        m_source = (o_source >= 0) & (o_source < length)
        b_h = _load_tile(p_block + shift.to(tl.int64) * s_ht + c, o_r, m_source, s_ht, o_k, C - c, EVEN_C)  # [BT, BK]
        p_tap = p_in_weight + tap * s_wk + c
        b_w = _load_tile(p_tap, o_n, m_n, s_wn, o_k, C - c, EVEN_C)  # [BN, BK]
        b_tanh = tl.dot(b_h, tl.trans(b_w), b_tanh, input_precision=PRECISION)
        b_w = _load_tile(p_tap + C * s_wn, o_n, m_n, s_wn, o_k, C - c, EVEN_C)
        b_sigmoid = tl.dot(b_h, tl.trans(b_w), b_sigmoid, input_precision=PRECISION)
    if HAS_COND:
        p_block = p_cond + i_b.to(tl.int64) * s_cb + t0 * s_ct
        for d in range(0, D, BK):
            b_c = _load_tile(p_block + d, o_r, m_t, s_ct, o_k, D - d, EVEN_D)  # [BT, BK]
            b_w = _load_tile(p_cond_weight + d, o_n, m_n, s_vn, o_k, D - d, EVEN_D)  # [BN, BK]
            b_tanh = tl.dot(b_c, tl.trans(b_w), b_tanh, input_precision=PRECISION)
            b_w = _load_tile(p_cond_weight + C * s_vn + d, o_n, m_n, s_vn, o_k, D - d, EVEN_D)
            b_sigmoid = tl.dot(b_c, tl.trans(b_w), b_sigmoid, input_precision=PRECISION)
    if HAS_IN_BIAS:
        b_tanh = _add_bias(b_tanh, p_in_bias, o_n, m_n)
        b_sigmoid = _add_bias(b_sigmoid, p_in_bias + C, o_n, m_n)
    if HAS_COND_BIAS:
        b_tanh = _add_bias(b_tanh, p_cond_bias, o_n, m_n)
        b_sigmoid = _add_bias(b_sigmoid, p_cond_bias + C, o_n, m_n)
    if HAS_ADDED:
        # Projected for all layers at once it may come with any strides, of 0 where it is broadcast.
        p_tile = p_added + i_b.to(tl.int64) * s_ab + t0 * s_at + (o_r.to(tl.int64) * s_at)[:, None]
        p_tile += (o_n.to(tl.int64) * s_ac)[None, :]
        m_tile = m_t[:, None] & m_n[None, :]
        b_tanh += tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_sigmoid += tl.load(p_tile + C * s_ac, mask=m_tile, other=0.0).to(tl.float32)
    # The sigmoid form of tanh overflows nowhere.
    return 2.0 * tl.sigmoid(2.0 * b_tanh) - 1.0, tl.sigmoid(b_sigmoid)


@triton.jit
def _store_gate(p_gate, b_tanh, b_sigmoid, i_b, t0, o_r, m_inside, o_n, T, C):
    """Writes tanh and sigmoid to [B, T, 2C]."""
    p_block = p_gate + (i_b.to(tl.int64) * T + t0) * (2 * C)
    _store_tile(p_block, b_tanh, o_r, m_inside, 2 * C, o_n, C)
    _store_tile(p_block + C, b_sigmoid, o_r, m_inside, 2 * C, o_n, C)


@triton.jit
def _store_residual(
    b_x, p_bias, p_h, p_mask, p_next, i_b, t0, o_r, m_t, m_inside, o_n, T, C, s_hb, s_ht, s_mb, s_mt,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Writes (x + bias + h) mask to [B, T, C], zeros where not m_t."""
    if HAS_BIAS:
        b_x = _add_bias(b_x, p_bias, o_n, o_n < C)
    p_block = p_h + i_b.to(tl.int64) * s_hb + t0 * s_ht
    b_x += _load_tile(p_block, o_r, m_t, s_ht, o_n, C, False).to(tl.float32)
    if HAS_MASK:
        b_x = _multiply_mask(b_x, p_mask, i_b, t0, o_r, m_t, s_mb, s_mt)
    b_x = tl.where(m_t[:, None], b_x, 0.0)
    _store_tile(p_next + (i_b.to(tl.int64) * T + t0) * C, b_x, o_r, m_inside, C, o_n, C)


@triton.jit
def _store_skip(
    b_x, p_bias, p_skip, p_next_skip, i_b, t0, o_r, m_t, m_inside, o_n, T, R, S, s_sb, s_st, s_sc,
    HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
):  # fmt: skip
    """Writes skip + x + bias to [B, T, S], zeros where not m_t."""
    m_n = o_n < S
    if HAS_BIAS:
        b_x = _add_bias(b_x, p_bias + R, o_n, m_n)
    if HAS_SKIP:
        p_tile = p_skip + i_b.to(tl.int64) * s_sb + t0 * s_st + (o_r.to(tl.int64) * s_st)[:, None]
        p_tile += (o_n.to(tl.int64) * s_sc)[None, :]
        b_x += tl.load(p_tile, mask=m_t[:, None] & m_n[None, :], other=0.0).to(tl.float32)
    b_x = tl.where(m_t[:, None], b_x, 0.0)
    _store_tile(p_next_skip + (i_b.to(tl.int64) * T + t0) * S, b_x, o_r, m_inside, S, o_n, S)


@triton.jit
def wavenet_gate_fwd_kernel(
    p_h, p_cond, p_in_weight, p_in_bias, p_cond_weight, p_cond_bias, p_added, p_lengths, p_acts, p_gate,
    T, C, D, dilation,
    s_hb, s_ht, s_cb, s_ct, s_wn, s_wk, s_vn, s_ab, s_at, s_ac,
    TAPS: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HAS_COND: tl.constexpr,
    HAS_ADDED: tl.constexpr, HAS_IN_BIAS: tl.constexpr, HAS_COND_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    SAVE_GATE: tl.constexpr, EVEN_C: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acts = tanh(u[:C]) sigmoid(u[C:]), [B, T, C]; grid (blocks of T, blocks of C, B)."""
    i_t, i_n, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_r = tl.arange(0, BT)
    o_n = i_n * BN + tl.arange(0, BN)
    t0 = i_t.to(tl.int64) * BT
    length = _length_of(p_lengths, i_b, T, HAS_LENGTHS)
    b_tanh = tl.zeros((BT, BN), tl.float32)
    b_sigmoid = tl.zeros((BT, BN), tl.float32)
    if i_t * BT < length:
        b_tanh, b_sigmoid = _gate(
            p_h, p_cond, p_in_weight, p_in_bias, p_cond_weight, p_cond_bias, p_added,
            i_b, i_t, o_n, length, C, D, dilation, s_hb, s_ht, s_cb, s_ct, s_wn, s_wk, s_vn, s_ab, s_at, s_ac,
            TAPS, BT, BN, BK, HAS_COND, HAS_ADDED, HAS_IN_BIAS, HAS_COND_BIAS, EVEN_C, EVEN_D, PRECISION,
        )  # fmt: skip
        b_tanh = tl.where((i_t * BT + o_r < length)[:, None], b_tanh, 0.0)
        b_sigmoid = tl.where((i_t * BT + o_r < length)[:, None], b_sigmoid, 0.0)
    m_inside = i_t * BT + o_r < T
    if SAVE_GATE:
        _store_gate(p_gate, b_tanh, b_sigmoid, i_b, t0, o_r, m_inside, o_n, T, C)
    _store_tile(p_acts + (i_b.to(tl.int64) * T + t0) * C, b_tanh * b_sigmoid, o_r, m_inside, C, o_n, C)


@triton.jit
def wavenet_res_skip_fwd_kernel(
    p_acts, p_weight, p_bias, p_h, p_skip, p_mask, p_lengths, p_next, p_next_skip,
    T, C, R, S, n_residual_blocks,
    s_hb, s_ht, s_rn, s_sb, s_st, s_sc, s_mb, s_mt,
    BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, EVEN_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The next h and skip; grid (blocks of T, blocks of residual rows then of skip rows, B)."""
    i_t, i_n, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    is_residual = i_n < n_residual_blocks
    o_r = tl.arange(0, BT)
    o_k = tl.arange(0, BK)
    o_n = (i_n - tl.where(is_residual, 0, n_residual_blocks)) * BN + tl.arange(0, BN)
    m_n = o_n < tl.where(is_residual, R, S)
    t0 = i_t.to(tl.int64) * BT
    length = _length_of(p_lengths, i_b, T, HAS_LENGTHS)
    m_t = i_t * BT + o_r < length
    b_x = tl.zeros((BT, BN), tl.float32)
    if i_t * BT < length:
        p_block = p_acts + (i_b.to(tl.int64) * T + t0) * C
        p_rows = p_weight + tl.where(is_residual, 0, R) * s_rn
        for c in range(0, C, BK):
            b_acts = _load_tile(p_block + c, o_r, m_t, C, o_k, C - c, EVEN_C)  # [BT, BK]
            b_w = _load_tile(p_rows + c, o_n, m_n, s_rn, o_k, C - c, EVEN_C)  # [BN, BK]
            b_x = tl.dot(b_acts, tl.trans(b_w), b_x, input_precision=PRECISION)
    m_inside = i_t * BT + o_r < T
    if HAS_RESIDUAL:
        if is_residual:
            _store_residual(
                b_x, p_bias, p_h, p_mask, p_next, i_b, t0, o_r, m_t, m_inside, o_n, T, C, s_hb, s_ht, s_mb, s_mt,
                HAS_BIAS, HAS_MASK,
            )  # fmt: skip
    if i_n >= n_residual_blocks:
        _store_skip(
            b_x, p_bias, p_skip, p_next_skip, i_b, t0, o_r, m_t, m_inside, o_n, T, R, S, s_sb, s_st, s_sc,
            HAS_BIAS, HAS_SKIP,
        )  # fmt: skip


@triton.jit
def wavenet_layer_fwd_kernel(
    p_h, p_cond, p_in_weight, p_in_bias, p_cond_weight, p_cond_bias, p_added, p_lengths, p_gate,
    p_weight, p_bias, p_skip, p_mask, p_next, p_next_skip,
    T, C, D, R, S, dilation,
    s_hb, s_ht, s_cb, s_ct, s_wn, s_wk, s_vn, s_ab, s_at, s_ac, s_rn, s_sb, s_st, s_sc, s_mb, s_mt,
    TAPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    HAS_COND: tl.constexpr, HAS_ADDED: tl.constexpr, HAS_IN_BIAS: tl.constexpr, HAS_COND_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, SAVE_GATE: tl.constexpr, EVEN_C: tl.constexpr, EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Both GEMMs for all channels of BT positions; BC >= C. Grid (blocks of T, B)."""
    i_t, i_b = tl.program_id(0), tl.program_id(1)
    o_r = tl.arange(0, BT)
    o_c = tl.arange(0, BC)
    o_n = tl.arange(0, BN)
    t0 = i_t.to(tl.int64) * BT
    length = _length_of(p_lengths, i_b, T, HAS_LENGTHS)
    m_t = i_t * BT + o_r < length
    m_inside = i_t * BT + o_r < T
    b_tanh = tl.zeros((BT, BC), tl.float32)
    b_sigmoid = tl.zeros((BT, BC), tl.float32)
    if i_t * BT < length:
        b_tanh, b_sigmoid = _gate(
            p_h, p_cond, p_in_weight, p_in_bias, p_cond_weight, p_cond_bias, p_added,
            i_b, i_t, o_c, length, C, D, dilation, s_hb, s_ht, s_cb, s_ct, s_wn, s_wk, s_vn, s_ab, s_at, s_ac,
            TAPS, BT, BC, BK, HAS_COND, HAS_ADDED, HAS_IN_BIAS, HAS_COND_BIAS, EVEN_C, EVEN_D, PRECISION,
        )  # fmt: skip
    if SAVE_GATE:
        b_tanh = tl.where(m_t[:, None], b_tanh, 0.0)
        b_sigmoid = tl.where(m_t[:, None], b_sigmoid, 0.0)
        _store_gate(p_gate, b_tanh, b_sigmoid, i_b, t0, o_r, m_inside, o_c, T, C)
    b_acts = (b_tanh * b_sigmoid).to(p_h.dtype.element_ty)  # [BT, BC]
    if HAS_RESIDUAL:
        for r in range(0, R, BN):
            b_w = _load_tile(p_weight + r * s_rn, o_n, o_n < R - r, s_rn, o_c, C, False)  # [BN, BC]
            b_x = tl.dot(b_acts, tl.trans(b_w), input_precision=PRECISION)
            _store_residual(
                b_x, p_bias, p_h, p_mask, p_next, i_b, t0, o_r, m_t, m_inside, r + o_n, T, C, s_hb, s_ht, s_mb, s_mt,
                HAS_BIAS, HAS_MASK,
            )  # fmt: skip
    for s in range(0, S, BN):
        b_w = _load_tile(p_weight + (R + s) * s_rn, o_n, o_n < S - s, s_rn, o_c, C, False)
        b_x = tl.dot(b_acts, tl.trans(b_w), input_precision=PRECISION)
        _store_skip(
            b_x, p_bias, p_skip, p_next_skip, i_b, t0, o_r, m_t, m_inside, s + o_n, T, R, S, s_sb, s_st, s_sc,
            HAS_BIAS, HAS_SKIP,
        )  # fmt: skip


@triton.jit
def wavenet_gate_bwd_kernel(
    p_dnext, p_dskip, p_weight, p_gate, p_mask, p_lengths, p_du, p_acts,
    T, C, R, S,
    s_db, s_dt, s_eb, s_et, s_rn, s_mb, s_mt,
    BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HAS_DNEXT: tl.constexpr, HAS_DSKIP: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENGTHS: tl.constexpr, EVEN_C: tl.constexpr, EVEN_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """du [B, T, 2C] and acts [B, T, C]; grid (blocks of T, blocks of C, B)."""
    i_t, i_n, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_r = tl.arange(0, BT)
    o_n = i_n * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    t0 = i_t.to(tl.int64) * BT
    length = _length_of(p_lengths, i_b, T, HAS_LENGTHS)
    m_t = i_t * BT + o_r < length
    b_da = tl.zeros((BT, BN), tl.float32)
    if i_t * BT < length:
        if HAS_DNEXT:
            p_block = p_dnext + i_b.to(tl.int64) * s_db + t0 * s_dt
            for r in range(0, R, BK):
                b_d = _load_tile(p_block + r, o_r, m_t, s_dt, o_k, R - r, EVEN_C)  # [BT, BK]
                if HAS_MASK:
                    b_d = _multiply_mask(b_d, p_mask, i_b, t0, o_r, m_t, s_mb, s_mt)
                b_w = _load_tile(p_weight + r * s_rn, o_k, o_k < R - r, s_rn, o_n, C, False)  # [BK, BN]
                b_da = tl.dot(b_d, b_w, b_da, input_precision=PRECISION)
        if HAS_DSKIP:
            p_block = p_dskip + i_b.to(tl.int64) * s_eb + t0 * s_et
            for s in range(0, S, BK):
                b_d = _load_tile(p_block + s, o_r, m_t, s_et, o_k, S - s, EVEN_S)
                b_w = _load_tile(p_weight + (R + s) * s_rn, o_k, o_k < S - s, s_rn, o_n, C, False)
                b_da = tl.dot(b_d, b_w, b_da, input_precision=PRECISION)
    p_block = p_gate + (i_b.to(tl.int64) * T + t0) * (2 * C)
    b_tanh = _load_tile(p_block, o_r, m_t, 2 * C, o_n, C, False).to(tl.float32)
    b_sigmoid = _load_tile(p_block + C, o_r, m_t, 2 * C, o_n, C, False).to(tl.float32)
    m_inside = i_t * BT + o_r < T
    o_row = i_b.to(tl.int64) * T + t0
    _store_tile(p_acts + o_row * C, b_tanh * b_sigmoid, o_r, m_inside, C, o_n, C)
    p_block = p_du + o_row * (2 * C)
    _store_tile(p_block, b_da * b_sigmoid * (1.0 - b_tanh * b_tanh), o_r, m_inside, 2 * C, o_n, C)
    _store_tile(p_block + C, b_da * b_tanh * b_sigmoid * (1.0 - b_sigmoid), o_r, m_inside, 2 * C, o_n, C)


@triton.jit
def wavenet_input_bwd_kernel(
    p_du, p_in_weight, p_dnext, p_mask, p_lengths, p_dh,
    T, C, dilation,
    s_wn, s_wk, s_db, s_dt, s_mb, s_mt,
    TAPS: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HAS_DNEXT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENGTHS: tl.constexpr, EVEN_2C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dh [B, T, C]; grid (blocks of T, blocks of C, B)."""
    i_t, i_n, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_r = tl.arange(0, BT)
    o_n = i_n * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    t0 = i_t.to(tl.int64) * BT
    length = _length_of(p_lengths, i_b, T, HAS_LENGTHS)
    m_t = i_t * BT + o_r < length
    b_dh = tl.zeros((BT, BN), tl.float32)
    if i_t * BT < length:
        p_block = p_du + (i_b.to(tl.int64) * T + t0) * (2 * C)
        n_blocks = tl.cdiv(2 * C, BK)
        for i in range(0, TAPS * n_blocks):
            tap = i // n_blocks
            u = (i - tap * n_blocks) * BK
            shift = (TAPS // 2 - tap) * dilation
            o_source = i_t * BT + shift + o_r
            m_source = (o_source >= 0) & (o_source < length)
            p_source = p_block + shift.to(tl.int64) * (2 * C) + u
            b_du = _load_tile(p_source, o_r, m_source, 2 * C, o_k, 2 * C - u, EVEN_2C)  # [BT, BK]
            p_tap = p_in_weight + tap * s_wk + u * s_wn
            b_w = _load_tile(p_tap, o_k, o_k < 2 * C - u, s_wn, o_n, C, False)  # [BK, BN]
            b_dh = tl.dot(b_du, b_w, b_dh, input_precision=PRECISION)
    if HAS_DNEXT:
        p_block = p_dnext + i_b.to(tl.int64) * s_db + t0 * s_dt
        b_d = _load_tile(p_block, o_r, m_t, s_dt, o_n, C, False).to(tl.float32)
        if HAS_MASK:
            b_d = _multiply_mask(b_d, p_mask, i_b, t0, o_r, m_t, s_mb, s_mt)
        b_dh += b_d
    b_dh = tl.where(m_t[:, None], b_dh, 0.0)
    _store_tile(p_dh + (i_b.to(tl.int64) * T + t0) * C, b_dh, o_r, i_t * BT + o_r < T, C, o_n, C)


def _pick(kernel: str, configs: tuple[Config, ...], x: Tensor, rows: int, channels: int) -> Config:
    def largest_that_fills(dtype: torch.dtype, rows: int, channels: int) -> Config:
        return next((c for c in configs if rows >= 4 * c["BT"]), configs[-1])

    return pick_config(kernel, configs, largest_that_fills, x, rows=rows, channels=channels)


def _strides(x: Tensor | None, *dims: int) -> tuple[int, ...]:
    return (0,) * len(dims) if x is None else tuple(x.stride(d) for d in dims)


def _channels_last(x: Tensor | None) -> Tensor | None:
    """[B, n, T] -> [B, T, n] with contiguous channels: a copy for a signal that comes with contiguous time, which
    costs a fraction of the GEMM that would otherwise gather it; results are views that need none."""
    if x is None:
        return None
    x = x.transpose(1, 2)
    return x if x.stride(2) == 1 else x.contiguous()


def _rows_apart(weight: Tensor | None) -> Tensor | None:
    """[out, in, k] with contiguous input channels: what `weight_norm_packed` writes needs no copy."""
    if weight is None or weight.stride(1) == 1:
        return weight
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def _dense(x: Tensor | None) -> Tensor | None:
    """A vector with stride 1; copies only what is an odd view."""
    return None if x is None else x.contiguous()


def _forward(
    h: Tensor,
    cond: Tensor | None,
    in_weight: Tensor,
    in_bias: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    skip: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    dilation: int,
    save_gate: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """(next h [B, T, C], next skip [B, T, S], tanh and sigmoid [B, T, 2C] if wanted); everything channels-last."""
    B, T, C = h.shape
    rows = weight.shape[0]
    R = C if rows > C else 0
    S = rows - R
    next_h = torch.empty((B, T, C), dtype=h.dtype, device=h.device) if R else None
    next_skip = torch.empty((B, T, S), dtype=h.dtype if skip is None else skip.dtype, device=h.device)
    gate = torch.empty((B, T, 2 * C), dtype=h.dtype, device=h.device) if save_gate else None
    if next_skip.numel() == 0:
        return next_h, next_skip, gate
    D = 0 if cond is None else cond.shape[2]
    gate_inputs = (h, cond, in_weight, in_bias, cond_weight, cond_bias, added, lengths)
    gate_strides = (
        *_strides(h, 0, 1),
        *_strides(cond, 0, 1),
        *_strides(in_weight, 0, 2),
        *_strides(cond_weight, 0),
        *_strides(None if added is None else added.expand(B, T, 2 * C), 0, 1, 2),
    )
    gate_flags = {
        "TAPS": in_weight.shape[2],
        "HAS_COND": cond is not None,
        "HAS_ADDED": added is not None,
        "HAS_IN_BIAS": in_bias is not None,
        "HAS_COND_BIAS": cond_bias is not None,
        "HAS_LENGTHS": lengths is not None,
        "SAVE_GATE": save_gate,
        "PRECISION": product_precision(h.dtype, convolution=True),
    }
    out_flags = {
        "HAS_RESIDUAL": R > 0,
        "HAS_BIAS": bias is not None,
        "HAS_SKIP": skip is not None,
        "HAS_MASK": mask is not None,
    }
    out_strides = (*_strides(weight, 0), *_strides(skip, 0, 1, 2), *_strides(mask, 0, 1))
    width = h.dtype.itemsize
    if C <= FUSED_CHANNELS:
        config = _pick("wavenet_layer_fwd", FUSED_CONFIGS[width, C > 64], h, B * T, C)
        launch(
            OP, wavenet_layer_fwd_kernel, (triton.cdiv(T, config["BT"]), B),
            *gate_inputs, gate, weight, bias, skip, mask, next_h, next_skip,
            T, C, D, R, S, dilation, *gate_strides, *out_strides,
            device=h.device, BC=max(SMALLEST_DOT, triton.next_power_of_2(C)),
            EVEN_C=C % config["BK"] == 0, EVEN_D=D % config["BK"] == 0, **config, **gate_flags, **out_flags,
        )  # fmt: skip
        return next_h, next_skip, gate
    acts = torch.empty((B, T, C), dtype=h.dtype, device=h.device)
    config = _pick("wavenet_gate_fwd", GATE_CONFIGS[width], h, B * T, C)
    launch(
        OP, wavenet_gate_fwd_kernel, (triton.cdiv(T, config["BT"]), triton.cdiv(C, config["BN"]), B),
        *gate_inputs, acts, gate, T, C, D, dilation, *gate_strides,
        device=h.device, EVEN_C=C % config["BK"] == 0, EVEN_D=D % config["BK"] == 0, **config, **gate_flags,
    )  # fmt: skip
    config = _pick("wavenet_res_skip_fwd", RES_SKIP_CONFIGS[width], h, B * T, C)
    residual_blocks, skip_blocks = triton.cdiv(R, config["BN"]), triton.cdiv(S, config["BN"])
    launch(
        OP, wavenet_res_skip_fwd_kernel, (triton.cdiv(T, config["BT"]), residual_blocks + skip_blocks, B),
        acts, weight, bias, h, skip, mask, lengths, next_h, next_skip,
        T, C, R, S, residual_blocks, *_strides(h, 0, 1), *out_strides,
        device=h.device, HAS_LENGTHS=lengths is not None, EVEN_C=C % config["BK"] == 0,
        PRECISION=product_precision(h.dtype, convolution=True),
        **config, **out_flags,
    )  # fmt: skip
    return next_h, next_skip, gate


def _backward_data(
    dnext: Tensor | None,
    dskip: Tensor | None,
    in_weight: Tensor,
    weight: Tensor,
    gate: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    dilation: int,
    wants_dh: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(dh [B, T, C] if wanted, du [B, T, 2C], acts [B, T, C])."""
    B, T, C = gate.shape[0], gate.shape[1], gate.shape[2] // 2
    R = C if weight.shape[0] > C else 0
    S = weight.shape[0] - R
    width = gate.dtype.itemsize
    du = torch.empty_like(gate)
    acts = torch.empty((B, T, C), dtype=gate.dtype, device=gate.device)
    flags = {
        "HAS_DNEXT": dnext is not None,
        "HAS_MASK": mask is not None,
        "HAS_LENGTHS": lengths is not None,
        "PRECISION": product_precision(gate.dtype, convolution=True),
    }
    config = _pick("wavenet_gate_bwd", GATE_BACKWARD_CONFIGS[width], gate, B * T, C)
    launch(
        OP, wavenet_gate_bwd_kernel, (triton.cdiv(T, config["BT"]), triton.cdiv(C, config["BN"]), B),
        dnext, dskip, weight, gate, mask, lengths, du, acts, T, C, R, S,
        *_strides(dnext, 0, 1), *_strides(dskip, 0, 1), *_strides(weight, 0), *_strides(mask, 0, 1),
        device=gate.device, HAS_DSKIP=dskip is not None, EVEN_C=C % config["BK"] == 0, EVEN_S=S % config["BK"] == 0,
        **config, **flags,
    )  # fmt: skip
    if not wants_dh:
        return None, du, acts
    dh = torch.empty((B, T, C), dtype=gate.dtype, device=gate.device)
    config = _pick("wavenet_input_bwd", INPUT_BACKWARD_CONFIGS[width], gate, B * T, C)
    launch(
        OP, wavenet_input_bwd_kernel, (triton.cdiv(T, config["BT"]), triton.cdiv(C, config["BN"]), B),
        du, in_weight, dnext, mask, lengths, dh, T, C, dilation,
        *_strides(in_weight, 0, 2), *_strides(dnext, 0, 1), *_strides(mask, 0, 1),
        device=gate.device, TAPS=in_weight.shape[2], EVEN_2C=2 * C % config["BK"] == 0, **config, **flags,
    )  # fmt: skip
    return dh, du, acts


def _weight_gradient(d: Tensor, x: Tensor) -> Tensor:
    """[out, in] from [B, n, out] and [B, n, in]: an item's product is long enough to be efficient, and with all of
    them side by side the few tiles of [out, in] fill the GPU."""
    products = torch.bmm(d.transpose(1, 2), x)
    return products[0] if len(products) == 1 else products.sum(0)


def _tap_gradients(du: Tensor, h: Tensor, taps: int, dilation: int) -> Tensor:
    """[2C, C, taps], the channels contiguous, from du [B, T, 2C] and h [B, T, C]."""
    T = h.shape[1]
    gradient = torch.zeros((du.shape[2], taps, h.shape[2]), dtype=h.dtype, device=h.device)
    for tap in range(taps):
        shift = (tap - taps // 2) * dilation
        first, last = max(0, -shift), min(T, T - shift)  # of the positions whose source is inside
        if first < last:
            gradient[:, tap] = _weight_gradient(du[:, first:last], h[:, first + shift : last + shift])
    return gradient.transpose(1, 2)


def _inside(x: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """[B, T, n] with zeros beyond each length."""
    if x is None or lengths is None:
        return x
    beyond = torch.arange(x.shape[1], device=x.device) >= lengths.view(-1, 1)
    return x.masked_fill(beyond.unsqueeze(2), 0.0)


class _WaveNetLayer(torch.autograd.Function):
    """Arguments of `_forward`, channels-last."""

    @staticmethod
    def forward(
        ctx, h, cond, in_weight, in_bias, cond_weight, cond_bias, weight, bias, added, skip, mask, lengths, dilation
    ):
        next_h, next_skip, gate = _forward(
            h, cond, in_weight, in_bias, cond_weight, cond_bias, weight, bias, added, skip, mask, lengths, dilation,
            save_gate=any(ctx.needs_input_grad),
        )  # fmt: skip
        ctx.save_for_backward(h, cond, in_weight, cond_weight, weight, gate, mask, lengths)
        ctx.dilation = dilation
        ctx.added_shape = None if added is None else added.shape
        ctx.set_materialize_grads(False)
        return next_h, next_skip

    @staticmethod
    @once_differentiable
    def backward(ctx, dnext, dskip):
        h, cond, in_weight, cond_weight, weight, gate, mask, lengths = ctx.saved_tensors
        (wants_h, wants_cond, wants_in_weight, wants_in_bias, wants_cond_weight, wants_cond_bias, wants_weight,
         wants_bias, wants_added, wants_skip) = ctx.needs_input_grad[:10]  # fmt: skip
        if dnext is None and dskip is None:
            return (None,) * 13
        dskip_given = _inside(dskip, lengths)
        # The sums may be kept in another dtype than the signal; a gradient that was expanded has strides of 0.
        dskip = None if dskip is None else dskip_given.to(gate.dtype).contiguous()
        dnext = None if dnext is None else dnext.contiguous()
        if gate.numel() == 0:
            dh, du, acts = torch.zeros_like(h), torch.empty_like(gate), torch.empty_like(h)
        else:
            dh, du, acts = _backward_data(
                dnext, dskip, in_weight, weight, gate, mask, lengths, ctx.dilation, wants_dh=wants_h
            )
        dcond = du @ cond_weight[:, :, 0] if wants_cond else None
        din_weight = dcond_weight = dbias = dweight = dout_bias = dadded = None
        if wants_in_weight:
            din_weight = _tap_gradients(du, _inside(h, lengths), in_weight.shape[2], ctx.dilation)
        if wants_cond_weight:
            dcond_weight = _weight_gradient(du, _inside(cond, lengths)).unsqueeze(2)
        if wants_in_bias or wants_cond_bias:
            dbias = du.sum((0, 1))
        if wants_added:
            broadcast = [d for d in (0, 1) if ctx.added_shape[d] == 1 < du.shape[d]]
            dadded = du.sum(broadcast, keepdim=True) if broadcast else du
        if wants_weight or wants_bias:
            parts = [_inside(dskip, lengths)]
            if weight.shape[0] > h.shape[2]:
                masked = dnext if dnext is None or mask is None else dnext * mask
                parts.insert(0, _inside(masked, lengths))
            widths = [h.shape[2], weight.shape[0] - h.shape[2]] if len(parts) == 2 else [weight.shape[0]]
            parts = [
                h.new_zeros((*h.shape[:2], n)) if part is None else part for part, n in zip(parts, widths, strict=True)
            ]
            if wants_weight:
                dweight = torch.cat([_weight_gradient(part, acts) for part in parts]).unsqueeze(2)
            if wants_bias:
                dout_bias = torch.cat([part.sum((0, 1)) for part in parts])
        return (
            dh, dcond, din_weight, dbias if wants_in_bias else None, dcond_weight, dbias if wants_cond_bias else None,
            dweight, dout_bias, dadded, dskip_given if wants_skip else None, None, None, None,
        )  # fmt: skip


def wavenet_layer(
    h: Tensor,
    conditioning: Tensor | None,
    in_weight: Tensor,
    in_bias: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    dilation: int,
    mask: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Dilated convolution plus conditioning, gate, then the residual and skip 1x1 convolutions.

    Results are views of channels-last memory, and signals that are such views are read as they are: a stack of
    layers needs no transposition between its first and its last. Weights are wanted with contiguous input channels,
    as `weight_norm_packed` gives them; others are copied.

    Args:
        h: hidden signal, [B, C, T]; float32, float16 or bfloat16; fastest with C a multiple of 16.
        conditioning: [B, D, T], projected by cond_weight; without a cond_weight [B, 2C, T] or [B, 2C, 1], added
            as it is (VITS and Glow-TTS project the conditioning of all layers at once); or absent.
        in_weight: [2C, C, k] with odd k; in_bias: [2C] or absent.
        cond_weight: [2C, D, 1]; cond_bias: [2C]; or absent.
        res_skip_weight: [C + S, C, 1], residual rows first, or [S, C, 1] in a last layer, which has no residual.
            S is C, or less where a linear layer after the skip sum has been folded in; res_skip_bias: one a row.
        dilation: step between the taps.
        mask: [B, 1, T], 1 where the signal is and 0 in padding, multiplied with the next h (as VITS does). With
            it the padding of an item stays zero, as it is beyond the ends of an unpadded signal.
        lengths: [B] integers: what lies beyond an item's length is not read, and zero in the results. They are
            read on the device, and blocks past the end cost nothing.
        skip: [B, S, T], sum of the skips of the layers before.

    Returns:
        (h of the next layer [B, C, T], or None from a last layer; skip [B, S, T], added to the given one and of
        its dtype).

    Raises:
        FastglowError: shapes that do not fit each other.
    """
    _check_shapes(h, conditioning, in_weight, cond_weight, res_skip_weight, dilation, mask, lengths, skip)
    tensors = [h, conditioning, in_weight, in_bias, cond_weight, cond_bias, res_skip_weight, res_skip_bias]
    dtype = backend.autocast_dtype(h)
    if dtype is not None:
        tensors = [None if x is None else x.to(dtype) for x in tensors]
    if not backend.picks_triton(OP, *tensors, mask, lengths, skip, unsupported=_unsupported(tensors)):
        return reference_wavenet_layer(*tensors, dilation, mask, lengths=lengths, skip=skip)
    h, conditioning, in_weight, in_bias, cond_weight, cond_bias, res_skip_weight, res_skip_bias = tensors
    projected = cond_weight is not None
    next_h, next_skip = _WaveNetLayer.apply(
        _channels_last(h),
        _channels_last(conditioning) if projected else None,
        _rows_apart(in_weight),
        _dense(in_bias),
        _rows_apart(cond_weight),
        _dense(cond_bias) if projected else None,
        _rows_apart(res_skip_weight),
        _dense(res_skip_bias),
        None if projected or conditioning is None else conditioning.transpose(1, 2),
        None if skip is None else skip.transpose(1, 2),
        None if mask is None else mask.to(h.dtype).transpose(1, 2),
        _dense(lengths),
        dilation,
    )
    return (None if next_h is None else next_h.transpose(1, 2)), next_skip.transpose(1, 2)


def _unsupported(tensors: list[Tensor | None]) -> str | None:
    dtypes = {str(x.dtype).removeprefix("torch.") for x in tensors if x is not None}
    if len(dtypes) > 1:
        return f"its tensors have the dtypes {', '.join(sorted(dtypes))}"
    return None


def _check_shapes(h, conditioning, in_weight, cond_weight, res_skip_weight, dilation, mask, lengths, skip) -> None:
    B, C, T = h.shape
    rows = res_skip_weight.shape[0]
    S = rows - C if rows > C else rows
    if in_weight.shape[:2] != (2 * C, C) or in_weight.shape[2] % 2 == 0:
        raise FastglowError(f"in_weight has shape {tuple(in_weight.shape)}: {C} channels take [{2 * C}, {C}, odd k]")
    if res_skip_weight.shape[1:] != (C, 1) or not 0 < S <= C:
        raise FastglowError(
            f"res_skip_weight has shape {tuple(res_skip_weight.shape)}: {C} channels take "
            f"[{C} + S, {C}, 1], or [S, {C}, 1] in a last layer, S at most {C}"
        )
    if dilation < 1:
        raise FastglowError(f"dilation {dilation} must be at least 1")
    expected = {
        "mask": (mask, (B, 1, T)),
        "lengths": (lengths, (B,)),
        "skip": (skip, (B, S, T)),
        "cond_weight": (cond_weight, (2 * C, 0 if conditioning is None else conditioning.shape[1], 1)),
    }
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != shape:
            raise FastglowError(f"{name} has shape {tuple(x.shape)}, not {shape}, beside h {tuple(h.shape)}")
    if conditioning is None:
        return
    if cond_weight is not None:
        fits = conditioning.shape[0] == B and conditioning.shape[2] == T
    else:
        fits = conditioning.shape[1] == 2 * C and conditioning.shape[0] in (1, B) and conditioning.shape[2] in (1, T)
    if not fits:
        kind = "[B, D, T]" if cond_weight is not None else "[B or 1, 2C, T or 1] without a cond_weight"
        raise FastglowError(f"conditioning has shape {tuple(conditioning.shape)}, not {kind}, beside {tuple(h.shape)}")
