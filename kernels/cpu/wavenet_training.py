"""A stack of WaveNet layers in training on a CPU: channels-last, forward and backward in matrix products on the rows of
one matrix, without a copy of them. Maths: kernels/README.md.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend
from ..arguments import check_shape
from ..operators import differentiable, operator

OP = "wavenet_stack"


class Arguments(NamedTuple):
    """In the order of the operator; or their gradients; or which of them are wanted. All of one dtype."""

    audio: Any  # [B, n_in, T]
    spect: Any  # [B, D, T]
    start_weight: Any  # [C, n_in, 1]
    start_bias: Any  # [C]
    end_weight: Any  # [S, C, 1]
    end_bias: Any  # [S]
    # One for each layer:
    in_weights: Any  # [2C, C, k]
    in_biases: Any  # [2C]
    cond_weights: Any  # [2C, D, 1]
    cond_biases: Any  # [2C]
    res_skip_weights: Any  # [2C, C, 1], residual rows first; [C, C, 1] in the last layer
    res_skip_biases: Any  # [2C] or [C]


class _Stack:
    """The weights as the products read them.

    `end` is linear: each layer's skip rows and `end` are one matrix of S rows. The biases of a sum are one.
    """

    def __init__(self, x: Arguments):
        self.B, _, self.T = x.audio.shape
        self.C, self.dtype = len(x.start_weight), x.audio.dtype
        self.taps = x.in_weights[0].shape[2]
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.start = x.start_weight[:, :, 0]
        # [2C, k, C]: a tap's channels are neighbours.
        self.convolutions = [weight.transpose(1, 2).contiguous() for weight in x.in_weights]
        self.conditionings = [weight[:, :, 0] for weight in x.cond_weights]
        self.residuals = [weight[: -self.C, :, 0] for weight in x.res_skip_weights]  # of the last layer: no rows
        self.end = x.end_weight[:, :, 0].to(self.wide)
        self.skips = [weight[-self.C :, :, 0].to(self.wide) for weight in x.res_skip_weights]
        self.skip_biases = torch.stack([bias[-self.C :] for bias in x.res_skip_biases]).to(self.wide).sum(dim=0)
        self.folded = [(self.end @ skip).to(self.dtype) for skip in self.skips]

    def rows(self, x: Tensor) -> Tensor:
        """[B, n, T] -> [B T, n]: a view, if x is channels-last."""
        return x.transpose(1, 2).reshape(self.B * self.T, x.shape[1])

    def signal(self, rows: Tensor) -> Tensor:
        """[B T, n] -> [B, n, T], a view."""
        return rows.view(self.B, self.T, rows.shape[1]).transpose(1, 2)

    def windows(self, layer: int, tap: int, outer: Tensor, inner: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows of `outer`, of each item, that a tap of the dilated convolution reaches in `inner`, with those."""
        shift = 2**layer * (tap - self.taps // 2)
        if not shift:
            yield outer, inner
            return
        n = self.T - abs(shift)
        if n <= 0:
            return
        for start in range(0, self.B * self.T, self.T):
            to, of = start + max(-shift, 0), start + max(shift, 0)
            yield outer[to : to + n], inner[of : of + n]


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(the result [B, S, T]; the layers' inputs [L, B T, C] and activated gates [L, B T, 2C], tanh first)."""
    x = Arguments(*arguments)
    backend.cpu_calls[OP] += 1
    with backend.without_autocast(x.audio):
        return _run_forward(x, _Stack(x))


def _run_forward(x: Arguments, stack: _Stack) -> tuple[Tensor, Tensor, Tensor]:
    out, hs, gates = _empty(*x)
    spect, C = stack.rows(x.spect), stack.C
    torch.addmm(x.start_bias, stack.rows(x.audio), stack.start.t(), out=hs[0])
    skip = (x.end_bias.to(stack.wide) + stack.end @ stack.skip_biases).repeat(len(spect), 1)
    acts = torch.empty_like(hs[0])
    for i, (h, u) in enumerate(zip(hs, gates, strict=True)):
        torch.addmm(x.in_biases[i] + x.cond_biases[i], spect, stack.conditionings[i].t(), out=u)
        for tap in range(stack.taps):
            weight = stack.convolutions[i][:, tap].t()
            for outer, inner in stack.windows(i, tap, u, h):
                outer.addmm_(inner, weight)
        torch.mul(u[:, :C].tanh_(), u[:, C:].sigmoid_(), out=acts)
        if i + 1 < len(hs):
            torch.add(h, x.res_skip_biases[i][:C], out=hs[i + 1]).addmm_(acts, stack.residuals[i].t())
        _add_product(skip, acts, stack.folded[i].t())
    stack.rows(out).copy_(skip)
    return out, hs, gates


def _empty(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x = Arguments(*arguments)
    (B, _, T), (C, S), L = x.audio.shape, (len(x.start_weight), len(x.end_weight)), len(x.in_weights)
    new = x.audio.new_empty
    # No view, which nobody could write to: autograd has no formula for views that an operator returns.
    out = x.audio.new_empty_strided((B, S, T), (S * T, 1, S))
    return out, new(L, B * T, C), new(L, B * T, 2 * C)


def _backward(needs: Sequence[bool], d: Tensor, hs: Tensor, gates: Tensor, *arguments: Any) -> list[Tensor]:
    """Gradients of the tensors, flat, that need one."""
    x = Arguments(*arguments)
    with backend.without_autocast(d):
        gradients = _run_backward(needs, d, hs, gates, x, _Stack(x))
    return [one for one, needed in zip(_flat(gradients), needs, strict=True) if needed]


def _run_backward(
    needs: Sequence[bool], d: Tensor, hs: Tensor, gates: Tensor, x: Arguments, stack: _Stack
) -> Arguments:
    found, (C, L) = _empty_gradients(x), (stack.C, len(hs))
    wanted = Arguments(*needs[:6], *(any(needs[6 + i * L : 6 + (i + 1) * L]) for i in range(6)))
    spect, d_skip = stack.rows(x.spect), stack.rows(d).to(stack.dtype).contiguous()
    d_spect = torch.zeros_like(spect, memory_format=torch.contiguous_format)
    d_bias = d_skip.sum(dim=0, dtype=stack.wide)
    d_end = torch.outer(d_bias, stack.skip_biases)
    d_h = torch.zeros_like(hs[0])
    d_acts, acts, d_u = torch.empty_like(d_h), torch.empty_like(d_h), torch.empty_like(gates[0])
    for i in reversed(range(L)):
        h, tanh, sigmoid = hs[i], gates[i, :, :C], gates[i, :, C:]
        torch.mm(d_skip, stack.folded[i], out=d_acts)
        torch.mul(tanh, sigmoid, out=acts)
        d_folded = (d_skip.t() @ acts).to(stack.wide)
        d_end.addmm_(d_folded, stack.skips[i].t())
        found.res_skip_weights[i][-C:, :, 0] = stack.end.t() @ d_folded
        found.res_skip_biases[i][-C:] = stack.end.t() @ d_bias
        if i + 1 < L:
            d_acts.addmm_(d_h, stack.residuals[i])
            torch.mm(d_h.t(), acts, out=found.res_skip_weights[i][:C, :, 0])
            torch.sum(d_h, dim=0, out=found.res_skip_biases[i][:C])
        _gate_backward(d_acts, tanh, sigmoid, d_u)
        torch.sum(d_u, dim=0, out=found.in_biases[i])
        found.cond_biases[i].copy_(found.in_biases[i])
        torch.mm(d_u.t(), spect, out=found.cond_weights[i][:, :, 0])
        if wanted.spect:
            d_spect.addmm_(d_u, stack.conditionings[i])
        for tap in range(stack.taps):
            pairs = [(outer.t(), inner) for outer, inner in stack.windows(i, tap, d_u, h)]
            _sum_products(found.in_weights[i][:, :, tap], pairs, stack.wide)
            for outer, inner in stack.windows(i, tap, d_u, d_h):
                inner.addmm_(outer, stack.convolutions[i][:, tap])
    audio = stack.rows(x.audio)
    torch.mm(d_h.t(), audio, out=found.start_weight[:, :, 0])
    torch.sum(d_h, dim=0, out=found.start_bias)
    found.end_weight[:, :, 0], found.end_bias[:] = d_end, d_bias
    return found._replace(audio=stack.signal(d_h @ stack.start), spect=stack.signal(d_spect))


def _gate_backward(d_acts: Tensor, tanh: Tensor, sigmoid: Tensor, d_u: Tensor) -> None:
    """Writes the gradient of the gates before their activation."""
    d_tanh, d_sigmoid = d_u.chunk(2, dim=1)
    torch.mul(d_acts, sigmoid, out=d_tanh)
    torch.ops.aten.tanh_backward.grad_input(d_tanh, tanh, grad_input=d_tanh)
    torch.mul(d_acts, tanh, out=d_sigmoid)
    torch.ops.aten.sigmoid_backward.grad_input(d_sigmoid, sigmoid, grad_input=d_sigmoid)


def _sum_products(total: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], wide: torch.dtype) -> None:
    """Writes the sum of a b over the pairs, which is taken in the wide dtype."""
    if not pairs:
        total.zero_()
        return
    total_of_pairs = torch.mm(*pairs[0], out=total) if total.dtype == wide else (pairs[0][0] @ pairs[0][1]).to(wide)
    for a, b in pairs[1:]:
        _add_product(total_of_pairs, a, b)
    if total_of_pairs is not total:
        total.copy_(total_of_pairs)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b; products of 16-bit floats are added in float32."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _flat(x: Arguments) -> list[Tensor]:
    return [*x[:6], *(tensor for tensors in x[6:] for tensor in tensors)]


def _empty_gradients(x: Arguments) -> Arguments:
    """Unset; a signal's and a convolution's channels are neighbours in memory."""

    def of(tensor: Tensor) -> Tensor:
        if tensor.dim() < 3:
            return tensor.new_empty(tensor.shape)
        a, channels, b = tensor.shape
        return tensor.new_empty(a, b, channels).transpose(1, 2)

    return Arguments(*(of(one) for one in x[:6]), *([of(one) for one in tensors] for tensors in x[6:]))


def _empty_of_needed(needs: Sequence[bool], d: Tensor, hs: Tensor, gates: Tensor, *arguments: Any) -> list[Tensor]:
    gradients = _flat(_empty_gradients(Arguments(*arguments)))
    return [one for one, needed in zip(gradients, needs, strict=True) if needed]


_ARGUMENTS = ", ".join([f"Tensor {name}" for name in Arguments._fields[:6]] + [
    f"Tensor[] {name}" for name in Arguments._fields[6:]
])  # fmt: skip

wavenet_stack = operator(
    OP, f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", kernel=_forward, empty=_empty, reference=None
)
_gradients = operator(
    f"{OP}_backward",
    f"(bool[] needs, Tensor d, Tensor hs, Tensor gates, {_ARGUMENTS}) -> Tensor[]",
    kernel=_backward,
    empty=_empty_of_needed,
    reference=None,
)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, hs, gates = output
    ctx.mark_non_differentiable(hs, gates)
    ctx.set_materialize_grads(False)
    ctx.n_layers = len(inputs[6])
    ctx.save_for_backward(hs, gates, *_flat(Arguments(*inputs)))


def _differentiate(ctx: Any, d: Tensor | None, *_: Any) -> tuple[Any, ...]:
    hs, gates, *tensors = ctx.saved_tensors
    n = ctx.n_layers
    needs = [needed and d is not None for needed in _flat(Arguments(*ctx.needs_input_grad))]
    arguments = [*tensors[:6], *(tensors[i : i + n] for i in range(6, len(tensors), n))]
    gradients = iter(() if d is None else _gradients(needs, d, hs, gates, *arguments))
    found = [next(gradients) if needed else None for needed in needs]
    return *found[:6], *(found[i : i + n] for i in range(6, len(found), n))


differentiable(wavenet_stack, _save, _differentiate, _gradients)


Weights = tuple[Tensor, Tensor]


def train_wavenet(
    audio: Tensor,
    spect: Tensor,
    start: Weights,
    in_layers: Sequence[Weights],
    cond_layers: Sequence[Weights],
    res_skip_layers: Sequence[Weights],
    end: Weights,
) -> Tensor:
    """`start`, the layers, with dilations of 1, 2, 4 ..., and `end`; once differentiable.

    Under autocast, arguments are converted; else all must have one dtype. Fastest if `spect` and the weights of the
    convolutions are views of memory in which the channels are neighbours.

    Args:
        audio: [B, n_in, T].
        spect: [B, D, T].
        start, end: weight [C, n_in, 1] or [S, C, 1], and bias.
        in_layers, cond_layers, res_skip_layers: weight and bias of each layer, as for `kernels.wavenet_layer`; the
            skips have C rows.

    Returns:
        [B, S, T].

    Raises:
        FastglowError: shapes that do not fit each other.
    """
    check_shape("audio", audio, ("B", start[0].shape[1], "T"))
    B, _, T = audio.shape
    check_shape("spect", spect, (B, cond_layers[0][0].shape[1], T), beside=("audio", audio))
    dtype = backend.autocast_dtype(audio) or audio.dtype
    layers = (zip(*pairs, strict=True) for pairs in (in_layers, cond_layers, res_skip_layers))
    single = [x.to(dtype) for x in (audio, spect, *start, *end)]
    listed = [[x.to(dtype) for x in tensors] for pairs in layers for tensors in pairs]
    return wavenet_stack(*single, *listed)[0]
