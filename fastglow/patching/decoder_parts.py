"""What the decoders of NVIDIA's Tacotron 2, of DeepLearningExamples, torchaudio and SpeechBrain have in common."""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastglow.kernels import backend
from fastglow.kernels.decoder_weights import LSTMWeights, OutputWeights, RecurrentWeights

from .attention import family_difference, family_weights, masks_out
from .structure import linear_difference, unwrapped
from .weights import bias_of, weight_of

PARTS = {"prenet", "attention_rnn", "attention_layer", "decoder_rnn", "linear_projection", "gate_layer"}

P_PRENET_DROPOUT = 0.5
"""Of a prenet without an attribute `dropout`."""


class Settings(NamedTuple):
    """A decoder's settings, as they are at a call: callers change them."""

    n_mels: int
    p_attention_dropout: float
    p_decoder_dropout: float
    max_steps: int
    early_stopping: bool


def settings_of(decoder: Any) -> Settings:
    """
    Raises:
        AttributeError: the decoder has neither NVIDIA's nor torchaudio's names.
    """
    if hasattr(decoder, "n_mels"):
        return Settings(
            decoder.n_mels,
            decoder.attention_dropout,
            decoder.decoder_dropout,
            decoder.decoder_max_step,
            decoder.decoder_early_stopping,
        )
    return Settings(
        decoder.n_mel_channels,
        decoder.p_attention_dropout,
        decoder.p_decoder_dropout,
        decoder.max_decoder_steps,
        getattr(decoder, "early_stopping", True),
    )


def recurrent_weights(decoder: Any) -> RecurrentWeights:
    attention_rnn, decoder_rnn = (
        LSTMWeights(*(weight_of(cell, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
        for cell in (decoder.attention_rnn, decoder.decoder_rnn)
    )
    return RecurrentWeights(attention_rnn, family_weights(decoder.attention_layer)[0], decoder_rnn)


def output_weights(decoder: Any) -> OutputWeights:
    projection, gate = unwrapped(decoder.linear_projection), unwrapped(decoder.gate_layer)
    projection_bias, gate_bias = bias_of(projection), bias_of(gate)
    assert projection_bias is not None and gate_bias is not None  # `decoder_difference`
    return OutputWeights(
        tuple(prenet_weights(decoder.prenet)), weight_of(projection), projection_bias, weight_of(gate), gate_bias
    )


def prenet_weights(prenet: Any) -> list[Tensor]:
    return [weight_of(unwrapped(layer)) for layer in prenet.layers]


def p_prenet_dropout(prenet: nn.Module) -> float:
    """SpeechBrain's prenet has an attribute; the others have the number in their code, which the comparison checks."""
    value = getattr(prenet, "dropout", P_PRENET_DROPOUT)
    return float(value) if isinstance(value, (int, float)) else P_PRENET_DROPOUT


def claims_decoder(module: nn.Module) -> bool:
    """Whether it has the parts, and a forward(memory, mels, memory_lengths)."""
    return module._modules.keys() == PARTS and len(signature(module.forward).parameters) == 3


def decoder_difference(decoder: Any) -> str | None:
    try:
        n_out = settings_of(decoder).n_mels * decoder.n_frames_per_step
    except AttributeError as error:
        return f"it has other settings: {error}"
    for name in ("attention_rnn", "decoder_rnn"):
        cell = getattr(decoder, name)
        if not isinstance(cell, nn.LSTMCell):
            return f"{name} is a {type(cell).__name__}, must be an LSTMCell"
        if not cell.bias:
            return f"{name} has no bias"
    if not isinstance(getattr(decoder.prenet, "layers", None), nn.ModuleList) or not len(decoder.prenet.layers):
        return "prenet has no list of layers"
    attention = decoder.attention_layer
    if not {"query_layer", "memory_layer", "v", "location_layer"} <= attention._modules.keys():
        return f"attention_layer is a {type(attention).__name__} of another kind"
    for i, layer in enumerate(decoder.prenet.layers):
        difference = linear_difference(f"prenet.layers.{i}", unwrapped(layer), None, bias=False)
        if difference:
            return difference
    return (
        family_difference(attention)
        or linear_difference("linear_projection", unwrapped(decoder.linear_projection), n_out, bias=True)
        or linear_difference("gate_layer", unwrapped(decoder.gate_layer), 1, bias=True)
    )


def loop_fits(decoder: Any, memory: Tensor, memory_lengths: Tensor | None) -> bool:
    """Whether a loop of all frames can compute what the decoder does, frame by frame, with these inputs."""
    lengths_fit = memory_lengths is None or (
        memory_lengths.shape == memory.shape[:1]
        and memory_lengths.device == memory.device
        and memory_lengths.dtype in (torch.int32, torch.int64)
    )
    return memory.dim() == 3 and memory.numel() > 0 and lengths_fit and masks_out(decoder.attention_layer)


def state_dropout(decoder: nn.Module) -> tuple[float, float]:
    """Probabilities of the attention LSTM's and the decoder LSTM's hidden states, 0 in evaluation."""
    settings = settings_of(decoder)
    return (settings.p_attention_dropout, settings.p_decoder_dropout) if decoder.training else (0.0, 0.0)


def weights_dtype(memory: Tensor) -> torch.dtype:
    """Of the attention weights. Autocast's softmax is in float32 on a GPU, not on a CPU."""
    autocast = backend.autocast_dtype(memory)
    return memory.dtype if autocast is None else torch.float32 if memory.is_cuda else autocast
