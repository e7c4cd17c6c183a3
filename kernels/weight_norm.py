r"""Weight normalisation w = g v / |v|, one norm an output channel: one weight, or all weights of a WN in one launch.

Forward, a program has a block of rows (output channels) and goes over them twice, for |v|^2 and for w; the second time
they come from the cache. Backward, with d = dw, likewise, in the first pass <d, v> and |v|^2:

    dg = <d, v> / |v|        dv = g / |v| (d - v <d, v> / |v|^2)

Packed, the weights of a group stand side by side in one matrix, taps outside channels (column offset_i + tap in_i +
channel): what the WaveNet layer's implicit GEMM reads. All matrices are views of one flat buffer, so are the gradients;
the kernel finds its tensors through a table of addresses and one of shapes. A launch is as wide as its longest weight:
programs beyond the end of a shorter one exit at once.

Arithmetic is float32, whatever is read and written. |v| = 0 gives NaN, as PyTorch's weight norm does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from . import backend
from .graphs import integer_table, pointer_table
from .launch import Config, launch, pick_config
from .reference import weight_norm as reference

OP = "weight_norm"

# BR rows of BN channels (of one tap) at a time.
CONFIGS: tuple[Config, ...] = (
    {"BR": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
    {"BR": 8, "BN": 128, "num_warps": 4, "num_stages": 1},
    {"BR": 2, "BN": 512, "num_warps": 4, "num_stages": 1},
    {"BR": 1, "BN": 1024, "num_warps": 4, "num_stages": 1},
)


@triton.jit
def _normalise(
    p_v, p_g, p_w, n_rows, n_in, n_taps, s_vr, s_vi, s_vk, s_gr, s_wr, s_wi, s_wk, BR: tl.constexpr, BN: tl.constexpr
):
    """Block `program_id(0)` of w's rows; strides of rows, channels and taps."""
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.arange(0, BN).to(tl.int64)[None, :]
    m_r = o_r < n_rows
    b_squares = tl.zeros((BR, BN), tl.float32)
    for i in range(0, n_in, BN):
        m_tile = m_r[:, None] & (i + o_n < n_in)
        p_tile = p_v + o_r[:, None] * s_vr + (i + o_n) * s_vi  # [BR, BN]
        for _ in range(n_taps):
            b_v = tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
            b_squares += b_v * b_v
            p_tile += s_vk
    b_norm = tl.sqrt_rn(tl.where(m_r, tl.sum(b_squares, axis=1), 1.0))
    b_scale = tl.div_rn(tl.load(p_g + o_r * s_gr, mask=m_r, other=0.0).to(tl.float32), b_norm)[:, None]
    for i in range(0, n_in, BN):
        m_tile = m_r[:, None] & (i + o_n < n_in)
        p_tile = p_v + o_r[:, None] * s_vr + (i + o_n) * s_vi
        p_out = p_w + o_r[:, None] * s_wr + (i + o_n) * s_wi
        for _ in range(n_taps):
            b_v = tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
            tl.store(p_out, (b_v * b_scale).to(p_w.dtype.element_ty), mask=m_tile)
            p_tile += s_vk
            p_out += s_wk


@triton.jit
def weight_norm_fwd_kernel(
    p_v, p_g, p_w, n_rows, n_in, n_taps, s_vr, s_vi, s_vk, s_gr, s_wr, s_wi, s_wk, BR: tl.constexpr, BN: tl.constexpr
):
    _normalise(p_v, p_g, p_w, n_rows, n_in, n_taps, s_vr, s_vi, s_vk, s_gr, s_wr, s_wi, s_wk, BR, BN)


