"""An LSTM cell, forward and backward, and the parts that every kernel with an LSTM in it is made of.

The four gates of a unit stay together: a tile of BU units has 4 BU rows, row 4 u + q being gate q (i, f, g, o) of
unit u, so that c' and h' are the epilogue of the product that makes the gates. Rows are units and columns are items:
the weights are the operand with many rows, which is what tensor cores want at any batch size.

With i, f, g, o the activated gates, and a the share of the new value and b that of the previous one in what is
returned (after zoneout and dropout; 1 and 0 without):

    C = f c + i g            H = o tanh(C)            c' = a_c C + b_c c            h' = a_h H + b_h h

    dC  = a_c dc' + a_h dh' o (1 - tanh(C)^2)         dc = dC f + b_c dc'
    di' = dC g i (1 - i)     df' = dC c f (1 - f)     dg' = dC i (1 - g^2)          do' = a_h dh' tanh(C) o (1 - o)
    dx  = W_ih^T dgates      dh = W_hh^T dgates + b_h dh'                           dW = dgates [x, h]^T

Forward keeps the activated gates, in the dtype of x, if there is to be a backward pass; C and the masks are made
again. Backward, one kernel does all that is elementwise; products with the weights, and those that make the weights'
gradients, have nothing left to fuse: cuBLAS does them.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from .. import backend
from ..launch import Config, launch, pick_config, product_precision
from ..reference.lstm_cell import MASK_STREAM
from ..reference.lstm_cell import lstm_cell as reference_lstm_cell
from ..reference.philox import dropped_words, random_seed
from .cell import GateBlocks, GateTile, lstm_activate, lstm_gates, lstm_split, lstm_update

OP = "lstm_cell"


def _config(bu: int, bb: int, bk: int, num_warps: int, num_stages: int) -> Config:
    return {"BU": bu, "BB": bb, "BK": bk, "num_warps": num_warps, "num_stages": num_stages}


# By the size of an element, the largest first: tiles of BU units and BB items, with depth BK. For few items they are
# flat and deep: what counts is how many bytes of the weights are on their way. The last is for one item, without
# tensor cores.
FORWARD_CONFIGS = {
    2: (
        _config(32, 64, 64, 8, 3),
        _config(16, 64, 64, 8, 4),
        _config(16, 32, 64, 4, 4),
        _config(8, 16, 128, 4, 5),
        _config(4, 16, 256, 4, 4),
        _config(2, 1, 1024, 4, 1),
    ),
    4: (
        _config(16, 64, 32, 8, 3),
        _config(16, 32, 32, 4, 4),
        _config(8, 16, 64, 4, 5),
        _config(4, 16, 128, 4, 4),
        _config(2, 1, 512, 4, 1),
    ),
}
BACKWARD_CONFIGS = ({"BU": 1024, "num_warps": 4, "num_stages": 1}, {"BU": 256, "num_warps": 2, "num_stages": 1})
PROGRAMS = 128  # that keep a GPU's memory busy

_STREAM = tl.constexpr(MASK_STREAM)


@triton.jit
def lstm_gates_of_one(
    p_x, p_weight, o_u, n, K, s_w, BU: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr
):  # fmt: skip
    """W x of one item, [4 BU] float32, without tensor cores; arguments as of `lstm_gates`."""
    o_k = tl.arange(0, BK)
    o_row = (tl.arange(0, 4 * BU) % 4) * n + o_u
    p_w = p_weight + (o_row.to(tl.int64) * s_w)[:, None] + o_k[None, :]
    m_u = o_u < n
    b_sums = tl.zeros((4 * BU, BK), dtype=tl.float32)
    for k in range(0, K, BK):
        if EVEN_K:
            b_w = tl.load(p_w + k, mask=m_u[:, None], other=0.0)
            b_x = tl.load(p_x + k + o_k)
        else:
            m_k = k + o_k < K
            b_w = tl.load(p_w + k, mask=m_u[:, None] & m_k[None, :], other=0.0)
            b_x = tl.load(p_x + k + o_k, mask=m_k, other=0.0)
        b_sums += b_w.to(tl.float32) * b_x.to(tl.float32)[None, :]
    return tl.sum(b_sums, axis=1)


@triton.jit
def _is_below(word, n):
    return (word.to(tl.uint32, bitcast=True) >> 8).to(tl.int32) < n


@triton.jit
def _shares(
    o_element, seed, n_dropout_h, n_dropout_c, n_zoneout_h, n_zoneout_c, scale_h, scale_c, p_zoneout_h, p_zoneout_c,
    MIXING: tl.constexpr, SEED_IN_MEMORY: tl.constexpr,
):  # fmt: skip
    """(a_h, b_h, a_c, b_c) of each element, by its int64 number: h' = a_h H + b_h h, c' = a_c C + b_c c.

    Args:
        n_*: how many of the 2^24 values of a mask's number drop or keep; scale_*: 1 / (1 - p) of the dropouts.
        MIXING: 'random' in training, 'expected' without.
    """
    if MIXING == "expected":
        b_new_h, b_old_h, b_new_c, b_old_c = 1.0 - p_zoneout_h, p_zoneout_h, 1.0 - p_zoneout_c, p_zoneout_c
    else:
        b_seed = tl.load(seed) if SEED_IN_MEMORY else seed.to(tl.int64)
        w0, w1, w2, w3 = tl.philox(b_seed, o_element.to(tl.uint32), (o_element >> 32).to(tl.uint32), 0, _STREAM)
        b_h = tl.where(_is_below(w0, n_dropout_h), 0.0, scale_h)
        b_c = tl.where(_is_below(w1, n_dropout_c), 0.0, scale_c)
        m_h, m_c = _is_below(w2, n_zoneout_h), _is_below(w3, n_zoneout_c)
        b_new_h, b_old_h = tl.where(m_h, 0.0, b_h), tl.where(m_h, b_h, 0.0)
        b_new_c, b_old_c = tl.where(m_c, 0.0, b_c), tl.where(m_c, b_c, 0.0)
    return b_new_h, b_old_h, b_new_c, b_old_c


@triton.jit(do_not_specialize=["seed", "n_dropout_h", "n_dropout_c", "n_zoneout_h", "n_zoneout_c"])
def lstm_cell_fwd_kernel(
    p_x, p_h, p_c, p_weight_ih, p_weight_hh, p_bias_ih, p_bias_hh,
    p_next_h, p_next_c, p_gates,  # [B, n], [B, n], [B, 4n], contiguous
    seed, n_dropout_h, n_dropout_c, n_zoneout_h, n_zoneout_c, scale_h, scale_c, p_zoneout_h, p_zoneout_c,
    B, n, n_in, s_xb, s_hb, s_cb, s_cu, s_ih, s_hh,
    HAS_BIAS: tl.constexpr, MIXING: tl.constexpr, SEED_IN_MEMORY: tl.constexpr, SAVE_GATES: tl.constexpr,
    EVEN_IN: tl.constexpr, EVEN_N: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr,  # 4 BU, of the products on tensor cores; None with a BB of 1
    BU: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i_u, i_b = tl.program_id(0), tl.program_id(1)
    o_b = i_b * BB + tl.arange(0, BB)
    m_b = o_b < B
    o_row_u = i_u * BU + tl.arange(0, 4 * BU) // 4
    if ROWS is None:
        b_gates = lstm_gates_of_one(
            p_x + i_b.to(tl.int64) * s_xb, p_weight_ih, o_row_u, n, n_in, s_ih, BU, BK, EVEN_IN
        )  # fmt: skip
        b_gates += lstm_gates_of_one(p_h + i_b.to(tl.int64) * s_hb, p_weight_hh, o_row_u, n, n, s_hh, BU, BK, EVEN_N)
        b_gates = b_gates[:, None]
    else:
        b_gates = tl.zeros((ROWS, BB), dtype=tl.float32)
        tile = GateTile(o_row_u, n, o_b, m_b)
        b_gates = lstm_gates(
            b_gates, tile, p_x, p_weight_ih, n_in, s_xb, s_ih, EVEN_IN, GateBlocks(BU, BK, PRECISION, None)
        )
        b_gates = lstm_gates(
            b_gates, tile, p_h, p_weight_hh, n, s_hb, s_hh, EVEN_N, GateBlocks(BU, BK, PRECISION, None)
        )
    if HAS_BIAS:
        o_row = (tl.arange(0, 4 * BU) % 4) * n + o_row_u
        b_bias = tl.load(p_bias_ih + o_row, mask=o_row_u < n, other=0.0).to(tl.float32)
        b_bias += tl.load(p_bias_hh + o_row, mask=o_row_u < n, other=0.0).to(tl.float32)
        b_gates += b_bias[:, None]
    b_i, b_f, b_g, b_o = lstm_split(b_gates, BU, BB)  # [BU, BB]
    b_i, b_f, b_g, b_o = lstm_activate(b_i, b_f, b_g, b_o)
    o_u = i_u * BU + tl.arange(0, BU)
    m = (o_u < n)[:, None] & m_b[None, :]
    o_b = o_b.to(tl.int64)[None, :]
    o_u = o_u[:, None]
    b_c = tl.load(p_c + (o_b * s_cb + o_u * s_cu), mask=m, other=0.0).to(tl.float32)
    b_next_h, b_next_c = lstm_update(b_i, b_f, b_g, b_o, b_c)
    if MIXING is not None:
        b_new_h, b_old_h, b_new_c, b_old_c = _shares(
            o_b * n + o_u, seed, n_dropout_h, n_dropout_c, n_zoneout_h, n_zoneout_c,
            scale_h, scale_c, p_zoneout_h, p_zoneout_c, MIXING, SEED_IN_MEMORY,
        )  # fmt: skip
        b_h = tl.load(p_h + (o_b * s_hb + o_u), mask=m, other=0.0).to(tl.float32)
        b_next_h = b_new_h * b_next_h + b_old_h * b_h
        b_next_c = b_new_c * b_next_c + b_old_c * b_c
    tl.store(p_next_h + (o_b * n + o_u), b_next_h, mask=m)
    tl.store(p_next_c + (o_b * n + o_u), b_next_c, mask=m)
    if SAVE_GATES:
        p_gates += o_b * 4 * n + o_u
        tl.store(p_gates, b_i, mask=m)
        tl.store(p_gates + n, b_f, mask=m)
        tl.store(p_gates + 2 * n, b_g, mask=m)
        tl.store(p_gates + 3 * n, b_o, mask=m)


@triton.jit(do_not_specialize=["seed", "n_dropout_h", "n_dropout_c", "n_zoneout_h", "n_zoneout_c"])
def lstm_cell_bwd_kernel(
    p_dnext_h, p_dnext_c, p_gates, p_c,
    p_dgates, p_dc, p_dh,  # [B, 4n], [B, n], [B, n], contiguous; dh without the products' share
    seed, n_dropout_h, n_dropout_c, n_zoneout_h, n_zoneout_c, scale_h, scale_c, p_zoneout_h, p_zoneout_c,
    n, s_dhb, s_dhu, s_dcb, s_dcu, s_cb, s_cu,
    HAS_DH: tl.constexpr, HAS_DC: tl.constexpr, STORE_DH: tl.constexpr,
    MIXING: tl.constexpr, SEED_IN_MEMORY: tl.constexpr, BU: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0).to(tl.int64)
    o_u = tl.program_id(1) * BU + tl.arange(0, BU)
    m_u = o_u < n
    b_dh = tl.zeros((BU,), dtype=tl.float32)
    b_dc = tl.zeros((BU,), dtype=tl.float32)
    if HAS_DH:
        b_dh += tl.load(p_dnext_h + i_b * s_dhb + o_u * s_dhu, mask=m_u, other=0.0).to(tl.float32)
    if HAS_DC:
        b_dc += tl.load(p_dnext_c + i_b * s_dcb + o_u * s_dcu, mask=m_u, other=0.0).to(tl.float32)
    b_kept_dc = tl.zeros((BU,), dtype=tl.float32)
    if MIXING is not None:
        b_new_h, b_old_h, b_new_c, b_old_c = _shares(
            i_b * n + o_u, seed, n_dropout_h, n_dropout_c, n_zoneout_h, n_zoneout_c,
            scale_h, scale_c, p_zoneout_h, p_zoneout_c, MIXING, SEED_IN_MEMORY,
        )  # fmt: skip
        if STORE_DH:
            tl.store(p_dh + i_b * n + o_u, b_old_h * b_dh, mask=m_u)
        b_kept_dc = b_old_c * b_dc
        b_dh *= b_new_h
        b_dc *= b_new_c
    p_gates += i_b * 4 * n + o_u
    b_i = tl.load(p_gates, mask=m_u, other=0.0).to(tl.float32)
    b_f = tl.load(p_gates + n, mask=m_u, other=0.0).to(tl.float32)
    b_g = tl.load(p_gates + 2 * n, mask=m_u, other=0.0).to(tl.float32)
    b_o = tl.load(p_gates + 3 * n, mask=m_u, other=0.0).to(tl.float32)
    b_c = tl.load(p_c + i_b * s_cb + o_u * s_cu, mask=m_u, other=0.0).to(tl.float32)
    b_tanh = 2.0 * tl.sigmoid(2.0 * (b_f * b_c + b_i * b_g)) - 1.0
    b_dc += b_dh * b_o * (1.0 - b_tanh * b_tanh)
    p_dgates += i_b * 4 * n + o_u
    tl.store(p_dgates, b_dc * b_g * b_i * (1.0 - b_i), mask=m_u)
    tl.store(p_dgates + n, b_dc * b_c * b_f * (1.0 - b_f), mask=m_u)
    tl.store(p_dgates + 2 * n, b_dc * b_i * (1.0 - b_g * b_g), mask=m_u)
    tl.store(p_dgates + 3 * n, b_dh * b_tanh * b_o * (1.0 - b_o), mask=m_u)
    tl.store(p_dc + i_b * n + o_u, b_dc * b_f + b_kept_dc, mask=m_u)


class _Mixing(NamedTuple):
    """Dropout and zoneout of a call."""

    p_dropout_h: float
    p_dropout_c: float
    p_zoneout_h: float
    p_zoneout_c: float
    training: bool

    def kind(self) -> str | None:
        if self.training:
            return "random" if any(self[:4]) else None
        return "expected" if self.p_zoneout_h or self.p_zoneout_c else None

    def arguments(self, seed: int | Tensor) -> tuple:
        """Of either kernel."""
        return (
            seed, *(dropped_words(p) for p in self[:4]), 1.0 / (1.0 - self.p_dropout_h), 1.0 / (1.0 - self.p_dropout_c),
            float(self.p_zoneout_h), float(self.p_zoneout_c),
        )  # fmt: skip

    def flags(self, seed: int | Tensor) -> dict:
        return {"MIXING": self.kind(), "SEED_IN_MEMORY": isinstance(seed, Tensor)}


def _largest_that_fills(dtype: torch.dtype, items: int, units: int, inputs: int) -> Config:
    def programs(config: Config) -> int:
        return triton.cdiv(units, config["BU"]) * triton.cdiv(items, config["BB"])

    *tiles, of_one = FORWARD_CONFIGS[dtype.itemsize]
    if items == 1:
        return of_one
    return next((config for config in tiles if programs(config) >= PROGRAMS), tiles[-1])


def _longest_that_fills(dtype: torch.dtype, items: int, units: int) -> Config:
    long, short = BACKWARD_CONFIGS
    return long if items * triton.cdiv(units, long["BU"]) >= PROGRAMS else short


def _forward(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    seed: int | Tensor,
    mixing: _Mixing,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(h', c', activated gates [B, 4n] if they are to be saved); x, h, weights and biases as the kernel reads them."""
    B, n = c.shape
    n_in = x.shape[1]
    next_h = torch.empty((B, n), dtype=x.dtype, device=x.device)
    next_c = torch.empty_like(next_h)
    gates = torch.empty((B, 4 * n), dtype=x.dtype, device=x.device) if save_gates else None
    if next_h.numel() == 0:
        return next_h, next_c, gates

    configs = FORWARD_CONFIGS[x.dtype.itemsize]
    config = pick_config("lstm_cell_fwd", configs, _largest_that_fills, x, items=B, units=n, inputs=n_in)
    launch(
        OP, lstm_cell_fwd_kernel, (triton.cdiv(n, config["BU"]), triton.cdiv(B, config["BB"])),
        x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, next_h, next_c, gates, *mixing.arguments(seed),
        B, n, n_in, x.stride(0), h.stride(0), *c.stride(), weight_ih.stride(0), weight_hh.stride(0),
        device=x.device, HAS_BIAS=bias_ih is not None, SAVE_GATES=save_gates, EVEN_IN=n_in % config["BK"] == 0,
        EVEN_N=n % config["BK"] == 0, PRECISION=product_precision(x.dtype),
        ROWS=None if config["BB"] == 1 else 4 * config["BU"], **mixing.flags(seed), **config,
    )  # fmt: skip
    return next_h, next_c, gates


