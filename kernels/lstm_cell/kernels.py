"""The kernels of `lstm_cell` and their launchers.

Maths, layout and cost: kernels/README.md.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import strides
from ..launch import Config, launch, pick_config, product_precision, split_config
from ..reference.lstm_cell import MASK_STREAM
from ..reference.philox import dropped_words
from .cell import GateTile, lstm_activate, lstm_gates, lstm_split, lstm_update

OP = "lstm_cell"
PROGRAMS = 128  # enough to saturate a GPU's memory
STREAM = tl.constexpr(MASK_STREAM)


def _config(bu: int, bb: int, bk: int, num_warps: int, num_stages: int) -> Config:
    return {"BU": bu, "BB": bb, "BK": bk, "num_warps": num_warps, "num_stages": num_stages}


# By element size, the largest tiles first: BU units, BB items, depth BK. Tiles for few items have few rows and a large
# depth, to keep many bytes of weights in flight. The last one is for a single item, without tensor cores.
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


class Inputs(NamedTuple):
    """Inputs of an LSTM step, or their gradients; rows are contiguous, except in c."""

    x: Any  # [B, n_in]
    h: Any  # [B, n]
    c: Any  # [B, n]
    weight_ih: Any  # [4n, n_in]
    weight_hh: Any  # [4n, n]
    bias_ih: Any  # [4n] or None, contiguous
    bias_hh: Any  # [4n] or None, contiguous


class Outputs(NamedTuple):
    """Contiguous."""

    h: Any  # [B, n]
    c: Any  # [B, n]
    gates: Any  # [B, 4n], activated, or None: no backward pass


class Upstream(NamedTuple):
    """Gradients that reach the outputs, with any strides."""

    h: Any  # [B, n] or None
    c: Any  # [B, n] or None


class Gradients(NamedTuple):
    """What the backward kernel writes, contiguous."""

    gates: Any  # [B, 4n], before their activation
    c: Any  # [B, n]
    h: Any  # [B, n], through zoneout only, or None


class Mixing(NamedTuple):
    """Dropout and zoneout as the kernels read them: floats, because Triton would recompile for some integers."""

    dropout_h: Any  # how many of the 2^24 random values drop the unit
    dropout_c: Any
    zoneout_h: Any
    zoneout_c: Any
    scale_h: Any  # 1 / (1 - p_dropout_h)
    scale_c: Any
    p_zoneout_h: Any
    p_zoneout_c: Any


class ForwardStrides(NamedTuple):
    x: Any
    h: Any
    weight_ih: Any
    weight_hh: Any
    c_b: Any
    c_u: Any


class BackwardStrides(NamedTuple):
    dh_b: Any
    dh_u: Any
    dc_b: Any
    dc_u: Any
    c_b: Any
    c_u: Any


class ForwardBlocks(NamedTuple):
    BU: Any  # units of a tile
    BB: Any  # items of a tile; 1: without tensor cores
    BK: Any  # depth of a product
    ROWS: Any  # 4 BU, the rows of the products on tensor cores; None without
    EVEN_IN: Any  # whether n_in is a multiple of BK
    EVEN_N: Any  # whether n is a multiple of BK
    MIXING: Any  # 'none', 'random' or 'expected'
    SEED_IN_MEMORY: Any
    PRECISION: Any  # `input_precision` of the products
    STAGES: Any  # of the products' pipelines; None: num_stages


class BackwardBlocks(NamedTuple):
    BU: Any
    MIXING: Any
    SEED_IN_MEMORY: Any


@triton.jit
def _gates_of_one(p_x, p_weight, o_u, n, K, s_w, EVEN_K: tl.constexpr, blocks):
    """W x of one item, [4 BU] float32, without tensor cores; arguments as `lstm_gates`."""
    o_k = tl.arange(0, blocks.BK)
    o_row = (tl.arange(0, 4 * blocks.BU) % 4) * n + o_u
    p_w = p_weight + (o_row.to(tl.int64) * s_w)[:, None] + o_k[None, :]
    m_u = o_u < n
    b_sums = tl.zeros((4 * blocks.BU, blocks.BK), dtype=tl.float32)
    for k in range(0, K, blocks.BK):
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
    """Whether the upper 24 bits of a random word are below n."""
    return (word.to(tl.uint32, bitcast=True) >> 8).to(tl.int32) < tl.cast(n, tl.int32)


@triton.jit
def _mix(o_element, seed, mixing, blocks):
    """(a_h, b_h, a_c, b_c) at int64 element indices: h' = a_h H + b_h h, c' = a_c C + b_c c."""
    if blocks.MIXING == "expected":
        b_new_h, b_old_h = 1.0 - mixing.p_zoneout_h, mixing.p_zoneout_h
        b_new_c, b_old_c = 1.0 - mixing.p_zoneout_c, mixing.p_zoneout_c
    else:
        b_seed = tl.load(seed) if blocks.SEED_IN_MEMORY else seed.to(tl.int64)
        w0, w1, w2, w3 = tl.philox(b_seed, o_element.to(tl.uint32), (o_element >> 32).to(tl.uint32), 0, STREAM)
        b_h = tl.where(_is_below(w0, mixing.dropout_h), 0.0, mixing.scale_h)
        b_c = tl.where(_is_below(w1, mixing.dropout_c), 0.0, mixing.scale_c)
        m_h, m_c = _is_below(w2, mixing.zoneout_h), _is_below(w3, mixing.zoneout_c)
        b_new_h, b_old_h = tl.where(m_h, 0.0, b_h), tl.where(m_h, b_h, 0.0)
        b_new_c, b_old_c = tl.where(m_c, 0.0, b_c), tl.where(m_c, b_c, 0.0)
    return b_new_h, b_old_h, b_new_c, b_old_c


@triton.jit(do_not_specialize=["seed"])
def lstm_cell_fwd_kernel(inputs, outputs, seed, mixing, B, n, n_in, strides, blocks):
    """Grid (blocks of units, blocks of items)."""
    BU: tl.constexpr = blocks.BU
    BB: tl.constexpr = blocks.BB
    i_u, i_b = tl.program_id(0), tl.program_id(1)
    o_b = i_b * BB + tl.arange(0, BB)
    m_b = o_b < B
    o_row_u = i_u * BU + tl.arange(0, 4 * BU) // 4
    if BB == 1:
        p_x = inputs.x + i_b.to(tl.int64) * strides.x
        p_h = inputs.h + i_b.to(tl.int64) * strides.h
        b_gates = _gates_of_one(p_x, inputs.weight_ih, o_row_u, n, n_in, strides.weight_ih, blocks.EVEN_IN, blocks)
        b_gates += _gates_of_one(p_h, inputs.weight_hh, o_row_u, n, n, strides.weight_hh, blocks.EVEN_N, blocks)
        b_gates = b_gates[:, None]
    else:
        tile = GateTile(o_row_u, n, o_b, m_b)
        b_gates = tl.zeros((4 * BU, BB), dtype=tl.float32)
        b_gates = lstm_gates(
            b_gates, tile, inputs.x, inputs.weight_ih, n_in, strides.x, strides.weight_ih, blocks.EVEN_IN, blocks
        )
        b_gates = lstm_gates(
            b_gates, tile, inputs.h, inputs.weight_hh, n, strides.h, strides.weight_hh, blocks.EVEN_N, blocks
        )
    if inputs.bias_ih is not None:
        o_row = (tl.arange(0, 4 * BU) % 4) * n + o_row_u
        b_bias = tl.load(inputs.bias_ih + o_row, mask=o_row_u < n, other=0.0).to(tl.float32)
        b_bias += tl.load(inputs.bias_hh + o_row, mask=o_row_u < n, other=0.0).to(tl.float32)
        b_gates += b_bias[:, None]
    b_i, b_f, b_g, b_o = lstm_split(b_gates, BU, BB)  # [BU, BB]
    b_i, b_f, b_g, b_o = lstm_activate(b_i, b_f, b_g, b_o)
    o_u = i_u * BU + tl.arange(0, BU)
    m = (o_u < n)[:, None] & m_b[None, :]
    o_b = o_b.to(tl.int64)[None, :]
    o_u = o_u[:, None]
    b_c = tl.load(inputs.c + (o_b * strides.c_b + o_u.to(tl.int64) * strides.c_u), mask=m, other=0.0).to(tl.float32)
    b_next_h, b_next_c = lstm_update(b_i, b_f, b_g, b_o, b_c)
    if blocks.MIXING != "none":
        b_new_h, b_old_h, b_new_c, b_old_c = _mix(o_b * n + o_u, seed, mixing, blocks)
        b_h = tl.load(inputs.h + (o_b * strides.h + o_u), mask=m, other=0.0).to(tl.float32)
        b_next_h = b_new_h * b_next_h + b_old_h * b_h
        b_next_c = b_new_c * b_next_c + b_old_c * b_c
    tl.store(outputs.h + (o_b * n + o_u), b_next_h, mask=m)
    tl.store(outputs.c + (o_b * n + o_u), b_next_c, mask=m)
    if outputs.gates is not None:
        p_gates = outputs.gates + (o_b * 4 * n + o_u)
        tl.store(p_gates, b_i, mask=m)
        tl.store(p_gates + n, b_f, mask=m)
        tl.store(p_gates + 2 * n, b_g, mask=m)
        tl.store(p_gates + 3 * n, b_o, mask=m)


@triton.jit(do_not_specialize=["seed"])
def lstm_cell_bwd_kernel(p_gates, p_c, upstream, gradients, seed, mixing, n, strides, blocks):
    """Everything elementwise; grid (B, blocks of units). p_gates: [B, 4n], activated, contiguous; p_c: [B, n]."""
    BU: tl.constexpr = blocks.BU
    i_b = tl.program_id(0).to(tl.int64)
    o_u = tl.program_id(1) * BU + tl.arange(0, BU)
    m_u = o_u < n
    b_dh = tl.zeros((BU,), dtype=tl.float32)
    b_dc = tl.zeros((BU,), dtype=tl.float32)
    if upstream.h is not None:
        b_dh += tl.load(upstream.h + i_b * strides.dh_b + o_u.to(tl.int64) * strides.dh_u, mask=m_u, other=0.0).to(
            tl.float32
        )
    if upstream.c is not None:
        b_dc += tl.load(upstream.c + i_b * strides.dc_b + o_u.to(tl.int64) * strides.dc_u, mask=m_u, other=0.0).to(
            tl.float32
        )
    b_kept_dc = tl.zeros((BU,), dtype=tl.float32)
    if blocks.MIXING != "none":
        b_new_h, b_old_h, b_new_c, b_old_c = _mix(i_b * n + o_u, seed, mixing, blocks)
        if gradients.h is not None:
            tl.store(gradients.h + i_b * n + o_u, b_old_h * b_dh, mask=m_u)
        b_kept_dc = b_old_c * b_dc
        b_dh *= b_new_h
        b_dc *= b_new_c
    p_gates += i_b * 4 * n + o_u
    b_i = tl.load(p_gates, mask=m_u, other=0.0).to(tl.float32)
    b_f = tl.load(p_gates + n, mask=m_u, other=0.0).to(tl.float32)
    b_g = tl.load(p_gates + 2 * n, mask=m_u, other=0.0).to(tl.float32)
    b_o = tl.load(p_gates + 3 * n, mask=m_u, other=0.0).to(tl.float32)
    b_c = tl.load(p_c + i_b * strides.c_b + o_u.to(tl.int64) * strides.c_u, mask=m_u, other=0.0).to(tl.float32)
    b_tanh = 2.0 * tl.sigmoid(2.0 * (b_f * b_c + b_i * b_g)) - 1.0
    b_dc += b_dh * b_o * (1.0 - b_tanh * b_tanh)
    p_dgates = gradients.gates + i_b * 4 * n + o_u
    tl.store(p_dgates, b_dc * b_g * b_i * (1.0 - b_i), mask=m_u)
    tl.store(p_dgates + n, b_dc * b_c * b_f * (1.0 - b_f), mask=m_u)
    tl.store(p_dgates + 2 * n, b_dc * b_i * (1.0 - b_g * b_g), mask=m_u)
    tl.store(p_dgates + 3 * n, b_dh * b_tanh * b_o * (1.0 - b_o), mask=m_u)
    tl.store(gradients.c + i_b * n + o_u, b_dc * b_f + b_kept_dc, mask=m_u)


class Options(NamedTuple):
    """Dropout and zoneout of a call."""

    p_dropout_h: float
    p_dropout_c: float
    p_zoneout_h: float
    p_zoneout_c: float
    training: bool

    def kind(self) -> str:
        """'none', 'random' or 'expected'."""
        if self.training:
            return "random" if any(self[:4]) else "none"
        return "expected" if self.p_zoneout_h or self.p_zoneout_c else "none"

    def mixing(self) -> Mixing:
        return Mixing(
            dropout_h=float(dropped_words(self.p_dropout_h)),
            dropout_c=float(dropped_words(self.p_dropout_c)),
            zoneout_h=float(dropped_words(self.p_zoneout_h)),
            zoneout_c=float(dropped_words(self.p_zoneout_c)),
            scale_h=1.0 / (1.0 - self.p_dropout_h),
            scale_c=1.0 / (1.0 - self.p_dropout_c),
            p_zoneout_h=float(self.p_zoneout_h),
            p_zoneout_c=float(self.p_zoneout_c),
        )


def largest_that_fills(dtype: torch.dtype, items: int, units: int, inputs: int) -> Config:
    """The forward configuration without measurements: the largest tiles that give PROGRAMS programs."""

    def programs(config: Config) -> int:
        return triton.cdiv(units, config["BU"]) * triton.cdiv(items, config["BB"])

    *tiles, of_one = FORWARD_CONFIGS[dtype.itemsize]
    if items == 1:
        return of_one
    return next((config for config in tiles if programs(config) >= PROGRAMS), tiles[-1])


def _longest_that_fills(dtype: torch.dtype, items: int, units: int) -> Config:
    long, short = BACKWARD_CONFIGS
    return long if items * triton.cdiv(units, long["BU"]) >= PROGRAMS else short


def lstm_cell_fwd(inputs: Inputs, seed: int | Tensor, options: Options, save_gates: bool) -> Outputs:
    x, h, c = inputs.x, inputs.h, inputs.c
    (B, n), n_in = c.shape, x.shape[1]
    outputs = Outputs(x.new_empty((B, n)), x.new_empty((B, n)), x.new_empty((B, 4 * n)) if save_gates else None)
    if c.numel() == 0:
        return outputs
    configs = FORWARD_CONFIGS[x.dtype.itemsize]
    config = pick_config("lstm_cell_fwd", configs, largest_that_fills, x, items=B, units=n, inputs=n_in)
    blocks, launch_options = split_config(
        ForwardBlocks,
        config,
        ROWS=None if config["BB"] == 1 else 4 * config["BU"],
        EVEN_IN=n_in % config["BK"] == 0,
        EVEN_N=n % config["BK"] == 0,
        MIXING=options.kind(),
        SEED_IN_MEMORY=isinstance(seed, Tensor),
        PRECISION=product_precision(x.dtype),
        STAGES=None,
    )
    s = ForwardStrides(*(t.stride(0) for t in (x, h, inputs.weight_ih, inputs.weight_hh)), *c.stride())
    launch(
        OP, lstm_cell_fwd_kernel, (triton.cdiv(n, config["BU"]), triton.cdiv(B, config["BB"])),
        inputs, outputs, seed, options.mixing(), B, n, n_in, s, blocks, device=x.device, **launch_options,
    )  # fmt: skip
    return outputs


def lstm_cell_bwd(upstream: Upstream, gates: Tensor, c: Tensor, seed: int | Tensor, options: Options) -> Gradients:
    B, n = c.shape
    gradients = Gradients(
        torch.empty_like(gates),
        gates.new_empty((B, n)),
        gates.new_empty((B, n)) if options.p_zoneout_h > 0 else None,
    )
    if c.numel() == 0:
        return gradients
    config = pick_config("lstm_cell_bwd", BACKWARD_CONFIGS, _longest_that_fills, c, items=B, units=n)
    blocks, launch_options = split_config(
        BackwardBlocks, config, MIXING=options.kind(), SEED_IN_MEMORY=isinstance(seed, Tensor)
    )
    s = BackwardStrides(*strides(upstream.h, 0, 1), *strides(upstream.c, 0, 1), *c.stride())
    launch(
        OP, lstm_cell_bwd_kernel, (B, triton.cdiv(n, config["BU"])),
        gates, c, upstream, gradients, seed, options.mixing(), n, s, blocks, device=c.device, **launch_options,
    )  # fmt: skip
    return gradients
