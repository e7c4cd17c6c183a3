"""Location-sensitive attention, one step. Maths, layout and cost: kernels/README.md.

attend.py and attend_bwd.py have a step of one item as device functions; the decoder loops call parts of them too.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import (
    check_choice,
    check_integers,
    check_one_dtype,
    check_shape,
    contiguous_rows,
    dtype_name,
    with_near_rows,
)
from ..operators import differentiable, operator, reference_gradients, scattered
from ..reference.convolution import windows
from ..reference.location_attention import NORMALIZATIONS, context_and_weights
from ..reference.location_attention import location_attention as reference_location_attention
from .attend import MAX_ATTENTION, WINDOW, attention_too_wide, fold_location
from .kernels import OP, Gradients, Inputs, Options, location_attention_bwd, location_attention_fwd

__all__ = ["MAX_ATTENTION", "attention_too_wide", "fold_location", "location_attention"]


_N_INPUTS = len(Inputs._fields)
_N_DIFFERENTIABLE = len(Gradients._fields)
_MEMORY, _WEIGHTS_CAT = (Gradients._fields.index(name) for name in ("memory", "weights_cat"))


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return location_attention_fwd(*_unpacked(arguments))


def _empty(
    query: Tensor, memory: Tensor, processed, cat, location: Tensor, *more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, D = memory.shape
    return (
        memory.new_empty((B, D), dtype=location.dtype),
        memory.new_empty((B, T), dtype=more[-1]),
        memory.new_empty((B, T), dtype=torch.promote_types(location.dtype, torch.float32)),
    )


def _reference(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, options = Inputs(*arguments[:_N_INPUTS]), Options(*arguments[_N_INPUTS:])
    location = inputs.location[:, : 2 * options.taps]
    dtype = location.dtype
    around = windows(inputs.weights_cat.to(dtype), options.taps).transpose(1, 2).flatten(2)  # [B, T, 2k]
    hidden = inputs.query.to(dtype).unsqueeze(1) + F.linear(around, location) + inputs.processed_memory.to(dtype)
    context, weights = context_and_weights(
        hidden, inputs.memory.to(dtype), inputs.v.to(dtype).unsqueeze(0), inputs.mask, lengths=inputs.lengths,
        v_bias=None if inputs.v_bias is None else inputs.v_bias.to(dtype),
        sharpening=options.sharpening, normalization=options.normalization,
    )  # fmt: skip
    return context, weights, weights


def _backward(
    needs: Sequence[bool], dcontext: Tensor | None, dweights: Tensor | None, rows: Tensor, *arguments: Any
) -> list[Tensor]:
    inputs, options = _unpacked(arguments)
    memory = inputs.memory
    if memory.numel() == 0:
        return [x.zero_() for x in _empty_gradients(needs, dcontext, dweights, rows, *arguments)]
    if dcontext is None:
        dcontext = memory.new_zeros((len(memory), memory.shape[2]), dtype=inputs.location.dtype)
    dcontext = dcontext.contiguous()
    gradients = Gradients()
    if _more_than_memory(needs):
        dweights = None if dweights is None else dweights.contiguous()
        gradients = location_attention_bwd(inputs, options, rows, dcontext, dweights, needs[_WEIGHTS_CAT])
    if needs[_MEMORY]:
        dmemory = rows.to(memory.dtype).unsqueeze(2) * dcontext.to(memory.dtype).unsqueeze(1)
        gradients = gradients._replace(memory=dmemory.contiguous())
    return [d for d, wanted in zip(gradients, needs, strict=True) if wanted and d is not None]


def _empty_gradients(needs: Sequence[bool], dcontext, dweights, rows, *arguments: Any) -> list[Tensor]:
    inputs = zip(arguments, needs, strict=False)
    return [x.new_empty(x.shape) for x, needed in inputs if needed]


def _reference_backward(needs: Sequence[bool], dcontext, dweights, rows, *arguments: Any) -> list[Tensor]:
    inputs, others = arguments[:_N_DIFFERENTIABLE], arguments[_N_DIFFERENTIABLE:]
    return reference_gradients(lambda *x: _reference(*x, *others)[:2], inputs, needs, (dcontext, dweights))


def _more_than_memory(needs: Sequence[bool]) -> bool:
    return any(needed for i, needed in enumerate(needs) if i != _MEMORY)


def _unpacked(arguments: tuple) -> tuple[Inputs, Options]:
    """The operator's arguments, in the layouts that kernels take."""
    inputs = Inputs(*arguments[:_N_INPUTS])
    cat = inputs.weights_cat
    inputs = inputs._replace(
        query=contiguous_rows(inputs.query),
        memory=with_near_rows(inputs.memory),
        processed_memory=with_near_rows(inputs.processed_memory),
        weights_cat=cat if cat.stride(2) == 1 else cat.contiguous(),
        location=inputs.location.contiguous(),
        v=inputs.v.contiguous(),
        lengths=None if inputs.lengths is None else inputs.lengths.contiguous(),
    )
    return inputs, Options(*arguments[_N_INPUTS:])


