"""The teacher-forced loop as PyTorch operators: one runs its kernels, the other its form for CPUs.

Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from .. import backend
from ..operators import differentiable, operator, scattered
from ..reference.teacher_forced_loop import Arguments
from .deferred import Kept, deferred_backward, deferred_empty, deferred_forward
from .forward import Histories, empty_histories, run_forward
from .frame import OP, Plan
from .gradients import after_the_loop, run_backward

_N_ARGUMENTS = len(Arguments._fields)
_N_OPTIONS = 4  # lengths, seed and probabilities


def _plan(arguments: Arguments, p_attention_dropout: float, p_decoder_dropout: float) -> Plan:
    (T, B, P), (_, T_in, D) = arguments.decoder_inputs.shape, arguments.memory.shape
    return Plan(
        T=T,
        B=B,
        P=P,
        T_in=T_in,
        D=D,
        A=arguments.processed_memory.shape[2],
        n_a=arguments.attention_weight_hh.shape[1],
        n_d=arguments.decoder_weight_hh.shape[1],
        taps=arguments.location_conv.shape[2],
        p_attention_dropout=p_attention_dropout,
        p_decoder_dropout=p_decoder_dropout,
    )


def _results(kept: Histories, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(hidden states and contexts, a view of their history; alignments, which callers may change; other histories)."""
    alignments = kept.weights[1:].transpose(0, 1).to(dtype, copy=True)
    return kept.outputs[1:].transpose(0, 1), alignments, *kept[1:]


def _forward(lengths: Tensor, seed: Tensor | None, p_a: float, p_d: float, *tensors: Tensor) -> tuple[Tensor, ...]:
    arguments = Arguments(*(x.contiguous() for x in tensors))
    with backend.without_autocast(lengths):
        kept = run_forward(arguments, _int64(lengths), seed, _plan(arguments, p_a, p_d))
    return _results(kept, arguments.memory.dtype)


def _empty(lengths: Tensor, seed: Tensor | None, p_a: float, p_d: float, *tensors: Tensor) -> tuple[Tensor, ...]:
    arguments = Arguments(*tensors)
    return _results(empty_histories(arguments.memory, _plan(arguments, p_a, p_d)), arguments.memory.dtype)


def _reference(*arguments: Any) -> tuple[Tensor, ...]:
    """The histories are for kernels only, and zeros."""
    return *deferred_forward(*arguments)[:2], *(x.zero_() for x in _empty(*arguments)[2:])


def _backward(
    needs: Sequence[bool],
    d_hidden_contexts: Tensor | None,
    d_alignments: Tensor | None,
    lengths: Tensor,
    seed: Tensor | None,
    p_a: float,
    p_d: float,
    *more: Tensor,
) -> list[Tensor]:
    arguments = Arguments(*(x.contiguous() for x in more[:_N_ARGUMENTS]))
    plan, lengths = _plan(arguments, p_a, p_d), _int64(lengths)
    hidden_contexts, *histories = more[_N_ARGUMENTS:]
    # Frame 0 reads zeros.
    kept = Histories(F.pad(hidden_contexts.transpose(0, 1), (0, 0, 0, 0, 1, 0)), *histories)
    if d_hidden_contexts is None:
        d_hidden_contexts = arguments.memory.new_zeros(plan.B, plan.T, plan.n_d + plan.D)
    # Upstream gradients may be expanded.
    d_hidden_contexts = d_hidden_contexts.contiguous()
    d_alignments = None if d_alignments is None else d_alignments.contiguous()
    with backend.without_autocast(lengths):
        loop = run_backward(d_hidden_contexts, d_alignments, arguments, lengths, seed, kept, plan)
        gradients = after_the_loop(arguments, lengths, kept, loop, plan, wanted=Arguments(*needs))
    return [d.contiguous() for d, needed in zip(gradients, needs, strict=True) if needed]


def _empty_gradients(needs: Sequence[bool], d_hidden_contexts, d_alignments, *more: Any) -> list[Tensor]:
    arguments = zip(more[_N_OPTIONS:], needs, strict=False)
    return [x.new_empty(x.shape) for x, needed in arguments if needed]


