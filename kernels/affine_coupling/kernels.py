"""Affine coupling, its inverse, and the inverse of a whole flow step, each in one pass over memory.

Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Matrix, Signal, empty_in_order_of
from ..launch import Config, launch, pick_config
from ..operators import differentiable, not_differentiable, operator, reference_gradients, scattered
from ..reference import affine_coupling as reference

OP = "affine_coupling"

CONFIGS = (
    {"TILE": 1024, "num_warps": 4, "num_stages": 1},
    {"TILE": 2048, "num_warps": 8, "num_stages": 1},
)

# TILE = BC BT, where BC is the flow's number of channels c rounded up to a power of 2.
FLOW_STEP_CONFIGS = (
    {"TILE": 1024, "num_warps": 1, "num_stages": 1},
    {"TILE": 4096, "num_warps": 4, "num_stages": 1},
)

MAX_CHANNELS = 16
"""Most channels of a flow step: a program keeps all channels of a position, and the matrix, in registers."""

MANY_ELEMENTS = 1 << 20
"""Enough elements to fill a large GPU with the larger tiles."""

MAX_TILE_CHANNELS = 16
"""Channels-last, 16 channels of 2 bytes fill a memory sector of 32 bytes."""


class Halves(NamedTuple):
    """b and log s, or their gradients: the two halves of a [B, 2n, T] tensor."""

    p_b: Any  # [B, n, T]
    p_log_s: Any  # [B, n, T]
    s_b: Any
    s_c: Any
    s_t: Any


@triton.jit
def _tile(n, T, BC: tl.constexpr, BT: tl.constexpr):
    """Item, channels [BC, 1] and positions [1, BT] of this program, and a mask."""
    n_t, n_c = (T - 1) // BT + 1, (n - 1) // BC + 1  # T + BT may exceed 2^31
    i_t = (tl.program_id(0) % n_t).to(tl.int64)
    i_c = (tl.program_id(0) // n_t % n_c).to(tl.int64)
    i_b = (tl.program_id(0) // n_t // n_c).to(tl.int64)
    o_c = (i_c * BC + tl.arange(0, BC))[:, None]
    o_t = (i_t * BT + tl.arange(0, BT))[None, :]
    return i_b, o_c, o_t, (o_c < n) & (o_t < T)


@triton.jit
def _offsets(x, i_b, o_c, o_t):
    """Of channels o_c and positions o_t of item i_b; x: Signal or Halves."""
    return i_b * x.s_b + o_c * x.s_c + o_t * x.s_t


@triton.jit
def affine_coupling_fwd_kernel(
    x, halves, y,  # Signal, Halves, Signal
    log_s,  # Signal: a copy of log s, or None
    p_sums,  # [programs] float32: log s summed over a tile, or None
    n, T, INVERSE: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    i_b, o_c, o_t, m = _tile(n, T, BC, TILE // BC)
    o_b = _offsets(halves, i_b, o_c, o_t)
    b_b = tl.load(halves.p_b + o_b, mask=m, other=0.0).to(tl.float32)  # [BC, BT]
    b_log_s = tl.load(halves.p_log_s + o_b, mask=m, other=0.0).to(tl.float32)
    b_x = tl.load(x.p + _offsets(x, i_b, o_c, o_t), mask=m, other=0.0).to(tl.float32)
    b_y = (b_x - b_b) * tl.exp(-b_log_s) if INVERSE else tl.exp(b_log_s) * b_x + b_b
    tl.store(y.p + _offsets(y, i_b, o_c, o_t), b_y, mask=m)
    if log_s is not None:
        tl.store(log_s.p + _offsets(log_s, i_b, o_c, o_t), b_log_s, mask=m)
    if p_sums is not None:
        tl.store(p_sums + tl.program_id(0), tl.sum(b_log_s))


@triton.jit
def affine_coupling_bwd_kernel(
    dy, dlog_s, p_dsum,  # Signals and a scalar: gradients of the outputs, or None
    x, halves,  # Signal, Halves
    dx, dhalves,  # Signal, Halves: gradients of the inputs, or None
    n, T, INVERSE: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BT: tl.constexpr = TILE // BC
    i_b, o_c, o_t, m = _tile(n, T, BC, BT)
    b_db = tl.full([BC, BT], 0.0, dtype=tl.float32)
    b_dlog_s = tl.full([BC, BT], 0.0, dtype=tl.float32)
    if dy is not None:
        o_b = _offsets(halves, i_b, o_c, o_t)
        b_log_s = tl.load(halves.p_log_s + o_b, mask=m, other=0.0).to(tl.float32)
        b_dy = tl.load(dy.p + _offsets(dy, i_b, o_c, o_t), mask=m, other=0.0).to(tl.float32)
        b_dx = b_dy * tl.exp(-b_log_s if INVERSE else b_log_s)
        if dx is not None:
            tl.store(dx.p + _offsets(dx, i_b, o_c, o_t), b_dx, mask=m)
        if dhalves is not None:
            b_x = tl.load(x.p + _offsets(x, i_b, o_c, o_t), mask=m, other=0.0).to(tl.float32)
            if INVERSE:
                b_db = -b_dx
                b_dlog_s = b_db * (b_x - tl.load(halves.p_b + o_b, mask=m, other=0.0).to(tl.float32))
            else:
                b_db = b_dy
                b_dlog_s = b_dx * b_x
    if dhalves is not None:
        if dlog_s is not None:
            b_dlog_s += tl.load(dlog_s.p + _offsets(dlog_s, i_b, o_c, o_t), mask=m, other=0.0).to(tl.float32)
        if p_dsum is not None:
            b_dlog_s += tl.load(p_dsum).to(tl.float32)
        o_db = _offsets(dhalves, i_b, o_c, o_t)
        tl.store(dhalves.p_b + o_db, b_db, mask=m)
        tl.store(dhalves.p_log_s + o_db, b_dlog_s, mask=m)


@triton.jit
def flow_step_inverse_kernel(
    kept, changed, halves,  # Signals and Halves of N channels
    inverse, entering, out,  # Matrix [2N, 2N]; Signals of E channels, or None, and of E + 2N
    T, SWAP: tl.constexpr, N: tl.constexpr, E: tl.constexpr,
    BC: tl.constexpr, BE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BT: tl.constexpr = TILE // BC
    KEPT: tl.constexpr = N if SWAP else 0
    CHANGED: tl.constexpr = N - KEPT
    n_t = (T - 1) // BT + 1
    i_b = (tl.program_id(0) // n_t).to(tl.int64)
    o_t = (tl.program_id(0) % n_t).to(tl.int64) * BT + tl.arange(0, BT)
    o_c = tl.arange(0, BC).to(tl.int64)
    m_t, m_c = o_t < T, o_c < 2 * N
    p_kept = kept.p + _offsets(kept, i_b, 0, o_t)
    p_changed = changed.p + _offsets(changed, i_b, 0, o_t)
    p_b = halves.p_b + _offsets(halves, i_b, 0, o_t)
    p_log_s = halves.p_log_s + _offsets(halves, i_b, 0, o_t)
    p_w_kept = inverse.p + o_c * inverse.s_row + KEPT * tl.cast(inverse.s_column, tl.int64)
    p_w_changed = inverse.p + o_c * inverse.s_row + CHANGED * tl.cast(inverse.s_column, tl.int64)
    p_out = out.p + _offsets(out, i_b, 0, o_t[None, :])  # [1, BT]
    b_out = tl.full([BC, BT], 0.0, dtype=tl.float32)
    for _ in tl.static_range(N):
        b_kept = tl.load(p_kept, mask=m_t, other=0.0).to(tl.float32)  # [BT]
        b_b = tl.load(p_b, mask=m_t, other=0.0).to(tl.float32)
        b_log_s = tl.load(p_log_s, mask=m_t, other=0.0).to(tl.float32)
        b_changed = (tl.load(p_changed, mask=m_t, other=0.0).to(tl.float32) - b_b) * tl.exp(-b_log_s)
        b_w_kept = tl.load(p_w_kept, mask=m_c, other=0.0).to(tl.float32)  # [BC]
        b_w_changed = tl.load(p_w_changed, mask=m_c, other=0.0).to(tl.float32)
        b_out += b_w_kept[:, None] * b_kept[None, :] + b_w_changed[:, None] * b_changed[None, :]
        p_kept += kept.s_c
        p_changed += changed.s_c
        p_b += halves.s_c
        p_log_s += halves.s_c
        p_w_kept += inverse.s_column
        p_w_changed += inverse.s_column
    tl.store(p_out + (E + o_c)[:, None] * out.s_c, b_out, mask=m_c[:, None] & m_t[None, :])
    if E > 0:
        o_e = tl.arange(0, BE).to(tl.int64)[:, None]  # [BE, 1]
        m_e = (o_e < E) & m_t[None, :]
        b_entering = tl.load(entering.p + _offsets(entering, i_b, o_e, o_t[None, :]), mask=m_e, other=0.0)
        tl.store(p_out + o_e * out.s_c, b_entering, mask=m_e)


def _heuristic(dtype: torch.dtype, n: int, positions: int) -> Config:
    return CONFIGS[0]


def _flow_step_heuristic(dtype: torch.dtype, c: int, positions: int) -> Config:
    return FLOW_STEP_CONFIGS[1 if c * positions >= MANY_ELEMENTS else 0]


def _halves(b_log_s: Tensor) -> Halves:
    b, log_s = b_log_s.chunk(2, dim=1)
    return Halves(b, log_s, *b.stride())


def _plan(kernel: str, x: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """(grid, constants) for x [B, n, T]."""
    B, n, T = x.shape
    config = pick_config(kernel, CONFIGS, _heuristic, x, n=n, positions=B * T)
    BC = min(triton.next_power_of_2(n), MAX_TILE_CHANNELS)
    return (B * triton.cdiv(n, BC) * triton.cdiv(T, config["TILE"] // BC),), {"BC": BC, **config}


def _launch_forward(
    x: Tensor, b_log_s: Tensor, y: Tensor, log_s: Tensor | None, sums: bool, inverse: bool
) -> Tensor | None:
    """The sum of log s, if asked for."""
    if y.numel() == 0:
        return x.new_zeros((), dtype=torch.float32) if sums else None
    grid, constants = _plan("affine_coupling_fwd", x)
    partial_sums = x.new_empty(grid, dtype=torch.float32) if sums else None
    launch(
        OP, affine_coupling_fwd_kernel, grid,
        Signal.of(x), _halves(b_log_s), Signal.of(y), Signal.of(log_s), partial_sums, *x.shape[1:],
        device=x.device, INVERSE=inverse, **constants,
    )  # fmt: skip
    return None if partial_sums is None else partial_sums.sum()


def _forward(x: Tensor, b_log_s: Tensor, dtype: torch.dtype, sums: bool) -> tuple[Tensor, Tensor, Tensor]:
    y, log_s, unset = _empty(x, b_log_s, dtype, sums)
    log_s_sum = _launch_forward(x, b_log_s, y, log_s, sums, inverse=False)
    return y, log_s, unset if log_s_sum is None else log_s_sum


def _inverse(y: Tensor, b_log_s: Tensor, dtype: torch.dtype) -> Tensor:
    x = _empty_inverse(y, b_log_s, dtype)
    _launch_forward(y, b_log_s, x, None, sums=False, inverse=True)
    return x


def _empty(x: Tensor, b_log_s: Tensor, dtype: torch.dtype, sums: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, n, T = x.shape
    wide = torch.promote_types(b_log_s.dtype, torch.float32)
    return (
        empty_in_order_of(x, (B, n, T), dtype),
        empty_in_order_of(b_log_s, (B, n, T), b_log_s.dtype),
        x.new_empty(() if sums else (0,), dtype=wide),
    )


def _empty_inverse(y: Tensor, b_log_s: Tensor, dtype: torch.dtype) -> Tensor:
    return empty_in_order_of(y, (y.shape[0], y.shape[1], y.shape[2]), dtype)


def _backward(
    needs: Sequence[bool],
    inverse: bool,
    dy: Tensor | None,
    dlog_s: Tensor | None,
    dsum: Tensor | None,
    x: Tensor,
    b_log_s: Tensor,
) -> list[Tensor]:
    """The gradients of those of x and b_log_s that need one; no gradient reaches x without `dy`."""
    gradients = _empty_gradients(needs, inverse, dy, dlog_s, dsum, x, b_log_s)
    if x.numel() and gradients:
        dx, db_log_s = scattered(gradients, needs)
        grid, constants = _plan("affine_coupling_bwd", x)
        launch(
            OP, affine_coupling_bwd_kernel, grid,
            Signal.of(dy), Signal.of(dlog_s), dsum, Signal.of(x), _halves(b_log_s), Signal.of(dx),
            None if db_log_s is None else _halves(db_log_s), *x.shape[1:],
            device=x.device, INVERSE=inverse, **constants,
        )  # fmt: skip
    return gradients


def _empty_gradients(
    needs: Sequence[bool], inverse: bool, dy, dlog_s, dsum, x: Tensor, b_log_s: Tensor
) -> list[Tensor]:
    inputs = zip((x, b_log_s), needs, strict=True)
    return [empty_in_order_of(tensor, tensor.shape, tensor.dtype) for tensor, needed in inputs if needed]


def _reference(x: Tensor, b_log_s: Tensor, dtype: torch.dtype, sums: bool) -> tuple[Tensor, Tensor, Tensor]:
    y, log_s, *log_s_sum = reference.affine_coupling(x, b_log_s, return_log_s_sum=sums)
    return y.to(dtype), log_s, log_s_sum[0] if sums else log_s.new_empty(0)


def _reference_inverse(y: Tensor, b_log_s: Tensor, dtype: torch.dtype) -> Tensor:
    return reference.affine_coupling_inverse(y, b_log_s).to(dtype)


def _reference_backward(needs: Sequence[bool], inverse: bool, dy, dlog_s, dsum, *tensors: Tensor) -> list[Tensor]:
    if inverse:
        return reference_gradients(reference.affine_coupling_inverse, tensors, needs, (dy,))

    def function(x: Tensor, b_log_s: Tensor) -> tuple[Tensor, ...]:
        return reference.affine_coupling(x, b_log_s, return_log_s_sum=True)

    return reference_gradients(function, tensors, needs, (dy, dlog_s, dsum))


coupling_operator = operator(
    OP,
    "(Tensor x, Tensor b_log_s, ScalarType dtype, bool sums) -> (Tensor, Tensor, Tensor)",
    kernel=_forward,
    empty=_empty,
    reference=_reference,
)
inverse_coupling_operator = operator(
    f"{OP}_inverse",
    "(Tensor y, Tensor b_log_s, ScalarType dtype) -> Tensor",
    kernel=_inverse,
    empty=_empty_inverse,
    reference=_reference_inverse,
)
_gradients = operator(
    f"{OP}_backward",
    "(bool[] needs, bool inverse, Tensor? dy, Tensor? dlog_s, Tensor? dsum, Tensor x, Tensor b_log_s) -> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, b_log_s, _, ctx.sums = inputs
    ctx.save_for_backward(x, b_log_s)
    ctx.set_materialize_grads(False)
    _, log_s, log_s_sum = output
    if not ctx.needs_input_grad[1]:
        ctx.mark_non_differentiable(log_s, log_s_sum)
    elif not ctx.sums:
        ctx.mark_non_differentiable(log_s_sum)


def _save_inverse(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dlog_s: Tensor | None, dsum: Tensor | None
) -> tuple[Tensor | None, ...]:
    return *_gradients_of_inputs(ctx, False, dy, dlog_s, dsum), None, None


def _differentiate_inverse(ctx: Any, dx: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_gradients_of_inputs(ctx, True, dx, None, None), None


def _gradients_of_inputs(ctx: Any, inverse: bool, dy, dlog_s, dsum) -> list[Tensor | None]:
    needs = [ctx.needs_input_grad[0] and dy is not None, ctx.needs_input_grad[1]]
    if not any(needs) or all(d is None for d in (dy, dlog_s, dsum)):
        return [None, None]
    return scattered(_gradients(needs, inverse, dy, dlog_s, dsum, *ctx.saved_tensors), needs)


differentiable(coupling_operator, _save, _differentiate, _gradients)
differentiable(inverse_coupling_operator, _save_inverse, _differentiate_inverse)


def _flow_step_inverse(
    kept: Tensor, changed: Tensor, b_log_s: Tensor, inverse: Tensor, entering: Tensor | None, swap: bool
) -> Tensor:
    B, n, T = changed.shape
    n_entering = 0 if entering is None else entering.shape[1]
    out = _empty_flow_step_inverse(kept, changed, b_log_s, inverse, entering, swap)
    if out.numel() == 0:
        return out
    config = pick_config(
        "flow_step_inverse", FLOW_STEP_CONFIGS, _flow_step_heuristic, changed, c=2 * n, positions=B * T
    )
    BC = triton.next_power_of_2(2 * n)
    launch(
        OP, flow_step_inverse_kernel, (B * triton.cdiv(T, config["TILE"] // BC),),
        Signal.of(kept), Signal.of(changed), _halves(b_log_s), Matrix.of(inverse), Signal.of(entering),
        Signal.of(out), T, device=changed.device, SWAP=swap, N=n, E=n_entering,
        BC=BC, BE=triton.next_power_of_2(max(1, n_entering)), **config,
    )  # fmt: skip
    return out


def _empty_flow_step_inverse(kept, changed: Tensor, b_log_s, inverse, entering: Tensor | None, swap) -> Tensor:
    B, n, T = changed.shape
    n_entering = 0 if entering is None else entering.shape[1]
    return empty_in_order_of(changed, (B, n_entering + 2 * n, T), changed.dtype)


def _reference_flow_step_inverse(*arguments: Any) -> Tensor:
    return reference.flow_step_inverse(*arguments[:-1], swap=arguments[-1])


flow_step_operator = operator(
    "flow_step_inverse",
    "(Tensor kept, Tensor changed, Tensor b_log_s, Tensor inverse, Tensor? entering, bool swap) -> Tensor",
    kernel=_flow_step_inverse,
    empty=_empty_flow_step_inverse,
    reference=_reference_flow_step_inverse,
)
not_differentiable(flow_step_operator, "has no backward pass: fastglow.kernels.flow_step_inverse takes the reference's")