_ARGUMENTS = (
    "Tensor query, Tensor memory, Tensor processed_memory, Tensor weights_cat, Tensor location, Tensor v, "
    "Tensor? v_bias, Tensor? mask, Tensor? lengths, SymInt taps, float sharpening, str normalization, "
    "ScalarType weights_dtype"
)
_operator = operator(
    OP, f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", kernel=_forward, empty=_empty, reference=_reference
)
_gradients = operator(
    f"{OP}_backward",
    f"(bool[] needs, Tensor? dcontext, Tensor? dweights, Tensor rows, {_ARGUMENTS}) -> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, weights, rows = output
    ctx.save_for_backward(*inputs[:_N_INPUTS], rows)
    ctx.options = inputs[_N_INPUTS:]
    ctx.set_materialize_grads(False)
    weights_depend = _more_than_memory(ctx.needs_input_grad[:_N_DIFFERENTIABLE])
    ctx.mark_non_differentiable(*((rows,) if weights_depend else (weights, rows)))


def _differentiate(
    ctx: Any, dcontext: Tensor | None, dweights: Tensor | None, drows: None
) -> tuple[Tensor | None, ...]:
    *tensors, rows = ctx.saved_tensors
    needs = ctx.needs_input_grad[:_N_DIFFERENTIABLE]
    if dcontext is None and dweights is None:
        return (None,) * len(ctx.needs_input_grad)
    found = _gradients(needs, dcontext, dweights, rows, *tensors, *ctx.options)
    return (*scattered(found, needs), *(None,) * (len(ctx.needs_input_grad) - _N_DIFFERENTIABLE))


differentiable(_operator, _save, _differentiate, _gradients)


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
    Tensors have any strides and one dtype, for the kernel float32, float16 or bfloat16; under autocast dtypes may
    differ.

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
        (context [B, n_memory], attention weights [B, T]). Under autocast on a GPU the weights are float32. An
        item that is all padding gets zeros.

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
        check_one_dtype(
            query=query, memory=memory, processed_memory=processed_memory, query_weight=query_weight,
            location_conv_weight=location_conv_weight, location_dense_weight=location_dense_weight,
            v_weight=v_weight, v_bias=v_bias,
        )  # fmt: skip
    others = [attention_weights_cat, mask, lengths, v_bias, location_weight]
    if not backend.picks_triton(OP, *tensors, *others, unsupported=unsupported):
        return reference_location_attention(
            query, memory, processed_memory, attention_weights_cat, query_weight, location_conv_weight,
            location_dense_weight, v_weight, mask,
            lengths=lengths, v_bias=v_bias, sharpening=sharpening, normalization=normalization,
        )  # fmt: skip
    if location_weight is None:
        location_weight = fold_location(location_conv_weight, location_dense_weight, dtype)
    inputs = Inputs(
        query=F.linear(query, query_weight),
        memory=memory,
        processed_memory=processed_memory,
        weights_cat=attention_weights_cat,
        location=location_weight.to(dtype),
        v=v_weight.reshape(-1),
        v_bias=v_bias,
        mask=mask,
        lengths=lengths,
    )
    weights_dtype = dtype if autocast is None else torch.float32
    context, weights, _ = _operator(*inputs, location_conv_weight.shape[2], sharpening, normalization, weights_dtype)
    return context, weights


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