@triton.jit
def weight_norm_packed_fwd_kernel(
    p_pointers, p_layout, p_typed, p_out, n, LAYOUT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr
):
    """`p_pointers`: n of v, then n of g; `p_layout`: `_Weight`s; `p_typed`: any v, all v and g are of its dtype."""
    i_n = tl.program_id(1)
    p_weight = p_layout + i_n * LAYOUT
    n_rows, n_in, n_taps = tl.load(p_weight), tl.load(p_weight + 1), tl.load(p_weight + 2)
    if tl.program_id(0) * BR < n_rows:
        p_v = tl.load(p_pointers + i_n).to(p_typed.dtype)
        p_g = tl.load(p_pointers + n + i_n).to(p_typed.dtype)
        s_vr, s_vi, s_vk = tl.load(p_weight + 3), tl.load(p_weight + 4), tl.load(p_weight + 5)
        s_gr, s_wr, offset = tl.load(p_weight + 6), tl.load(p_weight + 7), tl.load(p_weight + 8)
        _normalise(p_v, p_g, p_out + offset, n_rows, n_in, n_taps, s_vr, s_vi, s_vk, s_gr, s_wr, 1, n_in, BR, BN)


@triton.jit
def _normalise_backward(
    p_d, p_v, p_g, p_dv, p_dg, n_rows, n_in, n_taps,
    s_dr, s_di, s_dk, s_vr, s_vi, s_vk, s_gr, s_or, s_oi, s_ok,
    BR: tl.constexpr, BN: tl.constexpr, HAS_DV: tl.constexpr, HAS_DG: tl.constexpr,
):  # fmt: skip
    """Block `program_id(0)` of the rows of dv, of strides s_o*, and of dg, contiguous."""
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.arange(0, BN).to(tl.int64)[None, :]
    m_r = o_r < n_rows
    b_squares = tl.zeros((BR, BN), tl.float32)
    b_products = tl.zeros((BR, BN), tl.float32)
    for i in range(0, n_in, BN):
        m_tile = m_r[:, None] & (i + o_n < n_in)
        p_tile = p_v + o_r[:, None] * s_vr + (i + o_n) * s_vi  # [BR, BN]
        p_d_tile = p_d + o_r[:, None] * s_dr + (i + o_n) * s_di
        for _ in range(n_taps):
            b_v = tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
            b_d = tl.load(p_d_tile, mask=m_tile, other=0.0).to(tl.float32)
            b_squares += b_v * b_v
            b_products += b_d * b_v
            p_tile += s_vk
            p_d_tile += s_dk
    b_square = tl.where(m_r, tl.sum(b_squares, axis=1), 1.0)  # [BR]
    b_norm = tl.sqrt_rn(b_square)
    b_product = tl.sum(b_products, axis=1)
    if HAS_DG:
        tl.store(p_dg + o_r, tl.div_rn(b_product, b_norm).to(p_dg.dtype.element_ty), mask=m_r)
    if HAS_DV:
        b_scale = tl.div_rn(tl.load(p_g + o_r * s_gr, mask=m_r, other=0.0).to(tl.float32), b_norm)[:, None]
        b_share = tl.div_rn(b_product, b_square)[:, None]
        for i in range(0, n_in, BN):
            m_tile = m_r[:, None] & (i + o_n < n_in)
            p_tile = p_v + o_r[:, None] * s_vr + (i + o_n) * s_vi
            p_d_tile = p_d + o_r[:, None] * s_dr + (i + o_n) * s_di
            p_out = p_dv + o_r[:, None] * s_or + (i + o_n) * s_oi
            for _ in range(n_taps):
                b_v = tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
                b_d = tl.load(p_d_tile, mask=m_tile, other=0.0).to(tl.float32)
                b_dv = b_scale * (b_d - b_v * b_share)
                tl.store(p_out, b_dv.to(p_dv.dtype.element_ty), mask=m_tile)
                p_tile += s_vk
                p_d_tile += s_dk
                p_out += s_ok


