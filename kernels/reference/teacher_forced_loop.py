"""Tacotron 2's decoder under teacher forcing (Shen et al. 2018; Decoder.forward in NVIDIA's tacotron2/model.py).

A plain loop. CPUs run `kernels.teacher_forced_loop.deferred`. Maths: kernels/README.md.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder_weights import AttentionWeights, LSTMWeights, RecurrentWeights
from .location_attention import location_attention
from .lstm_cell import lstm_cell
from .philox import dropped_words, philox4x32

ATTENTION_STREAM, DECODER_STREAM = 0x6174746E, 0x6465636F
"""Fourth words of the dropout masks' Philox counters."""


class Arguments(NamedTuple):
    """The differentiable arguments, flat, as an autograd function takes them; or their gradients; or, as booleans,
    which gradients are wanted."""

    decoder_inputs: Any = None  # [T, B, P]
    memory: Any = None  # [B, T_in, D]
    processed_memory: Any = None  # [B, T_in, A]
    attention_weight_ih: Any = None  # [4N, P + D]
    attention_weight_hh: Any = None  # [4N, N]
    attention_bias_ih: Any = None  # [4N]
    attention_bias_hh: Any = None  # [4N]
    query: Any = None  # [A, N]
    location_conv: Any = None  # [F, 2, k]
    location_dense: Any = None  # [A, F]
    v: Any = None  # [1, A]
    decoder_weight_ih: Any = None  # [4n, N + D]
    decoder_weight_hh: Any = None  # [4n, n]
    decoder_bias_ih: Any = None  # [4n]
    decoder_bias_hh: Any = None  # [4n]

    @property
    def weights(self) -> RecurrentWeights:
        tensors = self[3:]
        return RecurrentWeights(LSTMWeights(*tensors[:4]), AttentionWeights(*tensors[4:8]), LSTMWeights(*tensors[8:]))


def flatten_arguments(
    decoder_inputs: Tensor, memory: Tensor, processed_memory: Tensor, weights: RecurrentWeights
) -> Arguments:
    return Arguments(decoder_inputs, memory, processed_memory, *(x for part in weights for x in part))


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
    """The decoder's steps as a plain loop. Arguments as `kernels.teacher_forced_loop`; without a seed the masks are
    drawn from PyTorch's generator, step by step, the attention LSTM's first."""
    B, T_in, D = memory.shape
    n_attention, n_decoder = (cell.weight_hh.shape[1] for cell in (weights.attention_rnn, weights.decoder_rnn))
    mask = padding_mask(memory_lengths, T_in)
    h_a, c_a = (memory.new_zeros(B, n_attention) for _ in range(2))
    h_d, c_d = (memory.new_zeros(B, n_decoder) for _ in range(2))
    context, alignment, cumulative = memory.new_zeros(B, D), memory.new_zeros(B, T_in), memory.new_zeros(B, T_in)
    outputs, alignments = [memory.new_zeros(B, 0, n_decoder + D)], [memory.new_zeros(B, 0, T_in)]
    for frame, x in enumerate(decoder_inputs):
        h_a, c_a = lstm_cell(torch.cat((x, context), dim=1), h_a, c_a, *weights.attention_rnn)
        h_a = drop(h_a, p_attention_dropout, seed, ATTENTION_STREAM, frame)
        context, alignment = location_attention(
            h_a,
            memory,
            processed_memory,
            torch.stack((alignment, cumulative), dim=1),
            *weights.attention,
            mask,
        )
        cumulative = cumulative + alignment
        h_d, c_d = lstm_cell(torch.cat((h_a, context), dim=1), h_d, c_d, *weights.decoder_rnn)
        h_d = drop(h_d, p_decoder_dropout, seed, DECODER_STREAM, frame)
        outputs.append(torch.cat((h_d, context), dim=1).unsqueeze(1))
        alignments.append(alignment.unsqueeze(1))
    return torch.cat(outputs, dim=1), torch.cat(alignments, dim=1)


def padding_mask(lengths: Tensor, T_in: int) -> Tensor:
    """[B, T_in] bool, True beyond an item's length."""
    return torch.arange(T_in, device=lengths.device) >= lengths.view(-1, 1)


def kept_at_frame(
    shape: tuple[int, ...], p_dropout: float, seed: int | Tensor, stream: int, frame: int, device: torch.device
) -> Tensor:
    """Which hidden units of a frame stay, bool of `shape`: those whose 24-bit uniform noise is at least `p_dropout`.

    Unit i has word i mod 4 of Philox at counter (i div 4, frame, item, stream).
    """
    B, n = shape
    seed = torch.as_tensor(seed, device=device)
    block, item = torch.arange((n + 3) // 4, device=device), torch.arange(B, device=device).view(-1, 1)
    counter = (block, torch.full_like(block, frame), item, torch.full_like(block, stream))
    words = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return (torch.stack(words, dim=-1).flatten(1)[:, :n] >> 8) >= dropped_words(p_dropout)


def dropout_scale(p_dropout: float) -> float:
    """Factor of the kept units; at p = 1 there are none."""
    return 1.0 / (1.0 - p_dropout) if p_dropout < 1 else 0.0


def drop(h: Tensor, p_dropout: float, seed: int | Tensor | None, stream: int, frame: int) -> Tensor:
    """h with units dropped at random, the others scaled; without a seed by PyTorch's generator."""
    if seed is None or p_dropout == 0:
        return F.dropout(h, p_dropout)
    return h * kept_at_frame(h.shape, p_dropout, seed, stream, frame, h.device) * dropout_scale(p_dropout)
