"""The gated activation unit of WaveNet: one pass over memory forward, one backward.

The backward pass recomputes the gate and the dropout mask. Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import (
    Signal,
    empty_in_order_of,
)
from ..launch import Config, launch, pick_config, split_config
from ..operators import differentiable, operator, reference_gradients, scattered
from ..reference import gated_activation as reference
from ..reference.philox import dropped_words

OP = "gated_activation"

CONFIGS = (  # a tile of y; columns are contiguous in memory
    {"ROWS": 1, "COLUMNS": 1024, "num_warps": 4, "num_stages": 1},
    {"ROWS": 16, "COLUMNS": 128, "num_warps": 8, "num_stages": 1},
    {"ROWS": 32, "COLUMNS": 64, "num_warps": 8, "num_stages": 1},
)

_STREAM = tl.constexpr(reference.DROPOUT_STREAM)


class Halves(NamedTuple):
    """All None for an absent tensor: Triton 3.6 cannot compare a struct that holds a None with None."""

    p: Any  # [B, 2C, T]; for bias [2C]
    s_b: Any  # None for bias
    s_c: Any
    s_t: Any  # None for bias, and for b broadcast over time
    s_half: Any  # from the first to the second half of the channels


class Inputs(NamedTuple):
    """In kernels as commented; on the host the tensors, their gradients, or whether they need one."""

    a: Any  # Halves
    b: Any  # Halves
    bias: Any  # Halves


class Gradients(NamedTuple):
    a: Any  # Halves
    b: Any  # Halves
    a_sums: Any  # [B, tiles of T, 2C] float32, summed over the time steps of a tile; or None
    b_sums: Any  # likewise


class Blocks(NamedTuple):
    ROWS: Any
    COLUMNS: Any
    CHANNELS_INNER: Any  # columns are channels, not time steps
    FILTER: Any  # 0 or 1: half of the channels under the tanh
    GATE: Any  # the other half
    DROPOUT: Any  # 'before', 'after' or None


class Dropout(NamedTuple):
    seed: Any  # int64
    n_dropped: Any  # of the 2^24 random words
    scale: Any


class Tile(NamedTuple):
    """The elements of y that a program computes: channels o_c and time steps o_t of item i_b."""

    C: Any  # channels of y
    T: Any
    i_b: Any
    i_sums: Any  # row of the scratch buffer of sums over time
    o_c: Any  # [BC] int64
    o_t: Any  # [BT] int64
    m_c: Any  # [BC]
    m: Any  # [BC, BT]


@triton.jit
def _tile(C, T, blocks):
    BC: tl.constexpr = blocks.COLUMNS if blocks.CHANNELS_INNER else blocks.ROWS
    BT: tl.constexpr = blocks.ROWS if blocks.CHANNELS_INNER else blocks.COLUMNS
    n_t, n_c = (T - 1) // BT + 1, (C - 1) // BC + 1  # T + BT may exceed 2^31
    i_t = (tl.program_id(0) % n_t).to(tl.int64)
    i_c = (tl.program_id(0) // n_t % n_c).to(tl.int64)
    i_b = (tl.program_id(0) // n_t // n_c).to(tl.int64)
    o_c, o_t = i_c * BC + tl.arange(0, BC), i_t * BT + tl.arange(0, BT)
    m_c = o_c < C
    return Tile(C, T, i_b, i_b * n_t + i_t, o_c, o_t, m_c, m_c[:, None] & (o_t < T)[None, :])


@triton.jit
def _pointers(x, tile):
    """[BC, BT]."""
    return x.p + tile.i_b * x.s_b + tile.o_c[:, None] * x.s_c + tile.o_t[None, :] * x.s_t


@triton.jit
def _load_half(x, HALF: tl.constexpr, tile):
    """float32 [BC, BT], or [BC, 1] without a time stride."""
    if x.s_t is not None:
        return tl.load(_pointers(x, tile) + x.s_half * HALF, mask=tile.m, other=0.0).to(tl.float32)
    else:
        p_x = x.p + tile.o_c * x.s_c + x.s_half * HALF
        if x.s_b is not None:
            p_x += tile.i_b * x.s_b
        return tl.load(p_x, mask=tile.m_c, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _dropout_factor(dropout, tile, i_row, o_first):
    """0 or `scale`, [BC, BT]. Channel 0 is row i_row of T elements, counted from element o_first."""
    o_element = (i_row + tile.o_c)[:, None] * tile.T + tile.o_t[None, :] + o_first
    word, _, _, _ = tl.philox(dropout.seed, o_element.to(tl.uint32), (o_element >> 32).to(tl.uint32), 0, _STREAM)
    b_word = (word.to(tl.uint32, bitcast=True) >> 8).to(tl.int32)
    return tl.where(b_word >= dropout.n_dropped, dropout.scale, 0.0)


@triton.jit
def _half(inputs, HALF: tl.constexpr, tile, dropout, blocks):
    """One half of u, and the dropout factor before b is added, both [BC, BT]."""
    b_u = _load_half(inputs.a, HALF, tile)
    if inputs.bias.p is not None:
        b_u += _load_half(inputs.bias, HALF, tile)
    b_factor = 1.0
    if blocks.DROPOUT == "before":
        o_half = tile.C * tl.cast(tile.T, tl.int64) * HALF
        b_factor = _dropout_factor(dropout, tile, 2 * tile.i_b * tile.C, o_half)
        b_u *= b_factor
    if inputs.b.p is not None:
        b_u += _load_half(inputs.b, HALF, tile)
    return b_u, b_factor


@triton.jit
def _gate(inputs, tile, dropout, blocks):
    """tanh(f), sigmoid(g), and the dropout factors of f and g before b is added; all [BC, BT]."""
    b_f, b_factor_f = _half(inputs, blocks.FILTER, tile, dropout, blocks)
    b_g, b_factor_g = _half(inputs, blocks.GATE, tile, dropout, blocks)
    return 2.0 * tl.sigmoid(2.0 * b_f) - 1.0, tl.sigmoid(b_g), b_factor_f, b_factor_g


@triton.jit
def _store_halves(x, b_df, b_dg, tile, blocks):
    """Stores df and dg, both [BC, BT], in their halves of x."""
    p_x = _pointers(x, tile)
    tl.store(p_x + x.s_half * blocks.FILTER, b_df, mask=tile.m)
    tl.store(p_x + x.s_half * blocks.GATE, b_dg, mask=tile.m)


@triton.jit
def _store_sums(p_sums, b_df, b_dg, tile, blocks):
    """Sums over the time steps of a tile, [BC], for both halves."""
    p_sums += tile.i_sums * 2 * tile.C + tile.o_c  # [BC]
    tl.store(p_sums + tile.C * blocks.FILTER, tl.sum(b_df, axis=1), mask=tile.m_c)
    tl.store(p_sums + tile.C * blocks.GATE, tl.sum(b_dg, axis=1), mask=tile.m_c)


@triton.jit(do_not_specialize=["seed", "n_dropped"])
def gated_activation_fwd_kernel(inputs, y, seed, n_dropped, scale, C, T, blocks):
    """Grid (tiles of y,). y: Signal [B, C, T]; seed: int64, or a pointer to one."""
    tile = _tile(C, T, blocks)
    dropout = Dropout(tl.load(seed) if seed.dtype.is_ptr() else seed.to(tl.int64), n_dropped, scale)
    b_tanh, b_sigmoid, _, _ = _gate(inputs, tile, dropout, blocks)
    b_y = b_tanh * b_sigmoid
    if blocks.DROPOUT == "after":
        b_y *= _dropout_factor(dropout, tile, tile.i_b * tile.C, 0)
    tl.store(_pointers(y, tile), b_y, mask=tile.m)


@triton.jit(do_not_specialize=["seed", "n_dropped"])
def gated_activation_bwd_kernel(dy, inputs, gradients, seed, n_dropped, scale, C, T, blocks):
    """Grid (tiles of y,). dy: Signal [B, C, T]; gradients: Gradients; else as forward."""
    tile = _tile(C, T, blocks)
    dropout = Dropout(tl.load(seed) if seed.dtype.is_ptr() else seed.to(tl.int64), n_dropped, scale)
    b_tanh, b_sigmoid, b_factor_f, b_factor_g = _gate(inputs, tile, dropout, blocks)
    b_dy = tl.load(_pointers(dy, tile), mask=tile.m, other=0.0).to(tl.float32)
    if blocks.DROPOUT == "after":
        b_dy *= _dropout_factor(dropout, tile, tile.i_b * tile.C, 0)
    b_df = b_dy * b_sigmoid * (1.0 - b_tanh * b_tanh)
    b_dg = b_dy * b_tanh * b_sigmoid * (1.0 - b_sigmoid)
    if gradients.b.p is not None:
        _store_halves(gradients.b, b_df, b_dg, tile, blocks)
    if gradients.b_sums is not None:
        _store_sums(gradients.b_sums, b_df, b_dg, tile, blocks)
    b_df *= b_factor_f
    b_dg *= b_factor_g
    if gradients.a.p is not None:
        _store_halves(gradients.a, b_df, b_dg, tile, blocks)
    if gradients.a_sums is not None:
        _store_sums(gradients.a_sums, b_df, b_dg, tile, blocks)


class Options(NamedTuple):
    gate_first: bool
    dropout: str | None
    p_dropout: float


class Plan(NamedTuple):
    """A kernel's view of the dimensions, and its configuration."""

    C: int  # 1 where channels and time are one long row
    T: int
    channels_inner: bool
    config: Config

    def tile(self) -> tuple[int, int]:
        """(BC, BT)."""
        rows, columns = self.config["ROWS"], self.config["COLUMNS"]
        return (columns, rows) if self.channels_inner else (rows, columns)

    def launch(self, kernel: Any, signals: tuple, seed: int | Tensor, options: Options, a: Tensor) -> None:
        BC, BT = self.tile()
        blocks, launch_options = split_config(
            Blocks, self.config, CHANNELS_INNER=self.channels_inner, DROPOUT=options.dropout,
            FILTER=int(options.gate_first), GATE=int(not options.gate_first),
        )  # fmt: skip
        launch(
            OP, kernel, (len(a) * triton.cdiv(self.C, BC) * triton.cdiv(self.T, BT),),
            *signals, seed, dropped_words(options.p_dropout), 1.0 / (1.0 - options.p_dropout),
            self.C, self.T, blocks, device=a.device, **launch_options,
        )  # fmt: skip