@triton.jit
def weight_norm_bwd_kernel(
    p_d, p_v, p_g, p_dv, p_dg, n_rows, n_in, n_taps,
    s_dr, s_di, s_dk, s_vr, s_vi, s_vk, s_gr, s_or, s_oi, s_ok,
    BR: tl.constexpr, BN: tl.constexpr, HAS_DV: tl.constexpr, HAS_DG: tl.constexpr,
):  # fmt: skip
    _normalise_backward(
        p_d, p_v, p_g, p_dv, p_dg, n_rows, n_in, n_taps,
        s_dr, s_di, s_dk, s_vr, s_vi, s_vk, s_gr, s_or, s_oi, s_ok, BR, BN, HAS_DV, HAS_DG,
    )  # fmt: skip


@triton.jit
def weight_norm_packed_bwd_kernel(
    p_pointers, p_layout, p_d, p_dv, p_dg, n, LAYOUT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr
):
    i_n = tl.program_id(1)
    p_weight = p_layout + i_n * LAYOUT
    n_rows, n_in, n_taps = tl.load(p_weight), tl.load(p_weight + 1), tl.load(p_weight + 2)
    if tl.program_id(0) * BR < n_rows:
        p_v = tl.load(p_pointers + i_n).to(p_dv.dtype)
        p_g = tl.load(p_pointers + n + i_n).to(p_dv.dtype)
        s_vr, s_vi, s_vk = tl.load(p_weight + 3), tl.load(p_weight + 4), tl.load(p_weight + 5)
        s_gr, s_dr, offset = tl.load(p_weight + 6), tl.load(p_weight + 7), tl.load(p_weight + 8)
        dv_offset, dg_offset = tl.load(p_weight + 9), tl.load(p_weight + 10)
        _normalise_backward(
            p_d + offset, p_v, p_g, p_dv + dv_offset, p_dg + dg_offset, n_rows, n_in, n_taps,
            s_dr, 1, n_in, s_vr, s_vi, s_vk, s_gr, n_in * n_taps, n_taps, 1, BR, BN, True, True,
        )  # fmt: skip


class _Weight(NamedTuple):
    """What the packed kernels know of a weight, in int64."""

    rows: int
    channels: int
    taps: int
    v_stride_row: int
    v_stride_channel: int
    v_stride_tap: int
    g_stride: int
    columns: int  # of its matrix
    offset: int  # of its first element in the flat matrices
    dv_offset: int
    dg_offset: int


def _forward(v: Tensor, g: Tensor) -> Tensor:
    w = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if len(w):
        rows, channels, taps, (v_strides, w_strides) = _collapsed(v, w)
        config = pick_config("weight_norm_fwd", CONFIGS, _heuristic, v, rows=rows, columns=channels)
        grid = (triton.cdiv(rows, config["BR"]),)
        launch(
            OP, weight_norm_fwd_kernel, grid, v, g, w, rows, channels, taps, *v_strides, g.stride(0), *w_strides,
            device=v.device, **config,
        )  # fmt: skip
    return w


def _backward(d: Tensor, v: Tensor, g: Tensor, needs_dv: bool, needs_dg: bool) -> tuple[Tensor | None, Tensor | None]:
    dv = torch.empty(v.shape, dtype=v.dtype, device=v.device) if needs_dv else None
    dg = torch.empty(g.shape, dtype=g.dtype, device=g.device) if needs_dg else None
    if len(v):
        tensors = (d, v) if dv is None else (d, v, dv)
        rows, channels, taps, (d_strides, v_strides, *dv_strides) = _collapsed(*tensors)
        config = pick_config("weight_norm_bwd", CONFIGS, _heuristic, v, rows=rows, columns=channels)
        grid = (triton.cdiv(rows, config["BR"]),)
        launch(
            OP, weight_norm_bwd_kernel, grid, d, v, g, dv, dg, rows, channels, taps,
            *d_strides, *v_strides, g.stride(0), *(dv_strides[0] if dv_strides else (0, 0, 0)),
            HAS_DV=needs_dv, HAS_DG=needs_dg, device=v.device, **config,
        )  # fmt: skip
    return dv, dg


