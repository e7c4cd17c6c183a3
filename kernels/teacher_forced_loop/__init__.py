"""Tacotron 2's decoder under teacher forcing: all frames in one differentiable operator.

Maths, layout and cost: kernels/README.md. `operator` registers it. `frame` is what the kernels share, `forward`,
`attention`, `backward` and `attention_backward` are the kernels, `gradients` what follows the backward frames, `replay`
runs frames by launches or CUDA graphs. `deferred` is the form for CPUs, in PyTorch.
"""

import torch
from torch import Tensor

from .. import backend
from ..arguments import check_probability, check_seed, check_shape, mixed_dtypes, too_many_elements
from ..decoder_weights import RecurrentWeights, recurrent_shapes
from ..location_attention import attention_too_wide
from ..reference.philox import random_seed
from ..reference.teacher_forced_loop import Arguments, flatten_arguments
from .frame import OP
from .operator import deferred_loop_operator, loop_operator


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
        run = deferred_loop_operator
        seed = None if seed is None else _as_tensor(seed, memory.device)
    else:
        run = loop_operator
        seed = random_seed(memory.device) if seed is None else _as_tensor(seed, memory.device)
    if not p_attention_dropout and not p_decoder_dropout:
        seed = None
    hidden_contexts, alignments, *_ = run(memory_lengths, seed, p_attention_dropout, p_decoder_dropout, *arguments)
    return hidden_contexts, alignments


def _as_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
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
