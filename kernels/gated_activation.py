"""The gated activation unit of WaveNet in one pass over memory, forward and backward.

With u = drop(a + bias) + b, f and g the halves of its channels under the tanh and under the sigmoid, and d the
factor of dropout after the gate, 0 or 1 / (1 - p) an element:

    y = d tanh(f) sigmoid(g)
    df = dy d sigmoid(g) (1 - tanh(f)^2)
    dg = dy d tanh(f) sigmoid(g) (1 - sigmoid(g))

The backward pass computes f, g and the masks anew from a, b, bias and the seed. A program does a tile of ROWS x
COLUMNS elements of y, in both halves; columns are the dimension that is contiguous in a: time, or channels if a
lies channels-last. Where nothing depends on the channel, channels and time are one long row, which is aligned
whatever T is. Sums over time leave one number a tile and channel in a scratch buffer, added up afterwards: always
in the same order. Strides are s_<tensor><dimension>, h for the step from one half of the channels to the other.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from .backend import picks_triton
from .launch import Config, launch, pick_config
from .reference import gated_activation as reference
from .reference.gated_activation import DROPOUT_STREAM
from .reference.philox import dropped_words, random_seed

OP = "gated_activation"

CONFIGS = (
    {"ROWS": 1, "COLUMNS": 1024, "num_warps": 4, "num_stages": 1},
    {"ROWS": 16, "COLUMNS": 128, "num_warps": 8, "num_stages": 1},
    {"ROWS": 32, "COLUMNS": 64, "num_warps": 8, "num_stages": 1},
)

_STREAM = tl.constexpr(DROPOUT_STREAM)


@triton.jit
def _dropout_factor(o_element, seed, n_dropped, scale):
    """0 or `scale` for each element, by its int64 number."""
    word, _, _, _ = tl.philox(seed, o_element.to(tl.uint32), (o_element >> 32).to(tl.uint32), 0, _STREAM)
    number = (word.to(tl.uint32, bitcast=True) >> 8).to(tl.int32)
    return tl.where(number >= n_dropped, scale, 0.0)


@triton.jit
def _tile(C, T, BC: tl.constexpr, BT: tl.constexpr):
    """This program's item, tile of time, channels [BC] and times [BT], all int64."""
    n_t, n_c = (T + BT - 1) // BT, (C + BC - 1) // BC
    i_t = (tl.program_id(0) % n_t).to(tl.int64)
    i_c = (tl.program_id(0) // n_t % n_c).to(tl.int64)
    i_b = (tl.program_id(0) // n_t // n_c).to(tl.int64)
    return i_b, i_t, i_c * BC + tl.arange(0, BC), i_t * BT + tl.arange(0, BT)


@triton.jit
def _half(
    p_a, p_b, p_bias, o_element, m_c, m, seed, n_dropped, scale,
    HAS_B: tl.constexpr, B_OVER_TIME: tl.constexpr, HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """A tile of one half of u, [BC, BT], and the factor of dropout before b is added.

    Pointers are tiles too; those of bias, and of b if B_OVER_TIME, are [BC].
    """
    b_u = tl.load(p_a, mask=m, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_u += tl.load(p_bias, mask=m_c, other=0.0).to(tl.float32)[:, None]
    b_factor = 1.0
    if DROPOUT == "before":
        b_factor = _dropout_factor(o_element, seed, n_dropped, scale)
        b_u *= b_factor
    if HAS_B:
        if B_OVER_TIME:
            b_u += tl.load(p_b, mask=m_c, other=0.0).to(tl.float32)[:, None]
        else:
            b_u += tl.load(p_b, mask=m, other=0.0).to(tl.float32)
    return b_u, b_factor


@triton.jit
def _halves(
    p_a, p_b, p_bias, i_b, o_c, o_t, seed, n_dropped, scale, C, T,
    s_ab, s_ac, s_at, s_ah, s_bb, s_bc, s_bt, s_bh, s_bias_c, s_bias_h,
    HAS_B: tl.constexpr, B_OVER_TIME: tl.constexpr, HAS_BIAS: tl.constexpr,
    GATE_FIRST: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Tiles of tanh(f), sigmoid(g) and the factors of dropout before b is added on f and on g, all [BC, BT]."""
    GATE: tl.constexpr = 0 if GATE_FIRST else 1
    FILTER: tl.constexpr = 1 - GATE
    m_c = o_c < C
    m = m_c[:, None] & (o_t < T)[None, :]
    o_element = (2 * i_b * C + o_c)[:, None] * T + o_t[None, :]
    p_a += i_b * s_ab + o_c[:, None] * s_ac + o_t[None, :] * s_at
    if B_OVER_TIME:
        p_b += i_b * s_bb + o_c * s_bc
    else:
        p_b += i_b * s_bb + o_c[:, None] * s_bc + o_t[None, :] * s_bt
    p_bias += o_c * s_bias_c
    o_second = C * tl.cast(T, tl.int64)
    b_f, b_factor_f = _half(
        p_a + FILTER * s_ah,
        p_b + FILTER * s_bh,
        p_bias + FILTER * s_bias_h,
        o_element + FILTER * o_second,
        m_c, m, seed, n_dropped, scale, HAS_B, B_OVER_TIME, HAS_BIAS, DROPOUT,
    )  # fmt: skip
    b_g, b_factor_g = _half(
        p_a + GATE * s_ah,
        p_b + GATE * s_bh,
        p_bias + GATE * s_bias_h,
        o_element + GATE * o_second,
        m_c, m, seed, n_dropped, scale, HAS_B, B_OVER_TIME, HAS_BIAS, DROPOUT,
    )  # fmt: skip
    return 2.0 * tl.sigmoid(2.0 * b_f) - 1.0, tl.sigmoid(b_g), b_factor_f, b_factor_g


@triton.jit(do_not_specialize=["seed", "n_dropped"])
def gated_activation_fwd_kernel(
    p_a, p_b, p_bias, p_y, seed, n_dropped, scale, C, T,
    s_ab, s_ac, s_at, s_ah, s_bb, s_bc, s_bt, s_bh, s_bias_c, s_bias_h,
    s_yb, s_yc, s_yt,
    HAS_B: tl.constexpr, B_OVER_TIME: tl.constexpr, HAS_BIAS: tl.constexpr,
    GATE_FIRST: tl.constexpr, DROPOUT: tl.constexpr, SEED_IN_MEMORY: tl.constexpr,
    CHANNELS_INNER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    BC: tl.constexpr = COLUMNS if CHANNELS_INNER else ROWS
    BT: tl.constexpr = ROWS if CHANNELS_INNER else COLUMNS
    i_b, _, o_c, o_t = _tile(C, T, BC, BT)
    b_seed = tl.load(seed) if SEED_IN_MEMORY else seed.to(tl.int64)
    b_tanh, b_sigmoid, _, _ = _halves(
        p_a, p_b, p_bias, i_b, o_c, o_t, b_seed, n_dropped, scale, C, T,
        s_ab, s_ac, s_at, s_ah, s_bb, s_bc, s_bt, s_bh, s_bias_c, s_bias_h,
        HAS_B, B_OVER_TIME, HAS_BIAS, GATE_FIRST, DROPOUT,
    )  # fmt: skip
    b_y = b_tanh * b_sigmoid
    if DROPOUT == "after":
        b_y *= _dropout_factor((i_b * C + o_c)[:, None] * T + o_t[None, :], b_seed, n_dropped, scale)
    p_y += i_b * s_yb + o_c[:, None] * s_yc + o_t[None, :] * s_yt
    tl.store(p_y, b_y, mask=(o_c < C)[:, None] & (o_t < T)[None, :])


@triton.jit(do_not_specialize=["seed", "n_dropped"])
def gated_activation_bwd_kernel(
    p_dy, p_a, p_b, p_bias,
    p_da, p_db,  # [B, 2C, T]
    p_sums_da, p_sums_db,  # [B, tiles of T, 2C] float32, contiguous: gradients summed over a tile's time
    seed, n_dropped, scale, C, T,
    s_dyb, s_dyc, s_dyt,
    s_ab, s_ac, s_at, s_ah, s_bb, s_bc, s_bt, s_bh, s_bias_c, s_bias_h,
    s_dab, s_dac, s_dat, s_dah, s_dbb, s_dbc, s_dbt, s_dbh,
    HAS_B: tl.constexpr, B_OVER_TIME: tl.constexpr, HAS_BIAS: tl.constexpr,
    GATE_FIRST: tl.constexpr, DROPOUT: tl.constexpr, SEED_IN_MEMORY: tl.constexpr,
    STORE_DA: tl.constexpr, STORE_DB: tl.constexpr, SUM_DA: tl.constexpr, SUM_DB: tl.constexpr,
    CHANNELS_INNER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    BC: tl.constexpr = COLUMNS if CHANNELS_INNER else ROWS
    BT: tl.constexpr = ROWS if CHANNELS_INNER else COLUMNS
    GATE: tl.constexpr = 0 if GATE_FIRST else 1
    FILTER: tl.constexpr = 1 - GATE
    i_b, i_t, o_c, o_t = _tile(C, T, BC, BT)
    m_c = o_c < C
    m = m_c[:, None] & (o_t < T)[None, :]
    b_seed = tl.load(seed) if SEED_IN_MEMORY else seed.to(tl.int64)
    b_tanh, b_sigmoid, b_factor_f, b_factor_g = _halves(
        p_a, p_b, p_bias, i_b, o_c, o_t, b_seed, n_dropped, scale, C, T,
        s_ab, s_ac, s_at, s_ah, s_bb, s_bc, s_bt, s_bh, s_bias_c, s_bias_h,
        HAS_B, B_OVER_TIME, HAS_BIAS, GATE_FIRST, DROPOUT,
    )  # fmt: skip
    p_dy += i_b * s_dyb + o_c[:, None] * s_dyc + o_t[None, :] * s_dyt
    b_dy = tl.load(p_dy, mask=m, other=0.0).to(tl.float32)
    if DROPOUT == "after":
        b_dy *= _dropout_factor((i_b * C + o_c)[:, None] * T + o_t[None, :], b_seed, n_dropped, scale)
    b_df = b_dy * b_sigmoid * (1.0 - b_tanh * b_tanh)
    b_dg = b_dy * b_tanh * b_sigmoid * (1.0 - b_sigmoid)
    o_sums = (i_b * ((T + BT - 1) // BT) + i_t) * 2 * C + o_c  # [BC]
    if STORE_DB:
        p_db += i_b * s_dbb + o_c[:, None] * s_dbc + o_t[None, :] * s_dbt
        tl.store(p_db + FILTER * s_dbh, b_df, mask=m)
        tl.store(p_db + GATE * s_dbh, b_dg, mask=m)
    if SUM_DB:
        tl.store(p_sums_db + o_sums + FILTER * C, tl.sum(b_df, axis=1), mask=m_c)
        tl.store(p_sums_db + o_sums + GATE * C, tl.sum(b_dg, axis=1), mask=m_c)
    b_df *= b_factor_f
    b_dg *= b_factor_g
    if STORE_DA:
        p_da += i_b * s_dab + o_c[:, None] * s_dac + o_t[None, :] * s_dat
        tl.store(p_da + FILTER * s_dah, b_df, mask=m)
        tl.store(p_da + GATE * s_dah, b_dg, mask=m)
    if SUM_DA:
        tl.store(p_sums_da + o_sums + FILTER * C, tl.sum(b_df, axis=1), mask=m_c)
        tl.store(p_sums_da + o_sums + GATE * C, tl.sum(b_dg, axis=1), mask=m_c)


class _Options(NamedTuple):
    gate_first: bool
    dropout: str | None
    p_dropout: float


class _Plan(NamedTuple):
    """How a kernel goes over the elements: dimensions as it sees them, and its configuration."""

    C: int
    T: int
    channels_inner: bool
    config: Config

    def tile(self) -> tuple[int, int]:
        """(BC, BT)."""
        rows, columns = self.config["ROWS"], self.config["COLUMNS"]
        return (columns, rows) if self.channels_inner else (rows, columns)

    def grid(self, n_items: int) -> tuple[int]:
        bc, bt = self.tile()
        return (n_items * triton.cdiv(self.C, bc) * triton.cdiv(self.T, bt),)

    def constants(self) -> dict[str, int]:
        return {"CHANNELS_INNER": self.channels_inner, **self.config}


def _heuristic(dtype: torch.dtype, rows: int, columns: int) -> Config:
    if columns >= 4096:
        return CONFIGS[0]
    return CONFIGS[1] if columns > 96 else CONFIGS[2]


def _plan(kernel: str, a: Tensor, has_channel_terms: bool, *others: Tensor) -> _Plan:
    C, T = a.shape[1] // 2, a.shape[2]
    one_row = not has_channel_terms and all(x.stride(1) == T * x.stride(2) for x in (a, *others))
    channels_inner = not one_row and _is_channels_inner(a)
    if one_row:
        C, T = 1, C * T
    rows, columns = (T, C) if channels_inner else (C, T)
    return _Plan(C, T, channels_inner, pick_config(kernel, CONFIGS, _heuristic, a, rows=rows, columns=columns))


def _is_channels_inner(x: Tensor) -> bool:
    return x.stride(1) <= x.stride(2)


def _is_over_time(b: Tensor | None, a: Tensor) -> bool:
    return b is not None and b.shape[2] == 1 < a.shape[2]


def _empty_as(a: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Dense [B, channels, T] whose order in memory is that of `a`."""
    if _is_channels_inner(a):
        return a.new_empty((shape[0], shape[2], shape[1]), dtype=dtype).transpose(1, 2)
    return a.new_empty(shape, dtype=dtype)


def _with_halves(x: Tensor) -> tuple[int, int, int, int]:
    """Strides of items, channels, time and halves of the channels."""
    return *x.stride(), x.shape[1] // 2 * x.stride(1)


def _inputs(a: Tensor, b: Tensor | None, bias: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...], dict]:
    """(pointers, strides, flags) of a, b and bias for either kernel; absent ones point anywhere."""
    b_strides = (0, 0, 0, 0) if b is None else _with_halves(b.expand(a.shape))
    bias_stride = 0 if bias is None else bias.stride(0)
    strides = (*_with_halves(a), *b_strides, bias_stride, a.shape[1] // 2 * bias_stride)
    flags = {"HAS_B": b is not None, "B_OVER_TIME": _is_over_time(b, a), "HAS_BIAS": bias is not None}
    return (a, a if b is None else b, a if bias is None else bias), strides, flags


def _mask_of(options: _Options, seed: int | Tensor) -> tuple[tuple, dict]:
    """(arguments, flags) of the dropout for either kernel."""
    arguments = (seed, dropped_words(options.p_dropout), 1.0 / (1.0 - options.p_dropout))
    return arguments, {
        "GATE_FIRST": options.gate_first,
        "DROPOUT": options.dropout,
        "SEED_IN_MEMORY": isinstance(seed, Tensor),
    }


def _forward(a: Tensor, b: Tensor | None, bias: Tensor | None, seed: int | Tensor, options: _Options) -> Tensor:
    dtype = a.dtype
    for x in (b, bias):
        dtype = dtype if x is None else torch.promote_types(dtype, x.dtype)
    y = _empty_as(a, (a.shape[0], a.shape[1] // 2, a.shape[2]), dtype)
    if y.numel() == 0:
        return y
    others = () if b is None else (b,)
    plan = _plan("gated_activation_fwd", a, bias is not None or _is_over_time(b, a), y, *others)
    pointers, strides, flags = _inputs(a, b, bias)
    mask, mask_flags = _mask_of(options, seed)
    launch(
        OP, gated_activation_fwd_kernel, plan.grid(a.shape[0]),
        *pointers, y, *mask, plan.C, plan.T, *strides, *y.stride(),
        device=a.device, **flags, **mask_flags, **plan.constants(),
    )  # fmt: skip
    return y


def _backward(
    dy: Tensor,
    a: Tensor,
    b: Tensor | None,
    bias: Tensor | None,
    seed: int | Tensor,
    options: _Options,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a, b and bias, as far as they are needed."""
    if a.numel() == 0:
        return tuple(torch.zeros_like(x) if need else None for x, need in zip((a, b, bias), needs, strict=True))
    needs_a, needs_b, needs_bias = needs
    B, channels, _ = a.shape
    drops_before = options.dropout == "before"
    over_time = _is_over_time(b, a)
    sums_b = needs_b and over_time
    # Without dropout before b is added, a and b have the same gradient.
    sums_a = needs_bias and (drops_before or not sums_b)
    same = needs_a and needs_b and not (over_time or drops_before) and a.dtype == b.dtype
    stores_b = needs_b and not (over_time or same)
    da = _empty_as(a, a.shape, a.dtype) if needs_a else None
    db = _empty_as(a, a.shape, b.dtype) if stores_b else None
    others = [x for x in (dy, b, da, db) if x is not None]
    plan = _plan("gated_activation_bwd", a, bias is not None or over_time, *others)
    scratch = (B, triton.cdiv(plan.T, plan.tile()[1]), channels)
    sums_da = a.new_empty(scratch, dtype=torch.float32) if sums_a else None
    sums_db = a.new_empty(scratch, dtype=torch.float32) if sums_b else None
    pointers, strides, flags = _inputs(a, b, bias)
    mask, mask_flags = _mask_of(options, seed)
    results = [a if x is None else x for x in (da, db, sums_da, sums_db)]
    launch(
        OP, gated_activation_bwd_kernel, plan.grid(B),
        dy, *pointers, *results, *mask, plan.C, plan.T,
        *dy.stride(), *strides, *_with_halves(results[0]), *_with_halves(results[1]),
        device=a.device, **flags, **mask_flags,
        STORE_DA=needs_a, STORE_DB=stores_b, SUM_DA=sums_a, SUM_DB=sums_b, **plan.constants(),
    )  # fmt: skip
    if sums_b:
        db = sums_db.sum(1).sum_to_size(b.shape[0], channels).unsqueeze(2).to(b.dtype)
    elif needs_b:
        db = (da if same else db).sum_to_size(b.shape)
    dbias = (sums_da if sums_a else sums_db).sum((0, 1)).to(bias.dtype) if needs_bias else None
    return da, db, dbias


class _GatedActivation(Function):
    @staticmethod
    def forward(ctx, a, b, bias, seed, options):
        ctx.options = options
        ctx.seed = None if isinstance(seed, Tensor) else seed
        ctx.save_for_backward(a, b, bias, seed if ctx.seed is None else None)
        ctx.set_materialize_grads(False)
        return _forward(a, b, bias, seed, options)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        if dy is None:
            return None, None, None, None, None
        a, b, bias, seed = ctx.saved_tensors
        seed = ctx.seed if seed is None else seed
        return *_backward(dy, a, b, bias, seed, ctx.options, ctx.needs_input_grad[:3]), None, None


def gated_activation(
    a: Tensor,
    b: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels_last: bool = False,
    gate_first: bool = False,
    dropout: str | None = None,
    p_dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """tanh of one half of the channels of `a + bias + b` times the sigmoid of the other half.

    van den Oord et al. 2016, "WaveNet", section 2.3. Any strides; the result's order in memory is that of `a`.

    Args:
        a: [B, 2C, T].
        b: [B, 2C, T], or absent; its B and its T may be 1, to broadcast.
        bias: [2C], or absent.
        channels_last: a and b have their last two dimensions swapped, [B, T, 2C], and so has the result.
        gate_first: the sigmoid's half is the first, as in DiffWave and DiffSinger; else the tanh's is, as in
            WaveGlow, Glow-TTS, VITS, FreeVC and coqui.
        dropout: None; 'before': of `a + bias`, before b is added, as in Glow-TTS and coqui; 'after': of the
            product, as in VITS and FreeVC.
        p_dropout: probability of dropping an element, in [0, 1); the others are divided by 1 - p_dropout.
        seed: of the dropout's mask, an integer or a 0-d int64 tensor on the device of `a`, which must not change
            until the backward pass is done; None: drawn from PyTorch's generator. One seed gives one mask, in
            both layouts and on every device.

    Returns:
        [B, C, T], or [B, T, C] if channels_last; dtype: what those of the inputs promote to.

    Raises:
        FastglowError: shapes, `dropout`, `p_dropout` or `seed` that do not fit the above.
    """
    _check(a, b, bias, channels_last, dropout, p_dropout, seed)
    if p_dropout == 0:
        dropout = None
    if dropout is None:
        p_dropout, seed = 0.0, 0
    elif seed is None:
        seed = random_seed(a.device)
    seed_tensor = seed if isinstance(seed, Tensor) else None
    if not picks_triton(OP, a, b, bias, seed_tensor):
        return reference.gated_activation(
            a,
            b,
            bias,
            channels_last=channels_last,
            gate_first=gate_first,
            dropout=dropout,
            p_dropout=p_dropout,
            seed=seed,
        )
    if channels_last:
        a, b = a.transpose(1, 2), None if b is None else b.transpose(1, 2)
    y = _GatedActivation.apply(a, b, bias, seed, _Options(gate_first, dropout, p_dropout))
    return y.transpose(1, 2) if channels_last else y


def _check(
    a: Tensor,
    b: Tensor | None,
    bias: Tensor | None,
    channels_last: bool,
    dropout: str | None,
    p_dropout: float,
    seed: int | Tensor | None,
) -> None:
    channel, time = (2, 1) if channels_last else (1, 2)
    if a.dim() != 3 or a.shape[channel] % 2:
        layout = "[B, T, 2C]" if channels_last else "[B, 2C, T]"
        raise FastglowError(f"a has shape {tuple(a.shape)}: pass {layout}, an even number of channels")
    if b is not None and not (
        b.dim() == 3
        and b.shape[0] in (1, a.shape[0])
        and b.shape[channel] == a.shape[channel]
        and b.shape[time] in (1, a.shape[time])
    ):
        raise FastglowError(
            f"b has shape {tuple(b.shape)}: pass that of a, {tuple(a.shape)}, or 1 for its items or its time"
        )
    if bias is not None and bias.shape != (a.shape[channel],):
        raise FastglowError(f"bias has shape {tuple(bias.shape)}: pass one number a channel of a, [{a.shape[channel]}]")
    if dropout not in (None, "before", "after"):
        raise FastglowError(f"dropout {dropout!r} is unknown: pass None, 'before' or 'after'")
    if not 0 <= p_dropout < 1:
        raise FastglowError(f"p_dropout {p_dropout} is not a probability below 1")
    if isinstance(seed, Tensor):
        if seed.dim() or seed.dtype != torch.int64 or seed.device != a.device:
            raise FastglowError(
                f"seed is a tensor of shape {tuple(seed.shape)}, {seed.dtype} on {seed.device}: "
                f"pass an integer, or a 0-d torch.int64 tensor on {a.device}"
            )
    elif seed is not None and not -(2**63) <= seed < 2**63:
        raise FastglowError(f"seed {seed} does not fit 64 bits: use a smaller one")
