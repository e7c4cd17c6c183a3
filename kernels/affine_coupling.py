"""Affine coupling in one pass over memory, both ways, and a whole step of flow backwards.

    y = exp(log s) x + b                          x = (y - b) exp(-log s)
    dx = dy exp(log s)                            dy = dx exp(-log s)
    db = dy                                       db = -dx exp(-log s)
    dlog s += dy x exp(log s) + dsum              dlog s = -dx (y - b) exp(-log s)

dlog s starts from the gradient that reaches log s itself, which is an output; dsum is that of its sum. A program
does a tile of BC channels x TILE / BC times, whatever the order of the two in memory. The sum of log s leaves one
number a program in a scratch buffer, added up afterwards: always in the same order. Strides are
s_<tensor><dimension>; b and log s share theirs, and so do their gradients.

A step of flow backwards (`flow_step_inverse`) undoes the coupling, multiplies the channels of a time by W^-1, c x c
with c <= 16, in registers, and puts the channels that enter here in front: a program does all channels of TILE / c
times. It serves inference and has no backward pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from .backend import autocast_dtype, picks_triton
from .launch import Config, launch, pick_config
from .reference import affine_coupling as reference

OP = "affine_coupling"

CONFIGS = (
    {"TILE": 1024, "num_warps": 4, "num_stages": 1},
    {"TILE": 2048, "num_warps": 8, "num_stages": 1},
)

# TILE counts the channels that leave, rounded up to a power of 2.
FLOW_STEP_CONFIGS = (
    {"TILE": 1024, "num_warps": 1, "num_stages": 1},
    {"TILE": 4096, "num_warps": 4, "num_stages": 1},
)

MAX_CHANNELS = 16
"""Of a step of flow: its matrix and a time's channels must fit the registers."""

MANY_ELEMENTS = 1 << 20
"""So many fill a large GPU with the larger tiles."""

_MAX_BC = 16  # 16 channels, or 64 times, of 2 bytes fill a sector of memory at least


