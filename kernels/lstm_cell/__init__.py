"""LSTM cell with dropout and zoneout, forward and backward. Maths, layout and cost: kernels/README.md.

`cell` has the parts of a step as device functions, which the decoder loops call too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import check_one_dtype, check_probability, check_seed, check_shape, contiguous_rows, operator_seed
from ..operators import differentiable, operator, reference_gradients, scattered
from ..reference.lstm_cell import lstm_cell as reference_lstm_cell
from ..reference.philox import random_seed
from .kernels import OP, Inputs, Options, Upstream, lstm_cell_bwd, lstm_cell_fwd

_N_INPUTS = len(Inputs._fields)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, seed, options, save_gates = _unpacked(arguments)
    outputs = lstm_cell_fwd(inputs, seed, options, save_gates)
    return outputs.h, outputs.c, inputs.x.new_empty(0) if outputs.gates is None else outputs.gates


def _empty(x: Tensor, h: Tensor, c: Tensor, *more: Any) -> tuple[Tensor, Tensor, Tensor]:
    (B, n), save_gates = c.shape, more[-1]
    return x.new_empty((B, n)), x.new_empty((B, n)), x.new_empty((B, 4 * n) if save_gates else (0,))


def _reference(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The gates are for kernels only, and zeros."""
    inputs, seed, options, _ = _unpacked(arguments)
    next_h, next_c = reference_lstm_cell(*inputs, **options._asdict(), seed=seed)
    return next_h, next_c, _empty(*arguments)[2].zero_()


def _backward(
    needs: Sequence[bool], dnext_h: Tensor | None, dnext_c: Tensor | None, gates: Tensor, *arguments: Any
) -> list[Tensor]:
    inputs, seed, options, _ = _unpacked(arguments)
    wants = Inputs(*needs)
    ds = lstm_cell_bwd(Upstream(dnext_h, dnext_c), gates, inputs.c, seed, options)
    gradients = []
    with backend.without_autocast(gates):  # it may be on here without having been on in the forward pass
        if wants.x:
            gradients.append(ds.gates @ inputs.weight_ih)
        if wants.h:
            dh = ds.gates @ inputs.weight_hh if ds.h is None else torch.addmm(ds.h, ds.gates, inputs.weight_hh)
            gradients.append(dh)
        if wants.c:
            gradients.append(ds.c)
        if wants.weight_ih:
            gradients.append(ds.gates.t() @ inputs.x)
        if wants.weight_hh:
            gradients.append(ds.gates.t() @ inputs.h)
        gradients += [ds.gates.sum(0) for wanted in (wants.bias_ih, wants.bias_hh) if wanted]
    return gradients


def _empty_gradients(needs: Sequence[bool], dnext_h, dnext_c, gates, *arguments: Any) -> list[Tensor]:
    inputs = zip(arguments[:_N_INPUTS], needs, strict=True)
    return [x.new_empty(x.shape) for x, needed in inputs if needed]


def _reference_backward(needs: Sequence[bool], dnext_h, dnext_c, gates, *arguments: Any) -> list[Tensor]:
    inputs, more = arguments[:_N_INPUTS], arguments[_N_INPUTS:]
    return reference_gradients(lambda *x: _reference(*x, *more)[:2], inputs, needs, (dnext_h, dnext_c))


def _unpacked(arguments: tuple) -> tuple[Inputs, int | Tensor, Options, bool]:
    """The operator's arguments, in the layouts that kernels take."""
    seed, seed_in_memory, *options, save_gates = arguments[_N_INPUTS:]
    x, h, c, weight_ih, weight_hh, *biases = arguments[:_N_INPUTS]
    rows = (contiguous_rows(tensor) for tensor in (weight_ih, weight_hh))
    inputs = Inputs(
        contiguous_rows(x),
        contiguous_rows(h),
        c,
        *rows,
        *(None if bias is None else bias.contiguous() for bias in biases),
    )
    return inputs, seed if seed_in_memory is None else seed_in_memory, Options(*options), save_gates


