"""A WaveNet layer as a PyTorch operator, channels-last. Maths, layout and cost: kernels/README.md."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import with_near_rows
from ..operators import differentiable, operator, scattered
from ..reference.convolution import conv1d
from ..reference.wavenet_layer import wavenet_layer as reference_wavenet_layer
from .backward import SignalGradients, argument_gradients, inside, signal_gradients
from .common import OP, LayerInputs, ResSkip
from .forward import layer_forward

_N_INPUTS = len(LayerInputs._fields)


def with_contiguous_rows(x: Tensor) -> Tensor:
    """[B, T, n], copied if channels are not contiguous or positions too far apart for 32 bits."""
    return with_near_rows(x if x.stride(2) == 1 else x.contiguous())


def contiguous_in_channels(weight: Tensor | None) -> Tensor | None:
    """The same [out, in, k], copied if input channels are not contiguous or rows too far apart for 32 bits."""
    if weight is None:
        return None
    rows, _, taps = weight.shape
    if weight.stride(1) == 1 and rows * weight.stride(0) + taps * weight.stride(2) < 2**31:
        return weight
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def _laid_out(inputs: LayerInputs) -> LayerInputs:
    """The operator's arguments, in the layouts that kernels take."""
    vectors = {name: getattr(inputs, name) for name in ("lengths", "in_bias", "cond_bias", "res_skip_bias")}
    weights = {name: getattr(inputs, name) for name in ("in_weight", "cond_weight", "res_skip_weight")}
    conditioning, mask = inputs.conditioning, inputs.mask
    return inputs._replace(
        h=with_contiguous_rows(inputs.h),
        conditioning=None if conditioning is None else with_contiguous_rows(conditioning),
        mask=None if mask is None else with_near_rows(mask),
        **{name: None if x is None else x.contiguous() for name, x in vectors.items()},
        **{name: contiguous_in_channels(x) for name, x in weights.items()},
    )


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, dilation, save_gate = arguments
    absent = inputs[0].new_empty(0)
    next_h, next_skip, gate = layer_forward(_laid_out(LayerInputs(*inputs)), dilation, save_gate)
    return absent if next_h is None else next_h, next_skip, absent.clone() if gate is None else gate


