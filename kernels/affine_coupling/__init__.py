"""Affine coupling, its inverse, and the inverse of a whole flow step, each in one pass over memory.

Maths, layout and cost: kernels/README.md.
"""

import torch
from torch import Tensor

from ..arguments import check_floats, check_shape
from ..backend import autocast_dtype, picks_triton
from ..reference import affine_coupling as reference
from .kernels import MAX_CHANNELS, OP, coupling_operator, flow_step_operator, inverse_coupling_operator


def affine_coupling(x: Tensor, b_log_s: Tensor, *, return_log_s_sum: bool = False) -> tuple[Tensor, ...]:
    """exp(log s) * x + b.

    Args:
        x: the transformed half, [B, n, T]; any strides.
        b_log_s: output of the coupling network, [B, 2n, T], b first; any strides.
        return_log_s_sum: also return the sum of log s, the log-determinant of the coupling.

    Returns:
        (transformed half [B, n, T], in the memory order of `x`; log s [B, n, T], which may be a view of `b_log_s`), and
        with return_log_s_sum the sum of log s over all elements: a scalar, float32 (float64 for float64).

    Raises:
        FastglowError: shapes that do not fit, or a dtype that is not floating-point.

    Source: Dinh et al. 2016, "RealNVP"; b before log s as in WaveGlow.
    """
    _check("x", x, b_log_s)
    if not picks_triton(OP, x, b_log_s):
        return reference.affine_coupling(x, b_log_s, return_log_s_sum=return_log_s_sum)
    outputs = coupling_operator(x, b_log_s, _output_dtype(x, b_log_s), return_log_s_sum)
    return outputs if return_log_s_sum else outputs[:2]


def affine_coupling_inverse(y: Tensor, b_log_s: Tensor) -> Tensor:
    """(y - b) / exp(log s), the inverse of `affine_coupling`.

    Args:
        y: the transformed half, [B, n, T]; any strides.
        b_log_s: as of `affine_coupling`.

    Returns:
        the half before the coupling, [B, n, T], in the memory order of `y`.

    Raises:
        FastglowError: shapes that do not fit, or a dtype that is not floating-point.
    """
    _check("y", y, b_log_s)
    if not picks_triton(OP, y, b_log_s):
        return reference.affine_coupling_inverse(y, b_log_s)
    return inverse_coupling_operator(y, b_log_s, _output_dtype(y, b_log_s))


def flow_step_inverse(
    kept: Tensor,
    changed: Tensor,
    b_log_s: Tensor,
    inverse: Tensor,
    entering: Tensor | None = None,
    *,
    swap: bool = False,
) -> Tensor:
    """The inverse of a flow step, given its coupling network's output: coupling, 1x1 convolution, early channels.

    The kernel has no backward pass: the PyTorch reference runs if a gradient is needed or c is above 16.

    Args:
        kept: the half that conditioned the coupling, [B, c/2, T]; any strides, as all arguments.
        changed: the half that the coupling changed, [B, c/2, T].
        b_log_s: output of the coupling network, [B, c, T], b first.
        inverse: W^-1 of the 1x1 convolution, [c, c], float32 for any dtype of the others.
        entering: channels that left the flow at this step, [B, e, T], or absent.
        swap: the changed half is the first of the c channels, not the second.

    Returns:
        [B, e + c, T], the entering channels first; dtype and memory order of `changed`.

    Raises:
        FastglowError: shapes that do not fit.

    Source: Prenger et al. 2018, "WaveGlow", section 2, inverted.
    """
    _check("changed", changed, b_log_s)
    B, n, T = changed.shape
    check_shape("kept", kept, (B, n, T))
    check_shape("inverse", inverse, (2 * n, 2 * n))
    check_shape("entering", entering, (B, "e", T))
    tensors = (kept, changed, b_log_s, inverse, entering)
    unsupported = None
    if 2 * n > MAX_CHANNELS:
        unsupported = f"flow_step_inverse of {2 * n} channels, more than {MAX_CHANNELS}"
    elif torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        unsupported = "flow_step_inverse has no backward pass, but an input requires a gradient (use torch.no_grad)"
    if not picks_triton(OP, *tensors, unsupported=unsupported):
        return reference.flow_step_inverse(kept, changed, b_log_s, inverse, entering, swap=swap)
    return flow_step_operator(kept, changed, b_log_s, inverse, entering, swap)


def _output_dtype(x: Tensor, b_log_s: Tensor) -> torch.dtype:
    """The dtype of the reference's result: autocast may choose a dtype for `exp`."""
    if autocast_dtype(x) is None:
        return torch.promote_types(x.dtype, b_log_s.dtype)
    with torch.no_grad():
        return reference.affine_coupling(x[:0], b_log_s[:0])[0].dtype


def _check(name: str, x: Tensor, b_log_s: Tensor) -> None:
    check_shape(name, x, ("B", "n", "T"))
    B, n, T = x.shape
    check_shape("b_log_s", b_log_s, (B, 2 * n, T))
    check_floats(**{name: x, "b_log_s": b_log_s})