def _heuristic(dtype: torch.dtype, rows: int, columns: int) -> Config:
    if columns >= 4096:
        return CONFIGS[0]
    return CONFIGS[1] if columns > 96 else CONFIGS[2]


def _plan(kernel: str, a: Tensor, has_channel_terms: bool, *others: Tensor | None) -> Plan:
    C, T = a.shape[1] // 2, a.shape[2]
    signals = [x for x in (a, *others) if x is not None]
    one_row = not has_channel_terms and all(x.stride(1) == T * x.stride(2) for x in signals)
    channels_inner = not one_row and a.stride(1) <= a.stride(2)
    if one_row:
        C, T = 1, C * T
    rows, columns = (T, C) if channels_inner else (C, T)
    return Plan(C, T, channels_inner, pick_config(kernel, CONFIGS, _heuristic, a, rows=rows, columns=columns))


def _is_over_time(b: Tensor | None, a: Tensor) -> bool:
    return b is not None and b.shape[2] == 1 < a.shape[2]


def _halves(x: Tensor | None) -> Halves:
    if x is None:
        return Halves(None, None, None, None, None)
    return Halves(x, x.stride(0), x.stride(1), x.stride(2), x.shape[1] // 2 * x.stride(1))


def _inputs(a: Tensor, b: Tensor | None, bias: Tensor | None) -> Inputs:
    inputs = Inputs(_halves(a), _halves(None if b is None else b.expand(a.shape)), _halves(None))
    if _is_over_time(b, a):
        inputs = inputs._replace(b=inputs.b._replace(s_t=None))
    if bias is not None:
        inputs = inputs._replace(bias=Halves(bias, None, bias.stride(0), None, len(bias) // 2 * bias.stride(0)))
    return inputs


def _empty(a: Tensor, b: Tensor | None, bias: Tensor | None, *_: Any) -> Tensor:
    dtype = a.dtype
    for x in (b, bias):
        dtype = dtype if x is None else torch.promote_types(dtype, x.dtype)
    return empty_in_order_of(a, (a.shape[0], a.shape[1] // 2, a.shape[2]), dtype)


def _forward(
    a: Tensor, b: Tensor | None, bias: Tensor | None, seed: int, seed_in_memory: Tensor | None, *options: Any
) -> Tensor:
    y = _empty(a, b, bias)
    if y.numel() == 0:
        return y
    plan = _plan("gated_activation_fwd", a, bias is not None or _is_over_time(b, a), y, b)
    signals = _inputs(a, b, bias), Signal.of(y)
    plan.launch(
        gated_activation_fwd_kernel, signals, seed if seed_in_memory is None else seed_in_memory, Options(*options), a
    )
    return y


def _backward(
    needs: Sequence[bool],
    dy: Tensor,
    a: Tensor,
    b: Tensor | None,
    bias: Tensor | None,
    seed: int,
    seed_in_memory: Tensor | None,
    *more: Any,
) -> list[Tensor]:
    """The gradients of those of a, b and bias that need one."""
    needed, options = Inputs(*needs), Options(*more)
    inputs, over_time, drops_before = _inputs(a, b, bias), _is_over_time(b, a), options.dropout == "before"
    has_channel_terms, b_read = bias is not None or over_time, b
    b, bias = b if needed.b else None, bias if needed.bias else None
    if a.numel() == 0:
        return [torch.zeros_like(x) for x in (a if needed.a else None, b, bias) if x is not None]
    B, channels, T = a.shape
    da = empty_in_order_of(a, (B, channels, T), a.dtype) if needed.a else None
    db = None if b is None or over_time else empty_in_order_of(a, (B, channels, T), b.dtype)
    plan = _plan("gated_activation_bwd", a, has_channel_terms, dy, b_read, da, db)
    scratch = (B, triton.cdiv(plan.T, plan.tile()[1]), channels)
    db_sums = a.new_empty(scratch, dtype=torch.float32) if b is not None and over_time else None
    sums_da = bias is not None and (drops_before or db_sums is None)
    da_sums = a.new_empty(scratch, dtype=torch.float32) if sums_da else None
    gradients = Gradients(_halves(da), _halves(db), da_sums, db_sums)
    plan.launch(
        gated_activation_bwd_kernel, (Signal.of(dy), inputs, gradients),
        seed if seed_in_memory is None else seed_in_memory, options, a,
    )  # fmt: skip
    if b is not None and db_sums is not None:
        db = db_sums.sum(1).sum_to_size(b.shape[0], channels).unsqueeze(2).to(b.dtype)
    elif b is not None and db is not None:
        db = db if b.shape == a.shape else db.sum_to_size(b.shape).contiguous()
    sums = db_sums if da_sums is None else da_sums
    dbias = None if bias is None or sums is None else sums.sum((0, 1)).to(bias.dtype)
    return [x for x in (da, db, dbias) if x is not None]


def _empty_gradients(
    needs: Sequence[bool], dy: Tensor, a: Tensor, b: Tensor | None, bias: Tensor | None, *_: Any
) -> list[Tensor]:
    needed, gradients = Inputs(*needs), []
    if needed.a:
        gradients.append(empty_in_order_of(a, a.shape, a.dtype))
    if needed.b and b is not None:
        like_a = b.shape == a.shape and not _is_over_time(b, a)
        gradients.append(empty_in_order_of(a, a.shape, b.dtype) if like_a else b.new_empty(b.shape))
    if needed.bias and bias is not None:
        gradients.append(bias.new_empty(bias.shape))
    return gradients


def _reference(
    a: Tensor, b: Tensor | None, bias: Tensor | None, seed: int, seed_in_memory: Tensor | None, *options: Any
) -> Tensor:
    given = seed if seed_in_memory is None else seed_in_memory
    return reference.gated_activation(a, b, bias, **Options(*options)._asdict(), seed=given)


def _reference_backward(needs: Sequence[bool], dy: Tensor, *arguments: Any) -> list[Tensor]:
    tensors, options = arguments[:3], arguments[3:]
    return reference_gradients(lambda *x: _reference(*x, *options), tensors, needs, (dy,))


_ARGUMENTS = (
    "Tensor a, Tensor? b, Tensor? bias, SymInt seed, Tensor? seed_in_memory, bool gate_first, str? dropout, "
    "float p_dropout"
)
gated_activation_operator = operator(
    OP, f"({_ARGUMENTS}) -> Tensor", kernel=_forward, empty=_empty, reference=_reference
)
_gradients = operator(
    f"{OP}_backward",
    f"(bool[] needs, Tensor dy, {_ARGUMENTS}) -> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    a, b, bias, ctx.seed, seed_in_memory, *ctx.options = inputs
    ctx.save_for_backward(a, b, bias, seed_in_memory)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    n_others = 2 + len(ctx.options)
    if dy is None:
        return (None,) * (3 + n_others)
    a, b, bias, seed_in_memory = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    # Without dropout before b is added, a and b have the same gradient.
    same = needs[0] and needs[1] and ctx.options[1] != "before" and not _is_over_time(b, a) and a.dtype == b.dtype
    needs[1] = needs[1] and not same
    found = _gradients(needs, dy, a, b, bias, ctx.seed, seed_in_memory, *ctx.options)
    da, db, dbias = scattered(found, needs)
    db = da.sum_to_size(b.shape) if same and da is not None else db
    return (da, db, dbias, *(None,) * n_others)


differentiable(gated_activation_operator, _save, _differentiate, _gradients)
