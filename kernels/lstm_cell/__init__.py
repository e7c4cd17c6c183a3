"""LSTM cell with dropout and zoneout, forward and backward. Maths, layout and cost: kernels/README.md.

`cell` has the parts of a step as device functions, which the decoder loops call too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import check_probability, check_seed, check_shape, contiguous_rows, mixed_dtypes
from ..reference.lstm_cell import lstm_cell as reference_lstm_cell
from ..reference.philox import random_seed
from .kernels import OP, Inputs, Options, Upstream, lstm_cell_bwd, lstm_cell_fwd


class LSTMCell(Function):
    """Arguments: the fields of `Inputs`, the seed, `Options`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, seed, ctx.options = arguments
        inputs = Inputs(*tensors)
        outputs = lstm_cell_fwd(inputs, seed, ctx.options, save_gates=True)
        ctx.seed = None if isinstance(seed, Tensor) else seed
        kept = inputs._replace(bias_ih=None, bias_hh=None)
        ctx.save_for_backward(*kept, outputs.gates, seed if ctx.seed is None else None)
        ctx.set_materialize_grads(False)
        return outputs.h, outputs.c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnext_h: Tensor | None, dnext_c: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, Upstream(dnext_h, dnext_c)), None, None


def _gradients(ctx: Any, upstream: Upstream) -> Inputs:
    none = Inputs(*(None for _ in Inputs._fields))
    if upstream.h is None and upstream.c is None:
        return none
    *saved, gates, seed = ctx.saved_tensors
    inputs = Inputs(*saved)
    wants = Inputs(*ctx.needs_input_grad[: len(inputs)])
    ds = lstm_cell_bwd(upstream, gates, inputs.c, ctx.seed if seed is None else seed, ctx.options)
    gradients = none._replace(c=ds.c if wants.c else None)
    with backend.without_autocast(gates):  # it may be on here without having been on in the forward pass
        if wants.x:
            gradients = gradients._replace(x=ds.gates @ inputs.weight_ih)
        if wants.h:
            dh = ds.gates @ inputs.weight_hh if ds.h is None else torch.addmm(ds.h, ds.gates, inputs.weight_hh)
            gradients = gradients._replace(h=dh)
        if wants.weight_ih:
            gradients = gradients._replace(weight_ih=ds.gates.t() @ inputs.x)
        if wants.weight_hh:
            gradients = gradients._replace(weight_hh=ds.gates.t() @ inputs.h)
        if wants.bias_ih or wants.bias_hh:
            dbias = ds.gates.sum(0)
            gradients = gradients._replace(
                bias_ih=dbias if wants.bias_ih else None, bias_hh=dbias if wants.bias_hh else None
            )
    return gradients


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
        x: input, [B, n_in]; float32, float16 or bfloat16, like all other tensors.
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
        FastglowError: a shape, probability or seed other than the above.
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
    unsupported = mixed_dtypes(*inputs) if dtype is None else None
    seed_tensor = seed if isinstance(seed, Tensor) else None
    if not backend.picks_triton(OP, *inputs, seed_tensor, unsupported=unsupported):
        # torch.lstm_cell follows autocast itself.
        return reference_lstm_cell(
            x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, **options._asdict(), seed=seed
        )  # fmt: skip
    if dtype is not None:
        inputs = Inputs(*(None if t is None else cast_as_autocast(t, dtype) for t in inputs))
    inputs = Inputs(
        x=contiguous_rows(inputs.x),
        h=contiguous_rows(inputs.h),
        c=inputs.c,
        weight_ih=contiguous_rows(inputs.weight_ih),
        weight_hh=contiguous_rows(inputs.weight_hh),
        bias_ih=None if inputs.bias_ih is None else inputs.bias_ih.contiguous(),
        bias_hh=None if inputs.bias_hh is None else inputs.bias_hh.contiguous(),
    )
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs if t is not None):
        return LSTMCell.apply(*inputs, seed, options)
    outputs = lstm_cell_fwd(inputs, seed, options, save_gates=False)
    return outputs.h, outputs.c


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
