"""Tacotron 2's decoder under teacher forcing: all frames in one autograd function.

Maths, layout and cost: kernels/README.md. `frame` is what the kernels share, `forward`, `attention`, `backward` and
`attention_backward` are the kernels, `gradients` what follows the backward frames, `replay` runs frames by launches or
CUDA graphs.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .. import backend
from ..arguments import check_probability, check_seed, check_shape, mixed_dtypes, too_many_elements
from ..decoder_weights import RecurrentWeights, recurrent_shapes
from ..launch import uncompiled
from ..location_attention import attention_too_wide
from ..reference.philox import random_seed
from ..reference.teacher_forced_loop import Arguments, deferred_teacher_forced_loop, flatten_arguments
from .forward import Histories, run_forward
from .frame import OP, Plan
from .gradients import after_the_loop, run_backward

_N_ARGUMENTS = len(Arguments._fields)


class _TeacherForcedLoop(Function):
    @staticmethod
    def forward(ctx, plan, lengths, seed, *tensors):
        arguments = Arguments(*tensors)
        with backend.without_autocast(arguments.memory):
            kept = run_forward(arguments, lengths, seed, plan)
        ctx.plan = plan
        ctx.save_for_backward(lengths, seed, *arguments, *kept)
        ctx.set_materialize_grads(False)
        # A copy: callers may change it in place.
        alignments = kept.weights[1:].transpose(0, 1).to(arguments.memory.dtype, copy=True)
        return kept.outputs[1:].transpose(0, 1), alignments

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hidden_contexts, d_alignments):
        if d_hidden_contexts is None and d_alignments is None:
            return (None,) * (3 + _N_ARGUMENTS)
        plan = ctx.plan
        lengths, seed, *saved = ctx.saved_tensors
        arguments, kept = Arguments(*saved[:_N_ARGUMENTS]), Histories(*saved[_N_ARGUMENTS:])
        if d_hidden_contexts is None:
            d_hidden_contexts = arguments.memory.new_zeros(plan.B, plan.T, plan.n_d + plan.D)
        # Upstream gradients may be expanded.
        d_hidden_contexts = d_hidden_contexts.contiguous()
        d_alignments = None if d_alignments is None else d_alignments.contiguous()
        with backend.without_autocast(arguments.memory):
            loop = run_backward(d_hidden_contexts, d_alignments, arguments, lengths, seed, kept, plan)
            gradients = after_the_loop(
                arguments, lengths, kept, loop, plan, wanted=Arguments(*ctx.needs_input_grad[3:])
            )
        return (None, None, None, *gradients)


_differentiable = uncompiled(_TeacherForcedLoop.apply)


def teacher_forced_loop(
    decoder_inputs: Tensor,
    memory: Tensor,
    processed_memory: Tensor,
    memory_lengths: Tensor,
    weights: RecurrentWeights,
    *,
    p_attention_dropout: float = 0.0,
    p_decoder_dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All steps of Tacotron 2's decoder (Shen et al. 2018, section 2.2), from the prenet's outputs to the decoder
    LSTM's; once differentiable.

    Args:
        decoder_inputs: prenet outputs of all frames, [T, B, P]; float32, float16 or bfloat16. Fastest with all widths
            multiples of 64.
        memory: encoder outputs, [B, T_in, D].
        processed_memory: memory layer's outputs, [B, T_in, A].
        memory_lengths: [B] integers; symbols beyond an item's length get no attention.
        weights: of both LSTMs and of the attention between them.
        p_attention_dropout, p_decoder_dropout: probability in [0, 1] of dropping a unit of the attention or the
            decoder LSTM's hidden state. The dropped state is both the output and the next step's state.
        seed: of the dropout masks, an integer or a 0-d int64 tensor on the device of `memory`, which must not
            change until the backward pass is done. One seed gives the same masks on every device. None: the kernels
            draw a seed from PyTorch's generator; the reference draws the masks from it, frame by frame, the
            attention LSTM's first.

    Returns:
        (decoder LSTM's hidden states and contexts [B, T, n + D], attention weights [B, T, T_in]). Under autocast both
        have autocast's dtype.

    Raises:
        FastglowError: wrong shapes, probabilities or seed.
    """
    _check(decoder_inputs, memory, processed_memory, memory_lengths, weights)
    check_probability("p_attention_dropout", p_attention_dropout, allow_one=True)
    check_probability("p_decoder_dropout", p_decoder_dropout, allow_one=True)
    check_seed(seed, memory.device)
    arguments = flatten_arguments(decoder_inputs, memory, processed_memory, weights)
    dtype = backend.autocast_dtype(memory)
    if dtype is not None:
        arguments = Arguments(*(x.to(dtype) for x in arguments))
    if not backend.picks_triton(OP, *arguments, memory_lengths, unsupported=_unsupported(arguments)):
        with backend.without_autocast(memory):
            return deferred_teacher_forced_loop(
                arguments.decoder_inputs,
                arguments.memory,
                arguments.processed_memory,
                memory_lengths,
                arguments.weights,
                p_attention_dropout=p_attention_dropout,
                p_decoder_dropout=p_decoder_dropout,
                seed=seed,
            )
    arguments = Arguments(*(x.contiguous() for x in arguments))
    weights = arguments.weights
    plan = Plan(
        T=len(decoder_inputs),
        B=len(memory),
        P=decoder_inputs.shape[2],
        T_in=memory.shape[1],
        D=memory.shape[2],
        A=processed_memory.shape[2],
        n_a=weights.attention_rnn.weight_hh.shape[1],
        n_d=weights.decoder_rnn.weight_hh.shape[1],
        taps=weights.attention.location_conv.shape[2],
        p_attention_dropout=p_attention_dropout,
        p_decoder_dropout=p_decoder_dropout,
    )
    lengths = memory_lengths.to(torch.int64).contiguous()
    return _differentiable(plan, lengths, _seed_tensor(seed, plan, memory.device), *arguments)


def _seed_tensor(seed: int | Tensor | None, plan: Plan, device: torch.device) -> Tensor | None:
    """0-d int64; None without dropout."""
    if not plan.p_attention_dropout and not plan.p_decoder_dropout:
        return None
    if seed is None:
        return random_seed(device)
    return seed if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64, device=device)


def _unsupported(arguments: Arguments) -> str | None:
    B, _, A = arguments.processed_memory.shape
    n_a, n_d = arguments.attention_weight_hh.shape[1], arguments.decoder_weight_hh.shape[1]
    return (
        mixed_dtypes(*arguments)
        or attention_too_wide(A, arguments.processed_memory.dtype, in_loop=True)
        or too_many_elements("partial sums", B * max(A, n_a + arguments.memory.shape[2] + n_d))
    )


def _check(
    decoder_inputs: Tensor, memory: Tensor, processed_memory: Tensor, memory_lengths: Tensor, weights: RecurrentWeights
) -> None:
    check_shape("memory", memory, ("B", "T_in", "D"))
    B, T_in, D = memory.shape
    check_shape("decoder_inputs", decoder_inputs, ("T", B, "P"), beside=("memory", memory))
    check_shape(
        "processed_memory", processed_memory, (B, T_in, len(weights.attention.query)), beside=("memory", memory)
    )
    check_shape("memory_lengths", memory_lengths, (B,), beside=("memory", memory))
    for name, (x, shape) in recurrent_shapes(weights, decoder_inputs.shape[2], D).items():
        check_shape(name, x, shape, beside=("memory", memory))
