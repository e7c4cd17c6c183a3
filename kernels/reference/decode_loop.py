"""Tacotron 2's decoder in inference (Shen et al. 2018; Decoder.infer in NVIDIA's tacotron2/model.py)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
        steps += running
        if early_stopping and not running.any():
            break
    return DecodeResult(torch.stack(frames, dim=1), steps, torch.stack(alignments, dim=1))
