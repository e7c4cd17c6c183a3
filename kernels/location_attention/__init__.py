"""Location-sensitive attention, one step. Maths, layout and cost: kernels/README.md.

attend.py and attend_bwd.py have a step of one item as device functions; the decoder loops call parts of them too.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import check_choice, check_integers, check_shape, dtype_name, mixed_dtypes, with_near_rows
from ..reference.location_attention import NORMALIZATIONS
from ..reference.location_attention import location_attention as reference_location_attention
from .attend import MAX_ATTENTION, WINDOW, attention_too_wide, fold_location
from .kernels import OP, Gradients, Inputs, Options, location_attention_bwd, location_attention_fwd

__all__ = ["MAX_ATTENTION", "attention_too_wide", "fold_location", "location_attention"]


class LocationAttention(Function):
    """Arguments: the fields of `Inputs`, then `Options`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs, ctx.options = Inputs(*arguments[:-1]), arguments[-1]
        context, weights, rows = location_attention_fwd(inputs, ctx.options)
        ctx.save_for_backward(*inputs._replace(mask=None), rows)
        ctx.set_materialize_grads(False)
        if not _wants_more_than_memory(ctx):
            ctx.mark_non_differentiable(weights)
        return context, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dcontext: Tensor | None, dweights: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, dcontext, dweights), None


def _gradients(ctx: Any, dcontext: Tensor | None, dweights: Tensor | None) -> Gradients:
    if dcontext is None and dweights is None:
        return Gradients()
    *saved, rows = ctx.saved_tensors
    inputs = Inputs(*saved)
    memory = inputs.memory
    if memory.numel() == 0:
        return Gradients(*(None if x is None else torch.zeros_like(x) for x in inputs[:7]))
    wants = dict(zip(Inputs._fields, ctx.needs_input_grad, strict=False))
    if dcontext is None:
        dcontext = memory.new_zeros((len(memory), memory.shape[2]), dtype=inputs.location.dtype)
    dcontext = dcontext.contiguous()
    dmemory = None
    if wants["memory"]:
        dmemory = rows.to(memory.dtype).unsqueeze(2) * dcontext.to(memory.dtype).unsqueeze(1)
    if not _wants_more_than_memory(ctx):
        return Gradients(memory=dmemory)
    if dweights is not None:
        dweights = dweights.contiguous()
    others = location_attention_bwd(inputs, ctx.options, rows, dcontext, dweights, wants["weights_cat"])
    return others._replace(memory=dmemory)


def _wants_more_than_memory(ctx: Any) -> bool:
    wants = zip(Inputs._fields, ctx.needs_input_grad, strict=False)
    return any(wanted for name, wanted in wants if name != "memory")


