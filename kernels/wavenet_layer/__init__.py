"""A WaveNet layer (WaveGlow's, also VITS' and Glow-TTS'), forward and backward: the public function.

`operator` registers the operation, `forward` and `backward` have the kernels, `common` what they share. Maths, layout
and cost: kernels/README.md.
"""

import torch
from torch import Tensor

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import check_at_least, check_integers, check_one_dtype, check_shape, with_near_rows
from ..reference.wavenet_layer import wavenet_layer as reference_wavenet_layer
from .common import OP, LayerInputs
from .operator import contiguous_in_channels, wavenet_layer_operator, with_contiguous_rows


def _transposed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.transpose(1, 2)


def _channels_last(x: Tensor | None) -> Tensor | None:
    """[B, n, T] -> [B, T, n] with contiguous channels. A copy costs a fraction of a GEMM that gathers its input."""
    return None if x is None else with_contiguous_rows(x.transpose(1, 2))


def _check(
    h: Tensor,
    conditioning: Tensor | None,
    in_weight: Tensor,
    in_bias: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    dilation: int,
) -> None:
    check_shape("h", h, ("B", "C", "T"))
    B, C, T = h.shape
    check_shape("in_weight", in_weight, (2 * C, C, "k"), beside=("h", h))
    if in_weight.shape[2] % 2 == 0:
        raise FastglowError(f"in_weight has {in_weight.shape[2]} taps, must be an odd number")
    check_shape("res_skip_weight", res_skip_weight, ("C + S or S", C, 1), beside=("h", h))
    n_rows = res_skip_weight.shape[0]
    if not 0 < n_rows <= 2 * C:
        raise FastglowError(f"res_skip_weight has {n_rows} rows, must be S or {C} + S with 0 < S <= {C}")
    check_at_least("dilation", dilation, 1)
    if cond_weight is not None:
        check_shape("conditioning", conditioning, (B, "D", T), beside=("h", h))
        D = 0 if conditioning is None else conditioning.shape[1]
        check_shape("cond_weight", cond_weight, (2 * C, D, 1), beside=("h", h))
    elif conditioning is not None:
        broadcastable = conditioning.dim() == 3 and conditioning.shape[0] in (1, B) and conditioning.shape[2] in (1, T)
        if not broadcastable or conditioning.shape[1] != 2 * C:
            raise FastglowError(
                f"conditioning has shape {list(conditioning.shape)}, must be [{B} or 1, {2 * C}, {T} or 1] without a "
                f"cond_weight"
            )
    if cond_bias is not None and cond_weight is None:
        raise FastglowError("cond_bias is given without a cond_weight: pass both, or add it to the conditioning")
    check_shape("in_bias", in_bias, (2 * C,), beside=("h", h))
    check_shape("cond_bias", cond_bias, (2 * C,), beside=("h", h))
    check_shape("res_skip_bias", res_skip_bias, (n_rows,), beside=("res_skip_weight", res_skip_weight))


def wavenet_layer(
    h: Tensor,
    conditioning: Tensor | None,
    in_weight: Tensor,
    in_bias: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    dilation: int,
    mask: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Dilated convolution plus conditioning, gate, then the residual and skip 1x1 convolutions.

    Prenger et al. 2018, "WaveGlow", section 3. Results are views of channels-last memory, and such views are read in
    place: between the layers of a stack nothing is transposed. Weights should have contiguous input channels, as
    `weight_norm_packed` writes them; others are copied.

    Args:
        h: hidden signal, [B, C, T]; float32, float16 or bfloat16 for the kernel, fastest with C a multiple of 16.
            Unless autocast is on, the conditioning, weights and biases have its dtype.
        conditioning: [B, D, T], projected by cond_weight. Without cond_weight: [B or 1, 2C, T or 1], added as it is,
            because VITS and Glow-TTS project the conditioning of all layers at once; or absent.
        in_weight: [2C, C, k] with odd k; in_bias: [2C] or absent.
        cond_weight: [2C, D, 1]; cond_bias: [2C]; or absent.
        res_skip_weight: [C + S, C, 1], residual rows first, or [S, C, 1] in a last layer, which has no residual.
            S is C, or less where a linear layer after the skip sum is folded in.
        res_skip_bias: [C + S] or [S], or absent.
        dilation: step between the taps.
        mask: [B, 1, T] of any dtype, 1 in the signal and 0 in padding, multiplied with the next h, as VITS does. It
            keeps the padding of an item zero, as beyond the ends of an unpadded signal. The kernel gives it no
            gradient.
        lengths: [B] integers. Positions at or beyond an item's length are not read, and zero in the results. Read
            on the device; blocks past the end cost nothing.
        skip: [B, S, T], sum of the skips of earlier layers.

    Returns:
        (h of the next layer [B, C, T], or None from a last layer; skip [B, S, T], added to the given one and of
        its dtype).

    Raises:
        FastglowError: shapes or dtypes that do not fit each other, or a cond_bias without a cond_weight.
    """
    _check(h, conditioning, in_weight, in_bias, cond_weight, cond_bias, res_skip_weight, res_skip_bias, dilation)
    B, C, T = h.shape
    n_rows = res_skip_weight.shape[0]
    check_shape("mask", mask, (B, 1, T), beside=("h", h))
    check_shape("lengths", lengths, (B,), beside=("h", h))
    if lengths is not None:
        check_integers("lengths", lengths)
    check_shape("skip", skip, (B, n_rows - C if n_rows > C else n_rows, T), beside=("h", h))
    dtype = backend.autocast_dtype(h)
    if dtype is not None:
        h, in_weight, res_skip_weight = h.to(dtype), in_weight.to(dtype), res_skip_weight.to(dtype)
        conditioning, in_bias, cond_weight, cond_bias, res_skip_bias = (
            None if x is None else x.to(dtype) for x in (conditioning, in_bias, cond_weight, cond_bias, res_skip_bias)
        )
    check_one_dtype(
        h=h, conditioning=conditioning, in_weight=in_weight, in_bias=in_bias, cond_weight=cond_weight,
        cond_bias=cond_bias, res_skip_weight=res_skip_weight, res_skip_bias=res_skip_bias,
    )  # fmt: skip
    mask = None if mask is None else mask.to(h.dtype)
    differentiated = mask is not None and mask.requires_grad and torch.is_grad_enabled()
    tensors = (h, conditioning, in_weight, in_bias, cond_weight, cond_bias, res_skip_weight, res_skip_bias)
    unsupported = "its mask requires a gradient" if differentiated else None
    if not backend.picks_triton(OP, *tensors, mask, lengths, skip, unsupported=unsupported):
        return reference_wavenet_layer(*tensors, dilation, mask, lengths=lengths, skip=skip)
    projected = cond_weight is not None
    inputs = LayerInputs(
        h=_channels_last(h),
        conditioning=_channels_last(conditioning) if projected else None,
        added=None if projected else _transposed(conditioning),
        skip=_transposed(skip),
        mask=None if mask is None else with_near_rows(mask.transpose(1, 2)),
        lengths=lengths,
        in_weight=contiguous_in_channels(in_weight),
        in_bias=in_bias,
        cond_weight=contiguous_in_channels(cond_weight),
        cond_bias=cond_bias if projected else None,
        res_skip_weight=contiguous_in_channels(res_skip_weight),
        res_skip_bias=res_skip_bias,
    )
    save_gate = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    next_h, next_skip, _ = wavenet_layer_operator(*inputs, dilation, save_gate)
    return next_h.transpose(1, 2) if n_rows > C else None, next_skip.transpose(1, 2)