def _empty(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, _, save_gate = arguments
    inputs = LayerInputs(*tensors)
    h, skip = inputs.h, inputs.skip
    B, T, C = h.shape
    R, S = ResSkip.of(inputs)[2:]
    return (
        h.new_empty((B, T, C) if R else (0,)),
        h.new_empty((B, T, S), dtype=h.dtype if skip is None else skip.dtype),
        h.new_empty((B, T, 2 * C) if save_gate else (0,)),
    )


def _reference(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, dilation, save_gate = arguments
    inputs = LayerInputs(*tensors)

    def transposed(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.transpose(1, 2)

    h, weight = inputs.h.transpose(1, 2), inputs.in_weight
    added = inputs.added if inputs.conditioning is None else inputs.conditioning
    next_h, next_skip = reference_wavenet_layer(
        h, transposed(added), weight, inputs.in_bias, inputs.cond_weight, inputs.cond_bias, inputs.res_skip_weight,
        inputs.res_skip_bias, dilation, transposed(inputs.mask), lengths=inputs.lengths, skip=transposed(inputs.skip),
    )  # fmt: skip
    gate = h.new_empty(0)
    if save_gate:
        h = inside(inputs.h, inputs.lengths).transpose(1, 2)
        u = conv1d(h, weight, inputs.in_bias, padding=dilation * (weight.shape[2] // 2), dilation=dilation)
        if inputs.conditioning is not None:
            u = u + conv1d(inputs.conditioning.transpose(1, 2), inputs.cond_weight, inputs.cond_bias)
        elif inputs.added is not None:
            u = u + inputs.added.transpose(1, 2)
        b_tanh, b_sigmoid = u.transpose(1, 2).chunk(2, dim=2)
        gate = torch.cat((torch.tanh(b_tanh), torch.sigmoid(b_sigmoid)), dim=2)
    return h.new_empty(0) if next_h is None else next_h.transpose(1, 2), next_skip.transpose(1, 2), gate


def _reference_signal_gradients(
    dnext: Tensor | None, dskip: Tensor | None, inputs: LayerInputs, gate: Tensor, dilation: int, needs_h: bool
) -> SignalGradients:
    R, weight, taps = ResSkip.of(inputs).R, inputs.res_skip_weight[:, :, 0], inputs.in_weight.shape[2]
    b_tanh, b_sigmoid = gate.chunk(2, dim=2)
    acts, d_acts = b_tanh * b_sigmoid, torch.zeros_like(b_tanh)
    if dnext is not None:
        dnext = inside(dnext if inputs.mask is None else dnext * inputs.mask, inputs.lengths)
        d_acts = dnext @ weight[:R]
    if dskip is not None:
        d_acts = d_acts + dskip @ weight[R:]
    du = torch.cat((d_acts * b_sigmoid * (1 - b_tanh**2), d_acts * acts * (1 - b_sigmoid)), dim=2)
    du, dh = inside(du, inputs.lengths), None
    if needs_h:
        turned = inputs.in_weight.transpose(0, 1).flip(2)
        dh = conv1d(du.transpose(1, 2), turned, padding=dilation * (taps // 2), dilation=dilation).transpose(1, 2)
        dh = inside(dh, inputs.lengths) if dnext is None else inside(dh, inputs.lengths) + dnext
    return dh, du, inside(acts, inputs.lengths)


def _gradients_by(find: Any, arguments: tuple) -> list[Tensor]:
    needs, added_shape, dnext, dskip, gate, *tensors, dilation = arguments
    inputs, needed = _laid_out(LayerInputs(*tensors)), LayerInputs(*needs)
    found = argument_gradients(find, dnext, dskip, inputs, gate, dilation, added_shape, needed)
    return [d for d in found if d is not None]


def _backward(*arguments: Any) -> list[Tensor]:
    return _gradients_by(signal_gradients, arguments)


def _reference_backward(*arguments: Any) -> list[Tensor]:
    return _gradients_by(_reference_signal_gradients, arguments)


def _empty_gradients(
    needs: Sequence[bool], added_shape: Sequence[int] | None, dnext, dskip, gate, *tensors: Any
) -> list[Tensor]:
    inputs, needed = LayerInputs(*tensors[:-1]), LayerInputs(*needs)
    h = inputs.h
    C = h.shape[2]
    rows, _, taps = inputs.in_weight.shape
    empty = {
        "h": lambda: h.new_empty(h.shape),
        "conditioning": lambda: h.new_empty(inputs.conditioning.shape),
        "added": lambda: h.new_empty(added_shape),
        "in_weight": lambda: h.new_empty((rows, taps, C)).transpose(1, 2),
        "in_bias": lambda: h.new_empty(rows),
        "cond_weight": lambda: h.new_empty(inputs.cond_weight.shape),
        "cond_bias": lambda: h.new_empty(rows),
        "res_skip_weight": lambda: h.new_empty(inputs.res_skip_weight.shape),
        "res_skip_bias": lambda: h.new_empty(len(inputs.res_skip_weight)),
    }
    return [empty[name]() for name in LayerInputs._fields if getattr(needed, name)]


_INPUTS = (
    "Tensor h, Tensor? conditioning, Tensor? added, Tensor? skip, Tensor? mask, Tensor? lengths, Tensor in_weight, "
    "Tensor? in_bias, Tensor? cond_weight, Tensor? cond_bias, Tensor res_skip_weight, Tensor? res_skip_bias"
)
wavenet_layer_operator = operator(
    OP,
    f"({_INPUTS}, int dilation, bool save_gate) -> (Tensor, Tensor, Tensor)",
    kernel=_forward,
    empty=_empty,
    reference=_reference,
)
"""(next h [B, T, C], next skip [B, T, S], tanh and sigmoid [B, T, 2C]); absent ones have no elements."""

_gradients = operator(
    f"{OP}_backward",
    f"(bool[] needs, SymInt[]? added_shape, Tensor? dnext, Tensor? dskip, Tensor gate, {_INPUTS}, int dilation) "
    "-> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.dilation, _ = inputs
    given = LayerInputs(*tensors)
    next_h, _, gate = output
    # Of these the gradients need no value, and sums of skips are large.
    saved = given._replace(added=None, skip=None, in_bias=None, cond_bias=None, res_skip_bias=None)
    ctx.save_for_backward(gate, *saved)
    ctx.added_shape = None if given.added is None else given.added.shape
    ctx.mark_non_differentiable(gate, *(() if next_h.dim() == 3 else (next_h,)))
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dnext: Tensor | None, dskip: Tensor | None, dgate: None) -> tuple[Tensor | None, ...]:
    gate, *saved = ctx.saved_tensors
    wanted = LayerInputs(*ctx.needs_input_grad[:_N_INPUTS])
    if dnext is None and dskip is None:
        return (None,) * (_N_INPUTS + 2)
    dskip = None if dskip is None else inside(dskip, LayerInputs(*saved).lengths)
    # Both biases have one gradient, that of the sum of skips is known, and a mask gets none.
    needs = wanted._replace(cond_bias=wanted.cond_bias and not wanted.in_bias, skip=False, mask=False)
    found = _gradients(needs, ctx.added_shape, dnext, dskip, gate, *saved, ctx.dilation)
    ds = LayerInputs(*scattered(found, needs))
    if wanted.in_bias and wanted.cond_bias:
        ds = ds._replace(cond_bias=ds.in_bias)
    return (*ds._replace(skip=dskip if wanted.skip else None), None, None)


differentiable(wavenet_layer_operator, _save, _differentiate, _gradients)