def location_attention(
    query: Tensor,
    memory: Tensor,
    processed_memory: Tensor,
    attention_weights_cat: Tensor,
    query_weight: Tensor,
    location_conv_weight: Tensor,
    location_dense_weight: Tensor,
    v_weight: Tensor,
    mask: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    v_bias: Tensor | None = None,
    sharpening: float = 1.0,
    normalization: str = "softmax",
    location_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of location-sensitive attention.

    Chorowski et al. 2015, "Attention-Based Models for Speech Recognition"; Attention in NVIDIA's tacotron2/model.py.
    Tensors have any strides and one dtype, float32, float16 or bfloat16; under autocast dtypes may differ.

    Args:
        query: output of the attention LSTM, [B, n_query].
        memory: encoder outputs, [B, T, n_memory].
        processed_memory: memory through the memory layer, [B, T, A].
        attention_weights_cat: previous and cumulative weights, [B, 2, T]; any float dtype.
        query_weight: [A, n_query].
        location_conv_weight: [F, 2, k] with odd k.
        location_dense_weight: [A, F].
        v_weight: [1, A].
        mask: [B, T] bool, True in padding; None: no padding.
        lengths: [B] integers, read on the device: positions beyond a length are padding too, and neither memory nor
            processed memory is read there.
        v_bias: [1], added to each energy, as in coqui and ESPnet; a softmax does not depend on it.
        sharpening: factor of the energies, as in ESPnet.
        normalization: 'softmax' of the energies, or 'sigmoid': sigmoids divided by their sum, as in coqui.
        location_weight: `fold_location` of the location weights, to compute it once for many steps.

    Returns:
        (context [B, n_memory], attention weights [B, T]). Under autocast the weights are float32. An item that is all
        padding gets zeros.

    Raises:
        FastglowError: a shape, dtype or normalization other than the above.
    """
    _check(
        query, memory, processed_memory, attention_weights_cat, query_weight, location_conv_weight,
        location_dense_weight, v_weight, mask, lengths, v_bias, normalization, location_weight,
    )  # fmt: skip
    autocast = backend.autocast_dtype(query)
    dtype = query.dtype if autocast is None else autocast
    tensors = [query, memory, processed_memory, query_weight, location_conv_weight, location_dense_weight, v_weight]
    unsupported = attention_too_wide(v_weight.shape[1], dtype)
    if autocast is None:
        unsupported = mixed_dtypes(*tensors, v_bias) or unsupported
    others = [attention_weights_cat, mask, lengths, v_bias, location_weight]
    if not backend.picks_triton(OP, *tensors, *others, unsupported=unsupported):
        return reference_location_attention(
            query, memory, processed_memory, attention_weights_cat, query_weight, location_conv_weight,
            location_dense_weight, v_weight, mask,
            lengths=lengths, v_bias=v_bias, sharpening=sharpening, normalization=normalization,
        )  # fmt: skip
    if location_weight is None:
        location_weight = fold_location(location_conv_weight, location_dense_weight, dtype)
    cat = attention_weights_cat
    inputs = Inputs(
        query=F.linear(query, query_weight),
        memory=with_near_rows(memory),
        processed_memory=with_near_rows(processed_memory),
        weights_cat=cat if cat.stride(2) == 1 else cat.contiguous(),
        location=location_weight.to(dtype).contiguous(),
        v=v_weight.reshape(-1).contiguous(),
        v_bias=v_bias,
        mask=mask,
        lengths=None if lengths is None else lengths.contiguous(),
    )
    weights_dtype = dtype if autocast is None else torch.float32
    options = Options(location_conv_weight.shape[2], sharpening, normalization, weights_dtype)
    return LocationAttention.apply(*inputs, options)


def _check(
    query, memory, processed_memory, cat, query_weight, conv_weight, dense_weight, v_weight, mask, lengths, v_bias,
    normalization, location_weight,
) -> None:  # fmt: skip
    check_shape("memory", memory, ("B", "T", "n_memory"))
    check_shape("query_weight", query_weight, ("A", "n_query"))
    if conv_weight.dim() != 3 or conv_weight.shape[1] != 2 or conv_weight.shape[2] % 2 == 0:
        raise FastglowError(f"location_conv_weight has shape {list(conv_weight.shape)}, must be [F, 2, odd k]")
    B, T, _ = memory.shape
    A, n_query = query_weight.shape
    n_filters, _, taps = conv_weight.shape
    check_shape("query", query, (B, n_query), beside=("memory", memory))
    check_shape("processed_memory", processed_memory, (B, T, A), beside=("memory", memory))
    check_shape("attention_weights_cat", cat, (B, 2, T), beside=("memory", memory))
    check_shape("location_dense_weight", dense_weight, (A, n_filters), beside=("query_weight", query_weight))
    check_shape("v_weight", v_weight, (1, A), beside=("query_weight", query_weight))
    check_shape("mask", mask, (B, T), beside=("memory", memory))
    check_shape("lengths", lengths, (B,), beside=("memory", memory))
    check_shape("v_bias", v_bias, (1,))
    columns = triton.cdiv(2 * taps, WINDOW) * WINDOW
    check_shape("location_weight", location_weight, (A, columns), beside=("location_conv_weight", conv_weight))
    if mask is not None and mask.dtype != torch.bool:
        raise FastglowError(f"mask has dtype {dtype_name(mask.dtype)}, must be bool, True in padding")
    if lengths is not None:
        check_integers("lengths", lengths)
    check_choice("normalization", normalization, NORMALIZATIONS)