def _backward(
    dnext_h: Tensor | None,
    dnext_c: Tensor | None,
    gates: Tensor,
    c: Tensor,
    seed: int | Tensor,
    mixing: _Mixing,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dgates [B, 4n], dc [B, n], and what reaches h by zoneout [B, n], or None without)."""
    B, n = c.shape
    dgates = torch.empty_like(gates)
    dc = torch.empty((B, n), dtype=gates.dtype, device=gates.device)
    dh = torch.empty_like(dc) if mixing.p_zoneout_h > 0 else None
    if dc.numel() == 0:
        return dgates, dc, dh

    config = pick_config("lstm_cell_bwd", BACKWARD_CONFIGS, _longest_that_fills, c, items=B, units=n)
    dh_strides, dc_strides = ((0, 0) if x is None else x.stride() for x in (dnext_h, dnext_c))
    launch(
        OP, lstm_cell_bwd_kernel, (B, triton.cdiv(n, config["BU"])),
        dnext_h, dnext_c, gates, c, dgates, dc, dh, *mixing.arguments(seed),
        n, *dh_strides, *dc_strides, *c.stride(),
        device=c.device, HAS_DH=dnext_h is not None, HAS_DC=dnext_c is not None, STORE_DH=dh is not None,
        **mixing.flags(seed), **config,
    )  # fmt: skip
    return dgates, dc, dh


class _LSTMCell(Function):
    """Arguments of `_forward`, but for the last."""

    @staticmethod
    def forward(ctx, x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, seed, mixing):
        next_h, next_c, gates = _forward(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, seed, mixing, save_gates=True)
        ctx.mixing, ctx.seed = mixing, None if isinstance(seed, Tensor) else seed
        ctx.save_for_backward(x, h, c, weight_ih, weight_hh, gates, seed if ctx.seed is None else None)
        ctx.set_materialize_grads(False)
        return next_h, next_c

    @staticmethod
    @once_differentiable
    def backward(ctx, dnext_h, dnext_c):
        if dnext_h is None and dnext_c is None:
            return (None,) * 9
        x, h, c, weight_ih, weight_hh, gates, seed = ctx.saved_tensors
        seed = ctx.seed if seed is None else seed
        wants_x, wants_h, wants_c, wants_ih, wants_hh, wants_bias_ih, wants_bias_hh = ctx.needs_input_grad[:7]
        dgates, dc, kept_dh = _backward(dnext_h, dnext_c, gates, c, seed, ctx.mixing)
        dx = dh = dweight_ih = dweight_hh = dbias = None
        with backend.without_autocast(gates):  # forward may have been called where it was off
            if wants_x:
                dx = dgates @ weight_ih
            if wants_h:
                dh = dgates @ weight_hh if kept_dh is None else torch.addmm(kept_dh, dgates, weight_hh)
            if wants_ih:
                dweight_ih = dgates.t() @ x
            if wants_hh:
                dweight_hh = dgates.t() @ h
            if wants_bias_ih or wants_bias_hh:
                dbias = dgates.sum(0)
        return (
            dx, dh, dc if wants_c else None, dweight_ih, dweight_hh,
            dbias if wants_bias_ih else None, dbias if wants_bias_hh else None, None, None,
        )  # fmt: skip


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    p_dropout_h: float = 0.0,
    p_dropout_c: float = 0.0,
    p_zoneout_h: float = 0.0,
    p_zoneout_c: float = 0.0,
    training: bool = True,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997), as torch.lstm_cell, with dropout and zoneout as options.

    Zoneout (Krueger et al. 2016) comes before dropout, and both change what is returned: a caller who hands the
    result to the next step drops the state itself, as coqui, Mellotron and NVIDIA do.

    Args:
        x: input, [B, n_in]; float32, float16 or bfloat16, and all other tensors with it.
        h, c: hidden and cell state, [B, n].
        weight_ih: [4n, n_in]; weight_hh: [4n, n]; gate order i, f, g, o. Rows are wanted contiguous; other weights
            are copied.
        bias_ih, bias_hh: [4n], both or neither.
        p_dropout_h, p_dropout_c: probability of dropping a unit of h' or c', in [0, 1); the others are divided by
            1 - p. Without training there is no dropout. NVIDIA drops h', coqui and Mellotron c' too.
        p_zoneout_h, p_zoneout_c: probability that a unit of h' or c' keeps its previous value, in [0, 1); without
            training it becomes the expectation, p previous + (1 - p) next, as in ESPnet.
        training: whether units are dropped and kept at random.
        seed: of the masks, an integer or a 0-d int64 tensor on the device of `x`, which must not change until the
            backward pass is done; None: drawn from PyTorch's generator. One seed gives one set of masks: pass
            another one at every step.

    Returns:
        (h', c'), each [B, n], of the dtype of `x`; under autocast on a GPU of autocast's.

    Raises:
        FastglowError: shapes, probabilities or a seed that do not fit the above.
    """
    _check(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, seed)
    mixing = _Mixing(p_dropout_h, p_dropout_c, p_zoneout_h, p_zoneout_c, training)
    for name, p in zip(mixing._fields[:4], mixing[:4], strict=True):
        if not 0 <= p < 1:
            raise FastglowError(f"{name} {p} is not a probability below 1")
    if mixing.kind() != "random":
        seed = 0
    elif seed is None:
        seed = random_seed(x.device)
    tensors = [x, h, c, weight_ih, weight_hh, bias_ih, bias_hh]
    dtype = backend.autocast_dtype(x)
    seed_tensor = seed if isinstance(seed, Tensor) else None
    if not backend.picks_triton(OP, *tensors, seed_tensor, unsupported=_unsupported(tensors, dtype)):
        # torch.lstm_cell knows of autocast itself.
        return reference_lstm_cell(*tensors, **mixing._asdict(), seed=seed)
    if dtype is not None:
        tensors = [_autocast(t, dtype) for t in tensors]
    x, h, c, weight_ih, weight_hh, bias_ih, bias_hh = tensors
    arguments = (
        _rows_apart(x), _rows_apart(h), c, _rows_apart(weight_ih), _rows_apart(weight_hh),
        None if bias_ih is None else bias_ih.contiguous(), None if bias_hh is None else bias_hh.contiguous(),
        seed, mixing,
    )  # fmt: skip
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors if t is not None):
        return _LSTMCell.apply(*arguments)
    return _forward(*arguments, save_gates=False)[:2]


