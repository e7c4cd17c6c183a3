"""Weight normalisation w = g v / |v|, one norm per output channel: of one weight, or of many in one launch.

Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..graphs import integer_table, pointer_table
from ..launch import Config, launch, pick_config
from ..operators import differentiable, operator, reference_gradients, scattered
from ..reference import weight_norm as reference

OP = "weight_norm"

# A tile is BR rows of BN channels of one tap.
CONFIGS: tuple[Config, ...] = (
    {"BR": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
    {"BR": 8, "BN": 128, "num_warps": 4, "num_stages": 1},
    {"BR": 2, "BN": 512, "num_warps": 4, "num_stages": 1},
    {"BR": 1, "BN": 1024, "num_warps": 4, "num_stages": 1},
)


class Weight(NamedTuple):
    """v, w or their gradients."""

    p: Any  # [rows, channels, taps]
    s_r: Any
    s_i: Any
    s_k: Any


class Shape(NamedTuple):
    rows: Any
    channels: Any
    taps: Any


class TableEntry(NamedTuple):
    """What the packed kernels know about a weight: a row of an int64 table in device memory."""

    rows: int
    channels: int
    taps: int
    v_s_r: int
    v_s_i: int
    v_s_k: int
    g_s_r: int
    columns: int  # of the matrix that the weight is a part of
    offset: int  # of its first element in the flat matrices
    dv_offset: int
    dg_offset: int


N_FIELDS = tl.constexpr(len(TableEntry._fields))


@triton.jit
def _normalise(v, p_g, s_g, w, shape, BR: tl.constexpr, BN: tl.constexpr):
    """Writes block `program_id(0)` of the rows of w = g v / |v|. v, w: Weight; p_g: [rows], s_g apart."""
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.arange(0, BN).to(tl.int64)[None, :]
    m_r = o_r < shape.rows
    b_squares = tl.zeros((BR, BN), tl.float32)
    for i in range(0, shape.channels, BN):
        m_tile = m_r[:, None] & (i + o_n < shape.channels)
        p_v = v.p + o_r[:, None] * v.s_r + (i + o_n) * v.s_i  # [BR, BN]
        for _ in range(shape.taps):
            b_v = tl.load(p_v, mask=m_tile, other=0.0).to(tl.float32)
            b_squares += b_v * b_v
            p_v += v.s_k
    b_norm = tl.sqrt_rn(tl.where(m_r, tl.sum(b_squares, axis=1), 1.0))
    b_scale = tl.div_rn(tl.load(p_g + o_r * s_g, mask=m_r, other=0.0).to(tl.float32), b_norm)[:, None]
    for i in range(0, shape.channels, BN):
        m_tile = m_r[:, None] & (i + o_n < shape.channels)
        p_v = v.p + o_r[:, None] * v.s_r + (i + o_n) * v.s_i
        p_w = w.p + o_r[:, None] * w.s_r + (i + o_n) * w.s_i
        for _ in range(shape.taps):
            b_v = tl.load(p_v, mask=m_tile, other=0.0).to(tl.float32)
            tl.store(p_w, (b_v * b_scale).to(w.p.dtype.element_ty), mask=m_tile)
            p_v += v.s_k
            p_w += w.s_k


@triton.jit
def weight_norm_fwd_kernel(v, p_g, s_g, w, shape, BR: tl.constexpr, BN: tl.constexpr):
    """Grid (blocks of rows,)."""
    _normalise(v, p_g, s_g, w, shape, BR, BN)


@triton.jit
def weight_norm_packed_fwd_kernel(p_pointers, p_table, p_typed, p_out, n, BR: tl.constexpr, BN: tl.constexpr):
    """
    Args:
        p_pointers: [2n] int64, addresses of every v, then of every g; p_typed: any v, for the dtype of all v and g.
        p_table: [n] `TableEntry`.
        p_out: all matrices, one after the other.
    """
    i_n = tl.program_id(1)
    p_entry = p_table + i_n * N_FIELDS
    shape = Shape(tl.load(p_entry), tl.load(p_entry + 1), tl.load(p_entry + 2))
    if tl.program_id(0) * BR < shape.rows:
        p_v = tl.load(p_pointers + i_n).to(p_typed.dtype)
        p_g = tl.load(p_pointers + n + i_n).to(p_typed.dtype)
        v = Weight(p_v, tl.load(p_entry + 3), tl.load(p_entry + 4), tl.load(p_entry + 5))
        s_g, columns, offset = tl.load(p_entry + 6), tl.load(p_entry + 7), tl.load(p_entry + 8)
        _normalise(v, p_g, s_g, Weight(p_out + offset, columns, 1, shape.channels), shape, BR, BN)


@triton.jit
def _normalise_backward(d, v, p_g, s_g, dv, p_dg, shape, BR: tl.constexpr, BN: tl.constexpr):
    """Writes block `program_id(0)` of the rows of dv, a Weight, and of dg, [rows] contiguous; either may be None."""
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.arange(0, BN).to(tl.int64)[None, :]
    m_r = o_r < shape.rows
    b_squares = tl.zeros((BR, BN), tl.float32)
    b_products = tl.zeros((BR, BN), tl.float32)
    for i in range(0, shape.channels, BN):
        m_tile = m_r[:, None] & (i + o_n < shape.channels)
        p_v = v.p + o_r[:, None] * v.s_r + (i + o_n) * v.s_i  # [BR, BN]
        p_d = d.p + o_r[:, None] * d.s_r + (i + o_n) * d.s_i
        for _ in range(shape.taps):
            b_v = tl.load(p_v, mask=m_tile, other=0.0).to(tl.float32)
            b_d = tl.load(p_d, mask=m_tile, other=0.0).to(tl.float32)
            b_squares += b_v * b_v
            b_products += b_d * b_v
            p_v += v.s_k
            p_d += d.s_k
    b_square = tl.where(m_r, tl.sum(b_squares, axis=1), 1.0)  # [BR]
    b_norm = tl.sqrt_rn(b_square)
    b_product = tl.sum(b_products, axis=1)
    if p_dg is not None:
        tl.store(p_dg + o_r, tl.div_rn(b_product, b_norm).to(p_dg.dtype.element_ty), mask=m_r)
    if dv is not None:
        b_scale = tl.div_rn(tl.load(p_g + o_r * s_g, mask=m_r, other=0.0).to(tl.float32), b_norm)[:, None]
        b_ratio = tl.div_rn(b_product, b_square)[:, None]
        for i in range(0, shape.channels, BN):
            m_tile = m_r[:, None] & (i + o_n < shape.channels)
            p_v = v.p + o_r[:, None] * v.s_r + (i + o_n) * v.s_i
            p_d = d.p + o_r[:, None] * d.s_r + (i + o_n) * d.s_i
            p_dv = dv.p + o_r[:, None] * dv.s_r + (i + o_n) * dv.s_i
            for _ in range(shape.taps):
                b_v = tl.load(p_v, mask=m_tile, other=0.0).to(tl.float32)
                b_d = tl.load(p_d, mask=m_tile, other=0.0).to(tl.float32)
                b_dv = b_scale * (b_d - b_v * b_ratio)
                tl.store(p_dv, b_dv.to(dv.p.dtype.element_ty), mask=m_tile)
                p_v += v.s_k
                p_d += d.s_k
                p_dv += dv.s_k


@triton.jit
def weight_norm_bwd_kernel(d, v, p_g, s_g, dv, p_dg, shape, BR: tl.constexpr, BN: tl.constexpr):
    """Grid (blocks of rows,)."""
    _normalise_backward(d, v, p_g, s_g, dv, p_dg, shape, BR, BN)


@triton.jit
def weight_norm_packed_bwd_kernel(p_pointers, p_table, p_d, p_dv, p_dg, n, BR: tl.constexpr, BN: tl.constexpr):
    """`p_d`: gradients of all matrices, one after the other; `p_dv`, `p_dg`: of all v and g; else as forward."""
    i_n = tl.program_id(1)
    p_entry = p_table + i_n * N_FIELDS
    shape = Shape(tl.load(p_entry), tl.load(p_entry + 1), tl.load(p_entry + 2))
    if tl.program_id(0) * BR < shape.rows:
        p_v = tl.load(p_pointers + i_n).to(p_dv.dtype)
        p_g = tl.load(p_pointers + n + i_n).to(p_dv.dtype)
        v = Weight(p_v, tl.load(p_entry + 3), tl.load(p_entry + 4), tl.load(p_entry + 5))
        s_g, columns, offset = tl.load(p_entry + 6), tl.load(p_entry + 7), tl.load(p_entry + 8)
        d = Weight(p_d + offset, columns, 1, shape.channels)
        dv = Weight(p_dv + tl.load(p_entry + 9), shape.channels * shape.taps, shape.taps, 1)
        _normalise_backward(d, v, p_g, s_g, dv, p_dg + tl.load(p_entry + 10), shape, BR, BN)


def _heuristic(dtype: torch.dtype, rows: int, columns: int) -> Config:
    return next((config for config in CONFIGS if columns <= config["BN"]), CONFIGS[-1])


def _collapsed(tensors: Iterable[Tensor | None]) -> tuple[Shape, list[Weight | None]]:
    """Weights of one shape for a kernel; taps count as channels where every layout in memory allows it."""
    present = [x for x in tensors if x is not None]
    rows, channels, taps = present[0].shape
    if all(x.stride(1) == taps * x.stride(2) for x in present):
        shape = Shape(rows, channels * taps, 1)
        return shape, [None if x is None else Weight(x, x.stride(0), x.stride(2), 0) for x in tensors]
    return Shape(rows, channels, taps), [None if x is None else Weight(x, *x.stride()) for x in tensors]


def _forward(v: Tensor, g: Tensor) -> Tensor:
    w = _empty(v, g)
    if len(w):
        shape, (v_weight, w_weight) = _collapsed((v, w))
        config = pick_config("weight_norm_fwd", CONFIGS, _heuristic, v, rows=shape.rows, columns=shape.channels)
        launch(
            OP, weight_norm_fwd_kernel, (triton.cdiv(shape.rows, config["BR"]),),
            v_weight, g, g.stride(0), w_weight, shape, device=v.device, **config,
        )  # fmt: skip
    return w


def _empty(v: Tensor, g: Tensor) -> Tensor:
    return torch.empty(v.shape, dtype=v.dtype, device=v.device)


def _backward(needs: Sequence[bool], d: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
    gradients = _empty_gradients(needs, d, v, g)
    if len(v):
        dv, dg = scattered(gradients, needs)
        shape, (d_weight, v_weight, dv_weight) = _collapsed((d, v, dv))
        config = pick_config("weight_norm_bwd", CONFIGS, _heuristic, v, rows=shape.rows, columns=shape.channels)
        launch(
            OP, weight_norm_bwd_kernel, (triton.cdiv(shape.rows, config["BR"]),),
            d_weight, v_weight, g, g.stride(0), dv_weight, dg, shape, device=v.device, **config,
        )  # fmt: skip
    return gradients


def _empty_gradients(needs: Sequence[bool], d: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
    inputs = zip((v, g), needs, strict=True)
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x, needed in inputs if needed]


def _reference_backward(needs: Sequence[bool], d: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
    return reference_gradients(reference.weight_norm, (v, g), needs, (d,))


def _table(sizes: Sequence[int], tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[TableEntry]:
    """An entry per weight, without rows where nothing is wanted."""
    n = len(tensors) // 2
    members = iter(zip(tensors[:n], tensors[n:], wanted, strict=True))
    entries: list[TableEntry] = []
    start = dv_offset = dg_offset = 0
    for size in sizes:
        group = [next(members) for _ in range(size)]
        rows = len(group[0][0])
        columns = sum(v.shape[1] * v.shape[2] for v, _, _ in group)
        offset = start
        for v, g, is_wanted in group:
            _, channels, taps = v.shape
            s_r, s_i, s_k = v.stride()
            sizes_and_strides = (rows if is_wanted else 0, channels, taps, s_r, s_i, s_k, g.stride(0))
            entries.append(TableEntry(*sizes_and_strides, columns, offset, dv_offset, dg_offset))
            offset += channels * taps
            dv_offset += v.numel()
            dg_offset += rows
        start += rows * columns
    return entries


def _packed_launch(
    kernel: str, entries: Sequence[TableEntry], tensors: Sequence[Tensor]
) -> tuple[tuple[int, int], Tensor, Config]:
    """(grid, the entries on the device, configuration)."""
    rows = max(entry.rows for entry in entries)
    channels = max(entry.channels for entry in entries)
    config = pick_config(kernel, CONFIGS, _heuristic, tensors[0], rows=rows, columns=channels)
    return (triton.cdiv(rows, config["BR"]), len(entries)), integer_table(tuple(entries), tensors[0].device), config


def _packed_forward(sizes: Sequence[int], dtype: torch.dtype, vs: Sequence[Tensor], gs: Sequence[Tensor]) -> Tensor:
    """`sizes`: number of weights in each group."""
    tensors = [*vs, *gs]
    entries = _table(sizes, tensors, [True] * sum(sizes))
    flat = _empty_packed(sizes, dtype, vs, gs)
    grid, table, config = _packed_launch("weight_norm_packed_fwd", entries, tensors)
    if grid[0]:
        launch(
            OP, weight_norm_packed_fwd_kernel, grid, pointer_table(tensors), table, tensors[0], flat, len(entries),
            device=flat.device, **config,
        )  # fmt: skip
    return flat


def _empty_packed(sizes: Sequence[int], dtype: torch.dtype, vs: Sequence[Tensor], gs: Sequence[Tensor]) -> Tensor:
    return torch.empty(sum(v.numel() for v in vs), dtype=dtype, device=vs[0].device)


def _reference_packed(sizes: Sequence[int], dtype: torch.dtype, vs: Sequence[Tensor], gs: Sequence[Tensor]) -> Tensor:
    pairs = iter(zip(vs, gs, strict=True))
    matrices = reference.weight_norm_packed([[next(pairs) for _ in range(size)] for size in sizes], dtype)
    return torch.cat([matrix.flatten() for matrix in matrices])


def _packed_backward(
    needs: Sequence[bool], sizes: Sequence[int], d: Tensor, vs: Sequence[Tensor], gs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of all v and of all g, one after the other; unset for weights that need none."""
    tensors = [*vs, *gs]
    entries = _table(sizes, tensors, needs)
    dv, dg = _empty_packed_gradients(needs, sizes, d, vs, gs)
    grid, table, config = _packed_launch("weight_norm_packed_bwd", entries, tensors)
    if grid[0]:
        launch(
            OP, weight_norm_packed_bwd_kernel, grid, pointer_table(tensors), table, d.contiguous(), dv, dg, len(vs),
            device=d.device, **config,
        )  # fmt: skip
    return dv, dg