def _reference_backward(needs: Sequence[bool], d_hidden_contexts, d_alignments, *more: Any) -> list[Tensor]:
    arguments = more[: _N_OPTIONS + _N_ARGUMENTS]
    kept = deferred_forward(*arguments)[2:]
    return deferred_backward(needs, d_hidden_contexts, d_alignments, *arguments, *kept)


def _int64(lengths: Tensor) -> Tensor:
    return lengths.to(torch.int64).contiguous()


_ARGUMENTS = ", ".join(
    ("Tensor memory_lengths", "Tensor? seed", "float p_attention_dropout", "float p_decoder_dropout")
    + tuple(f"Tensor {name}" for name in Arguments._fields)
)


_RESULTS = ("hidden_contexts", *Histories._fields[1:])
"""What the backward pass gets, besides the arguments."""


def _typed(n: int) -> str:
    return ", ".join(["Tensor"] * n)


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"Tensor {name}" for name in names)


_GRADIENT_ARGUMENTS = f"bool[] needs, Tensor? d_hidden_contexts, Tensor? d_alignments, {_ARGUMENTS}"

loop_operator = operator(
    OP, f"({_ARGUMENTS}) -> ({_typed(1 + len(_RESULTS))})", kernel=_forward, empty=_empty, reference=_reference
)
_gradients = operator(
    f"{OP}_backward",
    f"({_GRADIENT_ARGUMENTS}, {_named(_RESULTS)}) -> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)
deferred_loop_operator = operator(
    f"deferred_{OP}",
    f"({_ARGUMENTS}) -> ({_typed(2 + len(Kept._fields))})",
    kernel=deferred_forward,
    empty=deferred_empty,
    reference=None,
    tags=(torch.Tag.nondeterministic_seeded,),
)
_deferred_gradients = operator(
    f"deferred_{OP}_backward",
    f"({_GRADIENT_ARGUMENTS}, {_named(Kept._fields)}) -> Tensor[]",
    kernel=deferred_backward,
    empty=_empty_gradients,
    reference=None,
)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    hidden_contexts, _, *histories = output
    _save_all(ctx, inputs, histories, (hidden_contexts, *histories))


def _save_deferred(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _save_all(ctx, inputs, output[2:], output[2:])


def _save_all(ctx: Any, inputs: tuple, histories: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    ctx.options = inputs[2:_N_OPTIONS]
    ctx.save_for_backward(*inputs[:2], *inputs[_N_OPTIONS:], *kept)
    ctx.mark_non_differentiable(*histories)
    ctx.set_materialize_grads(False)


def _differentiate_by(backward: OpOverload, ctx: Any, ds: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    wanted = Arguments(*ctx.needs_input_grad[_N_OPTIONS:])
    none = (None,) * _N_OPTIONS
    if ds[0] is None and ds[1] is None:
        return (*none, *(None for _ in wanted))
    lengths, seed, *tensors = ctx.saved_tensors
    # The biases of an LSTM have one gradient.
    needs = wanted._replace(
        attention_bias_hh=wanted.attention_bias_hh and not wanted.attention_bias_ih,
        decoder_bias_hh=wanted.decoder_bias_hh and not wanted.decoder_bias_ih,
    )
    found = Arguments(*scattered(backward(needs, *ds[:2], lengths, seed, *ctx.options, *tensors), needs))
    if wanted.attention_bias_hh and wanted.attention_bias_ih:
        found = found._replace(attention_bias_hh=found.attention_bias_ih)
    if wanted.decoder_bias_hh and wanted.decoder_bias_ih:
        found = found._replace(decoder_bias_hh=found.decoder_bias_ih)
    return (*none, *found)


def _differentiate(ctx: Any, *ds: Tensor | None) -> tuple[Tensor | None, ...]:
    return _differentiate_by(_gradients, ctx, ds)


def _differentiate_deferred(ctx: Any, *ds: Tensor | None) -> tuple[Tensor | None, ...]:
    return _differentiate_by(_deferred_gradients, ctx, ds)


differentiable(loop_operator, _save, _differentiate, _gradients)
differentiable(deferred_loop_operator, _save_deferred, _differentiate_deferred, _deferred_gradients)