@triton.jit
def affine_coupling_fwd_kernel(
    p_x, p_b, p_log_s, p_y,  # [B, n, T]
    p_sums,  # [programs] float32: log s, summed over a tile
    n, T, s_xb, s_xc, s_xt, s_bb, s_bc, s_bt, s_yb, s_yc, s_yt,
    INVERSE: tl.constexpr, SUM_LOG_S: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BT: tl.constexpr = TILE // BC
    n_t, n_c = (T + BT - 1) // BT, (n + BC - 1) // BC
    i_t = (tl.program_id(0) % n_t).to(tl.int64)
    i_c = (tl.program_id(0) // n_t % n_c).to(tl.int64)
    i_b = (tl.program_id(0) // n_t // n_c).to(tl.int64)
    o_c = (i_c * BC + tl.arange(0, BC))[:, None]  # [BC, 1]
    o_t = (i_t * BT + tl.arange(0, BT))[None, :]  # [1, BT]
    m = (o_c < n) & (o_t < T)
    o_b = i_b * s_bb + o_c * s_bc + o_t * s_bt
    b_b = tl.load(p_b + o_b, mask=m, other=0.0).to(tl.float32)  # [BC, BT]
    b_log_s = tl.load(p_log_s + o_b, mask=m, other=0.0).to(tl.float32)
    b_x = tl.load(p_x + i_b * s_xb + o_c * s_xc + o_t * s_xt, mask=m, other=0.0).to(tl.float32)
    b_y = (b_x - b_b) * tl.exp(-b_log_s) if INVERSE else tl.exp(b_log_s) * b_x + b_b
    tl.store(p_y + i_b * s_yb + o_c * s_yc + o_t * s_yt, b_y, mask=m)
    if SUM_LOG_S:
        tl.store(p_sums + tl.program_id(0), tl.sum(b_log_s))


@triton.jit
def affine_coupling_bwd_kernel(
    p_dy, p_dlog_s, p_dsum, p_x, p_b, p_log_s, p_dx, p_db_out, p_dlog_s_out,  # [B, n, T], but dsum: a scalar
    n, T, s_dyb, s_dyc, s_dyt, s_dlog_sb, s_dlog_sc, s_dlog_st, s_xb, s_xc, s_xt, s_bb, s_bc, s_bt,
    s_dxb, s_dxc, s_dxt, s_dbb, s_dbc, s_dbt,
    INVERSE: tl.constexpr, HAS_DY: tl.constexpr, HAS_DLOG_S: tl.constexpr, HAS_DSUM: tl.constexpr,
    STORE_DX: tl.constexpr, STORE_DB: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BT: tl.constexpr = TILE // BC
    n_t, n_c = (T + BT - 1) // BT, (n + BC - 1) // BC
    i_t = (tl.program_id(0) % n_t).to(tl.int64)
    i_c = (tl.program_id(0) // n_t % n_c).to(tl.int64)
    i_b = (tl.program_id(0) // n_t // n_c).to(tl.int64)
    o_c = (i_c * BC + tl.arange(0, BC))[:, None]  # [BC, 1]
    o_t = (i_t * BT + tl.arange(0, BT))[None, :]  # [1, BT]
    m = (o_c < n) & (o_t < T)
    b_db = tl.full([BC, BT], 0.0, dtype=tl.float32)
    b_dlog_s = tl.full([BC, BT], 0.0, dtype=tl.float32)
    if HAS_DY:
        o_b = i_b * s_bb + o_c * s_bc + o_t * s_bt
        b_log_s = tl.load(p_log_s + o_b, mask=m, other=0.0).to(tl.float32)
        b_dy = tl.load(p_dy + i_b * s_dyb + o_c * s_dyc + o_t * s_dyt, mask=m, other=0.0)
        b_dy = b_dy.to(tl.float32)
        b_dx = b_dy * tl.exp(-b_log_s if INVERSE else b_log_s)
        if STORE_DX:
            tl.store(p_dx + i_b * s_dxb + o_c * s_dxc + o_t * s_dxt, b_dx, mask=m)
        if STORE_DB:
            b_x = tl.load(p_x + i_b * s_xb + o_c * s_xc + o_t * s_xt, mask=m, other=0.0)
            b_x = b_x.to(tl.float32)
            if INVERSE:
                b_db = -b_dx
                b_dlog_s = b_db * (b_x - tl.load(p_b + o_b, mask=m, other=0.0).to(tl.float32))
            else:
                b_db = b_dy
                b_dlog_s = b_dx * b_x
    if STORE_DB:
        if HAS_DLOG_S:
            o_dlog_s = i_b * s_dlog_sb + o_c * s_dlog_sc + o_t * s_dlog_st
            b_dlog_s += tl.load(p_dlog_s + o_dlog_s, mask=m, other=0.0).to(tl.float32)
        if HAS_DSUM:
            b_dlog_s += tl.load(p_dsum).to(tl.float32)
        o_db = i_b * s_dbb + o_c * s_dbc + o_t * s_dbt
        tl.store(p_db_out + o_db, b_db, mask=m)
        tl.store(p_dlog_s_out + o_db, b_dlog_s, mask=m)


@triton.jit
def flow_step_inverse_kernel(
    p_kept, p_changed, p_b, p_log_s,  # [B, N, T]
    p_inverse, p_entering, p_out,  # [2N, 2N], [B, E, T], [B, E + 2N, T]
    T, s_kb, s_kc, s_kt, s_cb, s_cc, s_ct, s_bb, s_bc, s_bt, s_ii, s_ij, s_eb, s_ec, s_et, s_ob, s_oc, s_ot,
    SWAP: tl.constexpr, N: tl.constexpr, E: tl.constexpr,
    BC: tl.constexpr, BE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BT: tl.constexpr = TILE // BC
    KEPT: tl.constexpr = N if SWAP else 0
    CHANGED: tl.constexpr = N - KEPT
    n_t = (T + BT - 1) // BT
    i_b = (tl.program_id(0) // n_t).to(tl.int64)
    o_t = (tl.program_id(0) % n_t).to(tl.int64) * BT + tl.arange(0, BT)
    o_c = tl.arange(0, BC).to(tl.int64)
    m_t, m_c = o_t < T, o_c < 2 * N
    p_kept += i_b * s_kb + o_t * s_kt
    p_changed += i_b * s_cb + o_t * s_ct
    p_b += i_b * s_bb + o_t * s_bt
    p_log_s += i_b * s_bb + o_t * s_bt
    p_w_kept = p_inverse + o_c * s_ii + KEPT * s_ij
    p_w_changed = p_inverse + o_c * s_ii + CHANGED * s_ij
    p_out += i_b * s_ob + o_t[None, :] * s_ot  # [1, BT]
    b_out = tl.full([BC, BT], 0.0, dtype=tl.float32)
    for _ in tl.static_range(N):
        b_kept = tl.load(p_kept, mask=m_t, other=0.0).to(tl.float32)  # [BT]
        b_b = tl.load(p_b, mask=m_t, other=0.0).to(tl.float32)
        b_log_s = tl.load(p_log_s, mask=m_t, other=0.0).to(tl.float32)
        b_changed = (tl.load(p_changed, mask=m_t, other=0.0).to(tl.float32) - b_b) * tl.exp(-b_log_s)
        b_w_kept = tl.load(p_w_kept, mask=m_c, other=0.0).to(tl.float32)  # [BC]
        b_w_changed = tl.load(p_w_changed, mask=m_c, other=0.0).to(tl.float32)
        b_out += b_w_kept[:, None] * b_kept[None, :] + b_w_changed[:, None] * b_changed[None, :]
        p_kept += s_kc
        p_changed += s_cc
        p_b += s_bc
        p_log_s += s_bc
        p_w_kept += s_ij
        p_w_changed += s_ij
    tl.store(p_out + (E + o_c)[:, None] * s_oc, b_out, mask=m_c[:, None] & m_t[None, :])
    if E > 0:
        o_e = tl.arange(0, BE).to(tl.int64)[:, None]  # [BE, 1]
        m_e = (o_e < E) & m_t[None, :]
        p_entering += i_b * s_eb + o_e * s_ec + o_t[None, :] * s_et
        tl.store(p_out + o_e * s_oc, tl.load(p_entering, mask=m_e, other=0.0), mask=m_e)


def _heuristic(dtype: torch.dtype, n: int, positions: int) -> Config:
    return CONFIGS[0]


def _flow_step_heuristic(dtype: torch.dtype, c: int, positions: int) -> Config:
    return FLOW_STEP_CONFIGS[1 if c * positions >= MANY_ELEMENTS else 0]


def _plan(kernel: str, x: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """(grid, constants) for x [B, n, T]."""
    B, n, T = x.shape
    config = pick_config(kernel, CONFIGS, _heuristic, x, n=n, positions=B * T)
    BC = min(triton.next_power_of_2(n), _MAX_BC)
    return (B * triton.cdiv(n, BC) * triton.cdiv(T, config["TILE"] // BC),), {"BC": BC, **config}


def _empty_as(x: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Dense [B, channels, T] whose order in memory is that of `x`."""
    if x.stride(1) <= x.stride(2):
        return x.new_empty((shape[0], shape[2], shape[1]), dtype=dtype).transpose(1, 2)
    return x.new_empty(shape, dtype=dtype)


def _forward(
    x: Tensor, b_log_s: Tensor, inverse: bool, dtype: torch.dtype, sums: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y, log s, its sum), or (x, ...) of y if `inverse`."""
    b, log_s = b_log_s.chunk(2, dim=1)
    y = _empty_as(x, x.shape, dtype)
    if y.numel() == 0:
        return y, log_s, x.new_zeros((), dtype=torch.float32) if sums else None
    grid, constants = _plan("affine_coupling_fwd", x)
    partial_sums = x.new_empty(grid, dtype=torch.float32) if sums else None
    launch(
        OP, affine_coupling_fwd_kernel, grid,
        x, b, log_s, y, y if partial_sums is None else partial_sums,
        *x.shape[1:], *x.stride(), *b.stride(), *y.stride(),
        device=x.device, INVERSE=inverse, SUM_LOG_S=sums, **constants,
    )  # fmt: skip
    return y, log_s, partial_sums.sum() if sums else None


def _backward(
    dy: Tensor | None,
    dlog_s: Tensor | None,
    dsum: Tensor | None,
    x: Tensor,
    b_log_s: Tensor,
    inverse: bool,
    needs_x: bool,
    needs_b: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and b_log_s, as far as they are needed."""
    needs_x = needs_x and dy is not None
    dx = _empty_as(x, x.shape, x.dtype) if needs_x else None
    db_log_s = _empty_as(b_log_s, b_log_s.shape, b_log_s.dtype) if needs_b else None
    if x.numel() == 0 or not (needs_x or needs_b):
        return dx, db_log_s
    grid, constants = _plan("affine_coupling_bwd", x)
    dy_, dlog_s_, dsum_, dx_ = (x if tensor is None else tensor for tensor in (dy, dlog_s, dsum, dx))
    b, log_s = b_log_s.chunk(2, dim=1)
    db, dlog_s_out = (b_log_s if db_log_s is None else db_log_s).chunk(2, dim=1)
    launch(
        OP, affine_coupling_bwd_kernel, grid,
        dy_, dlog_s_, dsum_, x, b, log_s, dx_, db, dlog_s_out,
        *x.shape[1:], *dy_.stride(), *dlog_s_.stride(), *x.stride(), *b.stride(), *dx_.stride(), *db.stride(),
        device=x.device, INVERSE=inverse, HAS_DY=dy is not None, HAS_DLOG_S=dlog_s is not None,
        HAS_DSUM=dsum is not None, STORE_DX=needs_x, STORE_DB=needs_b, **constants,
    )  # fmt: skip
    return dx, db_log_s


def _flow_step_inverse(
    kept: Tensor, changed: Tensor, b_log_s: Tensor, inverse: Tensor, entering: Tensor | None, swap: bool
) -> Tensor:
    B, n, T = changed.shape
    n_entering = 0 if entering is None else entering.shape[1]
    out = _empty_as(changed, (B, n_entering + 2 * n, T), changed.dtype)
    if out.numel() == 0:
        return out
    config = pick_config(
        "flow_step_inverse", FLOW_STEP_CONFIGS, _flow_step_heuristic, changed, c=2 * n, positions=B * T
    )
    BC = triton.next_power_of_2(2 * n)
    b, log_s = b_log_s.chunk(2, dim=1)
    entering = kept if n_entering == 0 else entering
    launch(
        OP, flow_step_inverse_kernel, (B * triton.cdiv(T, config["TILE"] // BC),),
        kept, changed, b, log_s, inverse, entering, out,
        T, *kept.stride(), *changed.stride(), *b.stride(), *inverse.stride(), *entering.stride(), *out.stride(),
        device=changed.device, SWAP=swap, N=n, E=n_entering,
        BC=BC, BE=triton.next_power_of_2(max(1, n_entering)), **config,
    )  # fmt: skip
    return out


class _AffineCoupling(Function):
    @staticmethod
    def forward(ctx, x, b_log_s, inverse, dtype, sums):
        ctx.inverse = inverse
        ctx.save_for_backward(x, b_log_s)
        ctx.set_materialize_grads(False)
        y, log_s, log_s_sum = _forward(x, b_log_s, inverse, dtype, sums)
        if not ctx.needs_input_grad[1]:
            ctx.mark_non_differentiable(*(tensor for tensor in (log_s, log_s_sum) if tensor is not None))
        return y, log_s, log_s_sum

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlog_s, dsum):
        gradients = _backward(dy, dlog_s, dsum, *ctx.saved_tensors, ctx.inverse, *ctx.needs_input_grad[:2])
        return *gradients, None, None, None


def affine_coupling(x: Tensor, b_log_s: Tensor, *, return_log_s_sum: bool = False) -> tuple[Tensor, ...]:
    """exp(log s) * x + b.

    Dinh et al. 2016, "RealNVP"; b before log s as in WaveGlow. Any strides; y has the order of `x` in memory.

    Args:
        x: the half that is transformed, [B, n, T].
        b_log_s: the coupling network's output, [B, 2n, T], b first.
        return_log_s_sum: also give the sum of log s, the coupling's share of the log-determinant.

    Returns:
        (transformed half [B, n, T], log s [B, n, T], a view of `b_log_s`), and, if asked for, the sum of log s
        over all elements: a scalar, float32 (float64 for float64).

    Raises:
        FastglowError: shapes that do not fit.
    """
    _check(x, b_log_s)
    if not picks_triton(OP, x, b_log_s):
        return reference.affine_coupling(x, b_log_s, return_log_s_sum=return_log_s_sum)
    outputs = _AffineCoupling.apply(x, b_log_s, False, _output_dtype(x, b_log_s), return_log_s_sum)
    return outputs if return_log_s_sum else outputs[:2]


def affine_coupling_inverse(y: Tensor, b_log_s: Tensor) -> Tensor:
    """(y - b) / exp(log s), the inverse of `affine_coupling`; shapes and errors as there."""
    _check(y, b_log_s)
    if not picks_triton(OP, y, b_log_s):
        return reference.affine_coupling_inverse(y, b_log_s)
    return _AffineCoupling.apply(y, b_log_s, True, _output_dtype(y, b_log_s), False)[0]


def flow_step_inverse(
    kept: Tensor,
    changed: Tensor,
    b_log_s: Tensor,
    inverse: Tensor,
    entering: Tensor | None = None,
    *,
    swap: bool = False,
) -> Tensor:
    """One step of flow backwards, all but its coupling network: coupling, 1x1 convolution, early channels.

    Prenger et al. 2018, "WaveGlow", section 2, read backwards. The kernel has no backward pass: where a gradient
    is needed, or c is above 16, the PyTorch reference serves. Any strides; the result's order in memory is that of
    `changed`.

    Args:
        kept: the half that conditioned the coupling, [B, c/2, T].
        changed: the half that it changed, [B, c/2, T].
        b_log_s: the coupling network's output, [B, c, T], b first.
        inverse: W^-1 of the 1x1 convolution, [c, c], float32 whatever the dtype of the others.
        entering: channels that left the flow here, [B, e, T], or absent.
        swap: the changed half is the first of the c channels, not the second.

    Returns:
        [B, e + c, T], the entering channels first; dtype of `changed`.

    Raises:
        FastglowError: shapes that do not fit.
    """
    _check(changed, b_log_s)
    B, n, T = changed.shape
    if kept.shape != changed.shape:
        raise FastglowError(f"kept has shape {tuple(kept.shape)}: pass that of changed, {tuple(changed.shape)}")
    if inverse.shape != (2 * n, 2 * n):
        raise FastglowError(f"inverse has shape {tuple(inverse.shape)}: pass [c, c] of the c = {2 * n} channels")
    if entering is not None and (entering.dim() != 3 or (entering.shape[0], entering.shape[2]) != (B, T)):
        raise FastglowError(f"entering has shape {tuple(entering.shape)}: pass [{B}, e, {T}]")
    tensors = (kept, changed, b_log_s, inverse, entering)
    unsupported = None
    if 2 * n > MAX_CHANNELS:
        unsupported = f"flow_step_inverse of {2 * n} channels, more than {MAX_CHANNELS}"
    elif torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        unsupported = "flow_step_inverse has no backward pass, and an input requires a gradient (use torch.no_grad)"
    if not picks_triton(OP, *tensors, unsupported=unsupported):
        return reference.flow_step_inverse(kept, changed, b_log_s, inverse, entering, swap=swap)
    return _flow_step_inverse(kept, changed, b_log_s, inverse, entering, swap)


def _output_dtype(x: Tensor, b_log_s: Tensor) -> torch.dtype:
    """That of the reference: under autocast `exp` may have a dtype of its own."""
    if autocast_dtype(x) is None:
        return torch.promote_types(x.dtype, b_log_s.dtype)
    with torch.no_grad():
        return reference.affine_coupling(x[:0], b_log_s[:0])[0].dtype


def _check(x: Tensor, b_log_s: Tensor) -> None:
    if x.dim() != 3 or b_log_s.shape != (x.shape[0], 2 * x.shape[1], x.shape[2]):
        raise FastglowError(
            f"b_log_s has shape {tuple(b_log_s.shape)} for a half of shape {tuple(x.shape)}: "
            "pass [B, 2n, T] for [B, n, T]"
        )