def _autocast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As autocast casts: a parameter once in all the steps of a loop.

    Its cache has no other door: it casts what goes into an einsum, and one of a single tensor is that tensor.
    """
    if x is None:
        return None
    return (torch.einsum("...->...", x) if x.is_leaf else x).to(dtype)


def _rows_apart(x: Tensor) -> Tensor:
    """A matrix whose rows are contiguous, whatever lies between them."""
    return x if x.stride(1) == 1 else x.contiguous()


def _unsupported(tensors: list[Tensor | None], autocast_dtype: torch.dtype | None) -> str | None:
    dtypes = {str(x.dtype).removeprefix("torch.") for x in tensors if x is not None}
    if len(dtypes) > 1 and autocast_dtype is None:
        return f"its tensors have the dtypes {', '.join(sorted(dtypes))}"
    return None


def _check(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, seed) -> None:
    if x.dim() != 2 or h.dim() != 2:
        raise FastglowError(f"x has shape {tuple(x.shape)} and h {tuple(h.shape)}: pass [B, n_in] and [B, n]")
    (B, n_in), n = x.shape, h.shape[1]
    expected = {
        "h": (h, (B, n)),
        "c": (c, (B, n)),
        "weight_ih": (weight_ih, (4 * n, n_in)),
        "weight_hh": (weight_hh, (4 * n, n)),
        "bias_ih": (bias_ih, (4 * n,)),
        "bias_hh": (bias_hh, (4 * n,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise FastglowError(
                f"{name} has shape {tuple(tensor.shape)}, not {shape}, beside x {tuple(x.shape)} and {n} units"
            )
    if (bias_ih is None) != (bias_hh is None):
        raise FastglowError("one of bias_ih and bias_hh is absent: pass both or neither")
    if isinstance(seed, Tensor):
        if seed.dim() or seed.dtype != torch.int64 or seed.device != x.device:
            raise FastglowError(
                f"seed is a tensor of shape {tuple(seed.shape)}, {seed.dtype} on {seed.device}: "
                f"pass an integer, or a 0-d torch.int64 tensor on {x.device}"
            )
    elif seed is not None and not -(2**63) <= seed < 2**63:
        raise FastglowError(f"seed {seed} does not fit 64 bits: use a smaller one")
