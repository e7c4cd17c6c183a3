"""Tacotron 2's decoder in plain PyTorch, frame by frame, in any dtype: the baseline for torch.compile.

It shares only the random numbers with fastglow's references.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import kernels
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights

NOISE_BLOCK = 64  # frames
PARTS = ("weight", "bias")


class State(NamedTuple):
    """Carried from frame to frame, [B, ...] each."""

    attention_h: Tensor
    attention_c: Tensor
    decoder_h: Tensor
    decoder_c: Tensor
    weights: Tensor
    cumulative: Tensor
    context: Tensor


class Attended(NamedTuple):
    """What the decoder attends to.

    Attributes:
        memory: [B, T, D].
        processed_memory: [B, T, A].
        padding: [B, T] bool, True past an item's length.
    """

    memory: Tensor
    processed_memory: Tensor
    padding: Tensor


Recur = Callable[..., State]


def weights_of(decoder: nn.Module) -> tuple[RecurrentWeights, OutputWeights, Tensor]:
    """(recurrent, output, memory layer) weights of a decoder with the published keys."""
    named = dict(decoder.named_parameters())

    def lstm(name: str) -> LSTMWeights:
        return LSTMWeights(*(named[f"{name}.{part}"] for part in LSTMWeights._fields))

    attention = AttentionWeights(
        named["attention_layer.query_layer.linear_layer.weight"],
        named["attention_layer.location_layer.location_conv.conv.weight"],
        named["attention_layer.location_layer.location_dense.linear_layer.weight"],
        named["attention_layer.v.linear_layer.weight"],
    )
    recurrent = RecurrentWeights(lstm("attention_rnn"), attention, lstm("decoder_rnn"))
    prenet = tuple(tensor for name, tensor in named.items() if name.startswith("prenet."))
    layers = (named[f"{layer}.linear_layer.{part}"] for layer in ("linear_projection", "gate_layer") for part in PARTS)
    return recurrent, OutputWeights(prenet, *layers), named["attention_layer.memory_layer.linear_layer.weight"]


def cast(weights: Any, dtype: torch.dtype) -> Any:
    """Nested tuples with every tensor cast to a dtype."""
    if isinstance(weights, Tensor):
        return weights.to(dtype)
    parts = [cast(part, dtype) for part in weights]
    return type(weights)(*parts) if hasattr(weights, "_fields") else tuple(parts)


def tensors_of(weights: Any) -> list[Tensor]:
    """The tensors of nested tuples."""
    return [weights] if isinstance(weights, Tensor) else [x for part in weights for x in tensors_of(part)]


def attend(memory: Tensor, memory_weight: Tensor, lengths: Tensor) -> Attended:
    padding = torch.arange(memory.shape[1], device=memory.device) >= lengths.unsqueeze(1)
    return Attended(memory, F.linear(memory, memory_weight), padding)


def first_state(memory: Tensor, weights: RecurrentWeights) -> State:
    B, T, D = memory.shape
    n_attention, n_decoder = (cell.weight_hh.shape[1] for cell in (weights.attention_rnn, weights.decoder_rnn))
    return State(*(memory.new_zeros(B, n) for n in (n_attention, n_attention, n_decoder, n_decoder, T, T, D)))


def recur(
    x: Tensor,
    state: State,
    attended: Attended,
    weights: RecurrentWeights,
    p_attention_dropout: float = 0.0,
    p_decoder_dropout: float = 0.0,
) -> State:
    """One frame, from the prenet's output x [B, P] to the decoder LSTM."""
    memory, processed_memory, padding = attended
    h, c = torch.lstm_cell(
        torch.cat((x, state.context), dim=1), (state.attention_h, state.attention_c), *weights.attention_rnn
    )
    attention_h, attention_c = F.dropout(h, p_attention_dropout), c
    query, conv, dense, v = weights.attention
    history = torch.stack((state.weights, state.cumulative), dim=1)
    location = F.linear(F.conv1d(history, conv, padding=conv.shape[2] // 2).transpose(1, 2), dense)
    energies = F.linear(torch.tanh(F.linear(attention_h, query).unsqueeze(1) + location + processed_memory), v)
    alignment = torch.softmax(energies.squeeze(2).masked_fill(padding, -float("inf")), dim=1).to(memory.dtype)
    context = torch.bmm(alignment.unsqueeze(1), memory).squeeze(1)
    h, c = torch.lstm_cell(
        torch.cat((attention_h, context), dim=1), (state.decoder_h, state.decoder_c), *weights.decoder_rnn
    )
    decoder_h = F.dropout(h, p_decoder_dropout)
    return State(attention_h, attention_c, decoder_h, c, alignment, state.cumulative + alignment, context)


def prenet(x: Tensor, weights: Sequence[Tensor], p_dropout: float, noise: Sequence[Tensor] | None = None) -> Tensor:
    for i, weight in enumerate(weights):
        x = F.relu(F.linear(x, weight))
        x = F.dropout(x, p_dropout) if noise is None else x * (noise[i] >= p_dropout) / (1 - p_dropout)
    return x


def free_step(
    frame: Tensor,
    noise: Sequence[Tensor] | None,
    state: State,
    attended: Attended,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    p_prenet_dropout: float,
) -> tuple[Tensor, Tensor, State]:
    """(next frame [B, n_frame], gate [B, 1], state)."""
    state = recur(prenet(frame, output.prenet, p_prenet_dropout, noise), state, attended, recurrent)
    x = torch.cat((state.decoder_h, state.context), dim=1)
    return (
        F.linear(x, output.projection, output.projection_bias),
        torch.sigmoid(F.linear(x, output.gate, output.gate_bias)),
        state,
    )


@torch.no_grad()
def run_free(
    attended: Attended,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    p_prenet_dropout: float,
    frames: int,
    seeds: Tensor | None = None,
    step: Callable[..., tuple[Tensor, Tensor, State]] = free_step,
) -> tuple[Tensor, Tensor]:
    """(frames [B, frames, n_frame], alignments [B, frames, T]); ignores the gate.

    Args:
        seeds: [B], for the prenet's dropout; None: PyTorch's generator.
        step: `free_step`, or compiled.
    """
    frame = attended.memory.new_zeros(len(attended.memory), output.projection.shape[0])
    state = first_state(attended.memory, recurrent)
    made, alignments = [], []
    block: list[Tensor] = []
    noise: list[Tensor] | None = None
    for i in range(frames):
        if seeds is not None:
            if i % NOISE_BLOCK == 0:
                widths = [len(weight) for weight in output.prenet]
                block = [kernels.uniform_noise(seeds, j, i, NOISE_BLOCK, width) for j, width in enumerate(widths)]
            noise = [layer[:, i % NOISE_BLOCK] for layer in block]
        frame, _, state = step(frame, noise, state, attended, recurrent, output, p_prenet_dropout)
        made.append(frame)
        alignments.append(state.weights)
    return torch.stack(made, dim=1), torch.stack(alignments, dim=1)


def run_forced(
    memory: Tensor,
    mels: Tensor,
    lengths: Tensor,
    weights: tuple[RecurrentWeights, OutputWeights, Tensor],
    p_dropout: tuple[float, float, float],
    step: Recur = recur,
) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher forcing, one frame per step; returns what `Tacotron2.decoder` returns.

    Args:
        memory: [B, T, D]; mels: [B, n_mel_channels, frames]; dtype of the weights.
        weights: see `weights_of`.
        p_dropout: for the prenet, the attention LSTM, the decoder LSTM.
        step: `recur`, or compiled.
    """
    recurrent, output, memory_weight = weights
    inputs = F.pad(mels.permute(2, 0, 1)[:-1], (0, 0, 0, 0, 1, 0))  # [frames, B, n_mel_channels], the first of zeros
    attended = attend(memory, memory_weight, lengths)
    state = first_state(memory, recurrent)
    states = []
    for x in prenet(inputs, output.prenet, p_dropout[0]):
        state = step(x, state, attended, recurrent, *p_dropout[1:])
        states.append(state)
    x = torch.stack([torch.cat((state.decoder_h, state.context), dim=1) for state in states], dim=1)
    mel = F.linear(x, output.projection, output.projection_bias).transpose(1, 2)
    gate = F.linear(x, output.gate, output.gate_bias).squeeze(2)
    return mel, gate, torch.stack([state.weights for state in states], dim=1)
