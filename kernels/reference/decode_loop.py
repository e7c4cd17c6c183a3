"""Tacotron 2's decoder in inference (Shen et al. 2018; Decoder.infer in NVIDIA's tacotron2/model.py)."""

from collections.abc import Generator, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastglow.kernels.arguments import sizes_of_pieces
from fastglow.kernels.decoder_weights import OutputWeights, RecurrentWeights

from .location_attention import location_attention
from .lstm_cell import lstm_cell
from .prenet import prenet, prenet_noise

NOISE_BLOCK = 64
"""Steps whose prenet noise is drawn together: drawing it step by step would double the cost of a step."""


class DecodeResult(NamedTuple):
    """
    Attributes:
        frames: [B, steps, n_frame]; zeros after the step on which an item's gate fired.
        steps: [B] int64, how many steps came before that one; max_steps where the gate did not fire.
        alignments: attention weights, [B, steps, T]; zeros after the same step.
    """

    frames: Tensor
    steps: Tensor
    alignments: Tensor


class DecodePiece(NamedTuple):
    """Consecutive steps of a `DecodeResult`.

    Attributes:
        frames: [B, n, n_frame]; zeros after the step on which an item's gate fired.
        steps: [B] int64, how many steps came before that one; those decoded so far where the gate did not fire.
        alignments: attention weights, [B, n, T]; zeros after the same step.
        running: whether an item takes further steps.
    """

    frames: Tensor
    steps: Tensor
    alignments: Tensor
    running: bool


def decode_loop(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    *,
    p_prenet_dropout: float,
    gate_threshold: float,
    max_steps: int,
    early_stopping: bool = True,
) -> DecodeResult:
    """Steps until every item's gate has fired. Arguments as `kernels.decode_loop`."""
    (piece,) = decode_pieces(
        memory,
        processed_memory,
        lengths,
        seeds,
        recurrent,
        output,
        p_prenet_dropout=p_prenet_dropout,
        gate_threshold=gate_threshold,
        max_steps=max_steps,
        piece_steps=max_steps,
        early_stopping=early_stopping,
    )
    return DecodeResult(piece.frames, piece.steps, piece.alignments)


def decode_pieces(
    memory: Tensor,
    processed_memory: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    recurrent: RecurrentWeights,
    output: OutputWeights,
    *,
    p_prenet_dropout: float,
    gate_threshold: float,
    max_steps: int,
    piece_steps: int | Iterable[int],
    early_stopping: bool = True,
) -> Generator[DecodePiece, None, None]:
    """The same steps in pieces. Arguments as `kernels.decode_pieces`."""
    B, T, D = memory.shape
    n_attention, n_decoder = recurrent.attention_rnn.weight_hh.shape[1], recurrent.decoder_rnn.weight_hh.shape[1]
    # An item of length 0 attends to position 0, as if its length were 1.
    mask = torch.arange(T, device=memory.device) >= lengths.view(-1, 1).clamp(min=1)
    attention_h, attention_c = (memory.new_zeros(B, n_attention) for _ in range(2))
    decoder_h, decoder_c = (memory.new_zeros(B, n_decoder) for _ in range(2))
    weights, cumulative = (memory.new_zeros(B, T) for _ in range(2))
    context = memory.new_zeros(B, D)
    frame = memory.new_zeros(B, output.projection.shape[0])
    running = lengths > 0
    steps = torch.zeros(B, dtype=torch.int64, device=memory.device)
    frames, alignments = [], []
    sizes = sizes_of_pieces("piece_steps", piece_steps)
    stop = min(next(sizes), max_steps)
    for step in range(max_steps):
        if step % NOISE_BLOCK == 0:
            noise = prenet_noise(seeds, [len(weight) for weight in output.prenet], step, NOISE_BLOCK)
        x = prenet(frame, output.prenet, p_prenet_dropout, [layer[:, step % NOISE_BLOCK] for layer in noise])
        x = torch.cat((x, context), dim=1)
        attention_h, attention_c = lstm_cell(x, attention_h, attention_c, *recurrent.attention_rnn)
        context, weights = location_attention(
            attention_h,
            memory,
            processed_memory,
            torch.stack((weights, cumulative), dim=1),
            *recurrent.attention,
            mask,
        )
        cumulative = cumulative + weights
        x = torch.cat((attention_h, context), dim=1)
        decoder_h, decoder_c = lstm_cell(x, decoder_h, decoder_c, *recurrent.decoder_rnn)
        x = torch.cat((decoder_h, context), dim=1)
        frame = F.linear(x, output.projection, output.projection_bias)
        gate = F.linear(x, output.gate, output.gate_bias).squeeze(1)
        frames.append(frame.masked_fill(~running.unsqueeze(1), 0.0))
        alignments.append(weights.masked_fill(~running.unsqueeze(1), 0.0))
        running = running & (torch.sigmoid(gate.float()) <= gate_threshold)
        steps = steps + running
        ended = early_stopping and not running.any()
        if ended or step + 1 == stop:
            goes_on = stop < max_steps and bool(running.any())
            yield DecodePiece(torch.stack(frames, dim=1), steps, torch.stack(alignments, dim=1), goes_on)
            if ended or stop == max_steps:
                return
            frames, alignments = [], []
            stop = min(stop + next(sizes), max_steps)