def _packed_forward(sizes: Sequence[int], tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """`sizes`: weights in each group; `tensors`: all v, then all g."""
    weights, shapes = _layout(sizes, tensors, [True] * sum(sizes))
    counts = [rows * columns for rows, columns in shapes]
    flat = torch.empty(sum(counts), dtype=dtype, device=tensors[0].device)
    grid, table, config = _packed_launch("weight_norm_packed_fwd", weights, tensors)
    if grid[0]:
        launch(
            OP, weight_norm_packed_fwd_kernel, grid, pointer_table(tensors), table, tensors[0], flat, len(weights),
            LAYOUT=len(_Weight._fields), device=flat.device, **config,
        )  # fmt: skip
    return [matrix.view(shape) for matrix, shape in zip(flat.split(counts), shapes, strict=True)]


def _packed_backward(
    sizes: Sequence[int], ds: Sequence[Tensor | None], tensors: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of `tensors`; those that are not needed are None."""
    n = len(tensors) // 2
    weights, shapes = _layout(sizes, tensors, [v or g for v, g in zip(needed[:n], needed[n:], strict=True)])
    like = next(d for d in ds if d is not None)
    parts = zip(ds, shapes, strict=True)
    d_flat = torch.cat([like.new_zeros(rows * columns) if d is None else d.flatten() for d, (rows, columns) in parts])
    counts = [tensor.numel() for tensor in tensors]
    dv, dg = (torch.empty(sum(part), dtype=tensors[0].dtype, device=like.device) for part in (counts[:n], counts[n:]))
    grid, table, config = _packed_launch("weight_norm_packed_bwd", weights, tensors)
    if grid[0]:
        launch(
            OP, weight_norm_packed_bwd_kernel, grid, pointer_table(tensors), table, d_flat, dv, dg, n,
            LAYOUT=len(_Weight._fields), device=like.device, **config,
        )  # fmt: skip
    gradients = zip((*dv.split(counts[:n]), *dg.split(counts[n:])), tensors, needed, strict=True)
    return [gradient.view(tensor.shape) if wanted else None for gradient, tensor, wanted in gradients]


def _packed_launch(
    kernel: str, weights: Sequence[_Weight], tensors: Sequence[Tensor]
) -> tuple[tuple[int, int], Tensor, Config]:
    rows = max(weight.rows for weight in weights)
    channels = max(weight.channels for weight in weights)
    config = pick_config(kernel, CONFIGS, _heuristic, tensors[0], rows=rows, columns=channels)
    return (triton.cdiv(rows, config["BR"]), len(weights)), integer_table(tuple(weights), tensors[0].device), config


def _layout(
    sizes: Sequence[int], tensors: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[list[_Weight], list[tuple[int, int]]]:
    """What the kernels are told, with no rows where nothing is wanted, and the shape of each group's matrix."""
    n = len(tensors) // 2
    members = iter(zip(tensors[:n], tensors[n:], wanted, strict=True))
    weights: list[_Weight] = []
    shapes = []
    start = dv_offset = dg_offset = 0
    for size in sizes:
        group = [next(members) for _ in range(size)]
        rows = len(group[0][0])
        columns = sum(v.shape[1] * v.shape[2] for v, _, _ in group)
        offset = start
        for v, g, is_wanted in group:
            shape = (rows if is_wanted else 0, *v.shape[1:])
            weights.append(_Weight(*shape, *v.stride(), g.stride(0), columns, offset, dv_offset, dg_offset))
            offset += v.shape[1] * v.shape[2]
            dv_offset += v.numel()
            dg_offset += rows
        start += rows * columns
        shapes.append((rows, columns))
    return weights, shapes


def _collapsed(*tensors: Tensor) -> tuple[int, int, int, list[tuple[int, ...]]]:
    """Rows, channels, taps and each one's strides; taps are taken for channels where memory allows it."""
    rows, channels, taps = tensors[0].shape
    strides = [tensor.stride() for tensor in tensors]
    if all(s_channel == taps * s_tap for _, s_channel, s_tap in strides):
        return rows, channels * taps, 1, [(s_row, s_tap, 0) for s_row, _, s_tap in strides]
    return rows, channels, taps, strides


def _heuristic(dtype: torch.dtype, rows: int, columns: int) -> Config:
    return next((config for config in CONFIGS if columns <= config["BN"]), CONFIGS[-1])


class _WeightNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, g):
        ctx.save_for_backward(v, g)
        return _forward(v, g)

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        return _backward(d, *ctx.saved_tensors, *ctx.needs_input_grad)


class _PackedWeightNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sizes, dtype, *tensors):
        ctx.sizes = sizes
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(_packed_forward(sizes, tensors, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, *ds):
        needed = ctx.needs_input_grad[2:]
        if all(d is None for d in ds):
            return (None,) * (2 + len(needed))
        return None, None, *_packed_backward(ctx.sizes, ds, ctx.saved_tensors, needed)


def weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """g * v / |v|, the norm taken over every dimension but the first; NaN where |v| is 0.

    Args:
        v: direction, [out, in, k]; any strides.
        g: magnitude, [out, 1, 1], dtype of `v`.

    Returns:
        weight, shape and dtype of `v`.

    Raises:
        FastglowError: shapes or dtypes that do not fit.

    Source: Salimans & Kingma 2016, Weight Normalization, equation 2.
    """
    _check(v, g)
    if v.dtype != g.dtype:
        raise FastglowError(f"{OP}: v is {v.dtype} and g {g.dtype}: cast one")
    return _WeightNorm.apply(v, g) if backend.picks_triton(OP, v, g) else reference.weight_norm(v, g)


def weight_norm_packed(
    groups: Sequence[Sequence[tuple[Tensor, Tensor]]], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Normalised weights, each group's side by side in one matrix, with the taps of a weight outside its channels.

    Column `offset_i + tap * in_i + channel` of a group's matrix is weight i's [:, channel, tap], where `offset_i` is
    the sum of in * k over the weights before it: the order in which a convolution as one matrix product wants them.
    All in one launch, and so is the backward pass.

    Args:
        groups: pairs (v [out, in, k], g [out, 1, 1]), at least one group of at least one; one `out` in a group.
        dtype: of the result; default: that of the first v. The arithmetic is float32 (float64 for float64).

    Returns:
        one matrix a group, [out, sum of in * k]: views of one buffer.

    Raises:
        FastglowError: no weights, or shapes that do not fit.

    Source: Salimans & Kingma 2016, Weight Normalization, equation 2.
    """
    if not groups or not all(groups):
        raise FastglowError(f"{OP}_packed: groups of {[len(group) for group in groups]} weights: leave none empty")
    for group in groups:
        for v, g in group:
            _check(v, g)
        rows = sorted({len(v) for v, _ in group})
        if len(rows) > 1:
            raise FastglowError(f"{OP}_packed: a group has weights of {rows} output channels: it must have one number")
    vs = [v for group in groups for v, _ in group]
    gs = [g for group in groups for _, g in group]
    dtype = vs[0].dtype if dtype is None else dtype
    if not backend.picks_triton(OP, *vs, *gs, unsupported=_against((*vs, *gs), dtype)):
        return reference.weight_norm_packed(groups, dtype)
    return list(_PackedWeightNorm.apply(tuple(len(group) for group in groups), dtype, *vs, *gs))


def _check(v: Tensor, g: Tensor) -> None:
    if v.dim() != 3 or g.shape != (len(v), 1, 1):
        raise FastglowError(
            f"{OP}: v has shape {tuple(v.shape)} and g {tuple(g.shape)}: they must be [out, in, k] and [out, 1, 1]"
        )


def _against(tensors: Sequence[Tensor], dtype: torch.dtype) -> str | None:
    if len({tensor.dtype for tensor in tensors}) > 1:
        return "its v and g are not of one dtype"
    return None if dtype in backend.KERNEL_DTYPES else f"a result in {str(dtype).removeprefix('torch.')}"