_ARGUMENTS = (
    "Tensor x, Tensor h, Tensor c, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, SymInt seed, "
    "Tensor? seed_in_memory, float p_dropout_h, float p_dropout_c, float p_zoneout_h, float p_zoneout_c, "
    "bool training, bool save_gates"
)
_operator = operator(
    OP, f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", kernel=_forward, empty=_empty, reference=_reference
)
_gradients = operator(
    f"{OP}_backward",
    f"(bool[] needs, Tensor? dnext_h, Tensor? dnext_c, Tensor gates, {_ARGUMENTS}) -> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, (ctx.seed, seed_in_memory, *ctx.options) = inputs[:_N_INPUTS], inputs[_N_INPUTS:]
    gates = output[2]
    ctx.save_for_backward(gates, seed_in_memory, *tensors)
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dnext_h: Tensor | None, dnext_c: Tensor | None, dgates: None) -> tuple[Tensor | None, ...]:
    others = (None,) * (2 + len(ctx.options))
    if dnext_h is None and dnext_c is None:
        return (*(None,) * _N_INPUTS, *others)
    gates, seed_in_memory, *tensors = ctx.saved_tensors
    wants = Inputs(*ctx.needs_input_grad[:_N_INPUTS])
    needs = wants._replace(bias_hh=wants.bias_hh and not wants.bias_ih)  # the biases have one gradient
    found = _gradients(list(needs), dnext_h, dnext_c, gates, *tensors, ctx.seed, seed_in_memory, *ctx.options)
    ds = Inputs(*scattered(found, needs))
    return (*ds._replace(bias_hh=ds.bias_ih if wants.bias_hh and wants.bias_ih else ds.bias_hh), *others)


differentiable(_operator, _save, _differentiate, _gradients)


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    p_dropout_h: float = 0.0,
    p_dropout_c: float = 0.0,
    p_zoneout_h: float = 0.0,
    p_zoneout_c: float = 0.0,
    training: bool = True,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997), as torch.lstm_cell, with optional dropout and zoneout.

    Zoneout (Krueger et al. 2016) comes before dropout. Both change what is returned: a caller that passes the result to
    the next step drops the state itself, as coqui, Mellotron and NVIDIA do.

    Args:
        x: input, [B, n_in]; float32, float16 or bfloat16 for the kernel. Unless autocast is on, all tensors have one
            dtype.
        h, c: hidden and cell state, [B, n].
        weight_ih: [4n, n_in], gate order i, f, g, o. Without contiguous rows it is copied.
        weight_hh: [4n, n], likewise.
        bias_ih, bias_hh: [4n], both or neither.
        p_dropout_h, p_dropout_c: probability of dropping a unit of h' or c', at least 0 and below 1; the other units
            are divided by 1 - p. Only in training. NVIDIA drops h', coqui and Mellotron also c'.
        p_zoneout_h, p_zoneout_c: probability that a unit of h' or c' keeps its previous value, at least 0 and below 1.
            Without training the result is the expectation, p previous + (1 - p) next, as in ESPnet.
        training: whether units are dropped and kept at random.
        seed: of the masks: an integer, or a 0-d int64 tensor on the device of `x` that must not change before the
            backward pass ends; None: drawn from PyTorch's generator. One seed gives one set of masks: pass a new one
            in every step.

    Returns:
        (h', c'), each [B, n], in the dtype of `x`; under autocast on a GPU in autocast's.

    Raises:
        FastglowError: a shape, dtype, probability or seed other than the above.
    """
    _check(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, seed)
    options = Options(p_dropout_h, p_dropout_c, p_zoneout_h, p_zoneout_c, training)
    for name, p in zip(options._fields[:4], options[:4], strict=True):
        check_probability(name, p)
    if options.kind() != "random":
        seed = 0
    elif seed is None:
        seed = random_seed(x.device)
    inputs = Inputs(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh)
    dtype = backend.autocast_dtype(x)
    if dtype is None:
        check_one_dtype(**inputs._asdict())
    seed_tensor = seed if isinstance(seed, Tensor) else None
    if not backend.picks_triton(OP, *inputs, seed_tensor):
        # torch.lstm_cell follows autocast itself.
        return reference_lstm_cell(
            x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, **options._asdict(), seed=seed
        )  # fmt: skip
    if dtype is not None:
        inputs = Inputs(*(None if t is None else cast_as_autocast(t, dtype) for t in inputs))
    save_gates = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    next_h, next_c, _ = _operator(*inputs, *operator_seed(seed), *options, save_gates)
    return next_h, next_c


def cast_as_autocast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts as autocast does, each parameter once for all steps of a loop.

    Only autocast's own operations reach its cache. An einsum of a single tensor is one, and returns that tensor.
    """
    return (torch.einsum("...->...", x) if x.is_leaf else x).to(dtype)


def _check(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    seed: int | Tensor | None,
) -> None:
    check_shape("x", x, ("B", "n_in"))
    B, n_in = x.shape
    check_shape("h", h, (B, "n"), beside=("x", x))
    n = h.shape[1]
    check_shape("c", c, (B, n), beside=("h", h))
    check_shape("weight_ih", weight_ih, (4 * n, n_in), beside=("x", x))
    check_shape("weight_hh", weight_hh, (4 * n, n), beside=("h", h))
    check_shape("bias_ih", bias_ih, (4 * n,), beside=("h", h))
    check_shape("bias_hh", bias_hh, (4 * n,), beside=("h", h))
    if (bias_ih is None) != (bias_hh is None):
        raise FastglowError("only one of bias_ih and bias_hh is given: pass both or neither")
    check_seed(seed, x.device)