def _empty_packed_gradients(needs, sizes, d, vs: Sequence[Tensor], gs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    dv, dg = (
        torch.empty(sum(x.numel() for x in tensors), dtype=vs[0].dtype, device=vs[0].device) for tensors in (vs, gs)
    )
    return dv, dg


def _reference_packed_backward(
    needs: Sequence[bool], sizes: Sequence[int], d: Tensor, vs: Sequence[Tensor], gs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    n = len(vs)
    found = reference_gradients(
        lambda *tensors: _reference_packed(sizes, d.dtype, tensors[:n], tensors[n:]), [*vs, *gs], [True] * 2 * n, (d,)
    )
    return torch.cat([x.flatten() for x in found[:n]]), torch.cat([x.flatten() for x in found[n:]])


weight_norm_operator = operator(
    OP, "(Tensor v, Tensor g) -> Tensor", kernel=_forward, empty=_empty, reference=reference.weight_norm
)
_gradients = operator(
    f"{OP}_backward",
    "(bool[] needs, Tensor d, Tensor v, Tensor g) -> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)
packed_operator = operator(
    f"{OP}_packed",
    "(int[] sizes, ScalarType dtype, Tensor[] vs, Tensor[] gs) -> Tensor",
    kernel=_packed_forward,
    empty=_empty_packed,
    reference=_reference_packed,
)
_packed_gradients = operator(
    f"{OP}_packed_backward",
    "(bool[] needs, int[] sizes, Tensor d, Tensor[] vs, Tensor[] gs) -> (Tensor, Tensor)",
    kernel=_packed_backward,
    empty=_empty_packed_gradients,
    reference=_reference_packed_backward,
)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    return tuple(scattered(_gradients(needs, d, *ctx.saved_tensors), needs))


def _save_packed(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.sizes, _, vs, gs = inputs
    ctx.save_for_backward(*vs, *gs)


def _differentiate_packed(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    n = len(ctx.saved_tensors) // 2
    groups = list(ctx.saved_tensors[:n]), list(ctx.saved_tensors[n:])
    needs = ctx.needs_input_grad[2:4]
    either = [v or g for v, g in zip(*needs, strict=True)]
    found = []
    for flat, tensors, wanted in zip(_packed_gradients(either, ctx.sizes, d, *groups), groups, needs, strict=True):
        parts = zip(flat.split([x.numel() for x in tensors]), tensors, wanted, strict=True)
        found.append([part.view(x.shape) if is_wanted else None for part, x, is_wanted in parts])
    return None, None, *found


differentiable(weight_norm_operator, _save, _differentiate, _gradients)
differentiable(packed_operator, _save_packed, _differentiate_packed, _packed_gradients)
