"""The product of [B, c, T] with a [c, c] matrix, forward and backward.

Maths, layout and cost: kernels/README.md.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Matrix, Signal
from ..launch import Config, launch, pick_config
from ..operators import differentiable, operator, scattered

OP = "invertible_conv1x1"

# By the largest number of channels; from few positions to many. A thread holds 2 to 8 columns, as many as its
# registers allow.
FWD_CONFIGS: dict[int, tuple[Config, ...]] = {
    8: (
        {"BT": 256, "num_warps": 2, "num_stages": 1},
        {"BT": 512, "num_warps": 2, "num_stages": 1},
        {"BT": 1024, "num_warps": 4, "num_stages": 1},
    ),
    16: ({"BT": 256, "num_warps": 2, "num_stages": 1}, {"BT": 512, "num_warps": 4, "num_stages": 1}),
}
BWD_CONFIGS: dict[int, tuple[Config, ...]] = {
    8: (
        {"BT": 128, "num_warps": 1, "num_stages": 1},
        {"BT": 256, "num_warps": 2, "num_stages": 1},
        {"BT": 512, "num_warps": 4, "num_stages": 1},
    ),
    16: ({"BT": 128, "num_warps": 2, "num_stages": 1}, {"BT": 256, "num_warps": 4, "num_stages": 1}),
}
MANY_POSITIONS = 1 << 18  # enough to fill a large GPU with the largest tiles


@triton.jit
def invertible_conv1x1_fwd_kernel(
    z, matrix, out,  # Signal [B, C, T], Matrix [C, C], Signal
    T, C: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    n_tiles = (T - 1) // BT + 1  # T + BT may exceed 2^31
    i_b = (tl.program_id(0) // n_tiles).to(tl.int64)
    i_t = (tl.program_id(0) % n_tiles).to(tl.int64)
    o_t = i_t * BT + tl.arange(0, BT)[None, :]  # [1, BT]
    o_i = tl.arange(0, BC)[:, None].to(tl.int64)  # [BC, 1]
    m_t, m_i = o_t < T, o_i < C
    element = out.p.dtype.element_ty  # the dtype that autocast rounds both operands to
    p_row = z.p + i_b * z.s_b + o_t * z.s_t
    p_column = matrix.p + o_i * matrix.s_row
    b_out = tl.zeros((BC, BT), tl.float32)
    for _ in tl.static_range(C):
        b_z = tl.load(p_row, mask=m_t, other=0.0).to(element).to(tl.float32)  # [1, BT]
        b_w = tl.load(p_column, mask=m_i, other=0.0).to(element).to(tl.float32)  # [BC, 1]
        b_out += b_w * b_z
        p_row += z.s_c
        p_column += matrix.s_column
    tl.store(out.p + i_b * out.s_b + o_i * out.s_c + o_t * out.s_t, b_out.to(element), mask=m_i & m_t)


@triton.jit
def invertible_conv1x1_bwd_kernel(
    d, z, matrix,  # Signals [B, C, T] and Matrix [C, C]; z is None where dW is not wanted
    dz,  # Signal, or None
    p_dw,  # [programs, C, C] float32, partial sums, or None
    T, C: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    n_tiles = (T - 1) // BT + 1  # T + BT may exceed 2^31
    i_b = (tl.program_id(0) // n_tiles).to(tl.int64)
    i_t = (tl.program_id(0) % n_tiles).to(tl.int64)
    o_t = i_t * BT + tl.arange(0, BT)[None, :]  # [1, BT]
    o_j = tl.arange(0, BC).to(tl.int64)
    m_t, m_j = o_t < T, o_j < C
    m_tile = m_j[:, None] & m_t
    element = d.p.dtype.element_ty
    p_row = d.p + i_b * d.s_b + o_t * d.s_t
    if p_dw is not None:
        p_tile = z.p + i_b * z.s_b + o_j[:, None] * z.s_c + o_t * z.s_t
        b_z = tl.load(p_tile, mask=m_tile, other=0.0).to(element).to(tl.float32)  # [BC, BT]
        p_dw_row = p_dw + tl.program_id(0).to(tl.int64) * (C * C) + o_j
    if dz is not None:
        b_dz = tl.zeros((BC, BT), tl.float32)
        p_w_row = matrix.p + o_j * matrix.s_column
    for _ in tl.static_range(C):
        b_d = tl.load(p_row, mask=m_t, other=0.0).to(tl.float32)  # [1, BT]
        p_row += d.s_c
        if p_dw is not None:
            tl.store(p_dw_row, tl.sum(b_d * b_z, axis=1), mask=m_j)
            p_dw_row += C
        if dz is not None:
            b_w = tl.load(p_w_row, mask=m_j, other=0.0).to(element).to(tl.float32)  # [BC]
            b_dz += b_w[:, None] * b_d
            p_w_row += matrix.s_row
    if dz is not None:
        p_tile = dz.p + i_b * dz.s_b + o_j[:, None] * dz.s_c + o_t * dz.s_t
        tl.store(p_tile, b_dz.to(dz.p.dtype.element_ty), mask=m_tile)


def _config(kernel: str, configs: dict[int, tuple[Config, ...]], z: Tensor) -> Config:
    B, c, T = z.shape
    candidates = next(candidates for channels, candidates in configs.items() if c <= channels)

    def heuristic(dtype: torch.dtype, channels: int, positions: int) -> Config:
        return candidates[-1 if positions >= MANY_POSITIONS else 0]

    return pick_config(kernel, candidates, heuristic, z, channels=c, positions=B * T)


def _forward(z: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    B, c, T = z.shape
    out = _empty(z, matrix, dtype)
    if out.numel():
        config = _config("invertible_conv1x1_fwd", FWD_CONFIGS, z)
        launch(
            OP, invertible_conv1x1_fwd_kernel, (triton.cdiv(T, config["BT"]) * B,),
            Signal.of(z), Matrix.of(matrix), Signal.of(out), T,
            C=c, BC=triton.next_power_of_2(c), device=z.device, **config,
        )  # fmt: skip
    return out


def _empty(z: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(z.shape, dtype=dtype, device=z.device)


def _reference(z: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    return matrix.to(dtype) @ z.to(dtype)


def _backward(d: Tensor, z: Tensor | None, matrix: Tensor, dz_dtype: torch.dtype | None) -> list[Tensor]:
    """[dz, dW]: dz if it is given a dtype, dW if z is given."""
    B, c, T = d.shape
    config = _config("invertible_conv1x1_bwd", BWD_CONFIGS, d)
    n_programs = triton.cdiv(T, config["BT"]) * B
    dz = None if dz_dtype is None else torch.empty((B, c, T), dtype=dz_dtype, device=d.device)
    partial_sums = None if z is None else torch.empty((n_programs, c, c), dtype=torch.float32, device=d.device)
    if n_programs:
        launch(
            OP, invertible_conv1x1_bwd_kernel, (n_programs,),
            Signal.of(d), Signal.of(z), Matrix.of(matrix), Signal.of(dz), partial_sums, T,
            C=c, BC=triton.next_power_of_2(c), device=d.device, **config,
        )  # fmt: skip
    dw = None if partial_sums is None else partial_sums.sum(dim=0).to(matrix.dtype)
    return [x for x in (dz, dw) if x is not None]


def _empty_gradients(d: Tensor, z: Tensor | None, matrix: Tensor, dz_dtype: torch.dtype | None) -> list[Tensor]:
    dz = [] if dz_dtype is None else [torch.empty(d.shape, dtype=dz_dtype, device=d.device)]
    return dz if z is None else [*dz, torch.empty(matrix.shape, dtype=matrix.dtype, device=d.device)]


def _reference_backward(d: Tensor, z: Tensor | None, matrix: Tensor, dz_dtype: torch.dtype | None) -> list[Tensor]:
    dz = [] if dz_dtype is None else [matrix.to(d.dtype).t() @ d]
    return dz if z is None else [*dz, (d @ z.to(d.dtype).transpose(1, 2)).sum(0)]


product = operator(
    "invertible_conv1x1_product",
    "(Tensor z, Tensor matrix, ScalarType dtype) -> Tensor",
    kernel=_forward,
    empty=_empty,
    reference=_reference,
)
"""matrix z, rounded to dtype, of z [B, c, T] and matrix [c, c]."""

_gradients = operator(
    "invertible_conv1x1_product_backward",
    "(Tensor d, Tensor? z, Tensor matrix, ScalarType? dz_dtype) -> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    z, matrix, _ = inputs
    needs_z, needs_matrix = ctx.needs_input_grad[:2]
    ctx.save_for_backward(z if needs_matrix else None, matrix)
    ctx.dz_dtype = z.dtype if needs_z else None


def _differentiate(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    return *scattered(_gradients(d, *ctx.saved_tensors, ctx.dz_dtype), ctx.needs_input_grad[:2]), None


differentiable(product, _save, _differentiate, _gradients)
