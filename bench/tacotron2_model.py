"""Tacotron 2 as the benchmarks build, train and count it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastglow import Tacotron2, Tacotron2Loss

from . import plain_tacotron2
from .environment import device
from .training import Batch, Trainee
from .workload import PEER, Implementation

SMALL = {
    "n_mel_channels": 8,
    "symbols_embedding_dim": 32,
    "encoder_embedding_dim": 32,
    "attention_rnn_dim": 48,
    "decoder_rnn_dim": 48,
    "attention_dim": 16,
    "prenet_dim": 16,
    "postnet_embedding_dim": 32,
}

DROPOUTS = ("encoder", "postnet", "prenet", "attention", "decoder")


@lru_cache
def new_model(small: bool) -> Tacotron2:
    torch.manual_seed(0)
    with torch.device(device()):
        return Tacotron2(**SMALL if small else {})


def new_batch(model: Tacotron2, text_lengths: Tensor, mel_lengths: Tensor) -> Batch:
    """As from the data loader: padded, the longest text first.

    Args:
        text_lengths, mel_lengths: symbols and frames of each item, [B] each.
    """
    config = model.config
    text_lengths, mel_lengths = text_lengths.to(device()), mel_lengths.to(device())
    symbols = torch.arange(int(text_lengths[0]), device=device())
    frames = torch.arange(int(mel_lengths.max()), device=device())
    text = torch.randint(1, config.n_symbols, (len(text_lengths), len(symbols)), device=device())
    mels = torch.randn(len(mel_lengths), config.n_mel_channels, len(frames), device=device())
    gate = (frames >= mel_lengths.unsqueeze(1) - 1).float()
    mels = mels.masked_fill((frames >= mel_lengths.unsqueeze(1)).unsqueeze(1), 0.0)
    text = text.masked_fill(symbols >= text_lengths.unsqueeze(1), 0)
    return Batch((text, text_lengths, mels, len(symbols), mel_lengths), (mels, gate))


def trainee(implementation: Implementation, model: Tacotron2, dropout: bool) -> Trainee:
    """`model` in training mode; without dropout, in a copy of it."""
    twin: Any = model.train() if dropout else without_dropout(model)
    if implementation.name != PEER:
        return Trainee(twin, dict(twin.named_parameters()), Tacotron2Loss())
    twin = implementation.nvidia.tacotron2(twin)

    def network(inputs: Any) -> list[Tensor]:
        with no_dropout():  # NVIDIA's has constants for the prenet's, the encoder's and the postnet's
            return twin(inputs)

    criterion = implementation.nvidia.tacotron2_loss.Tacotron2Loss()
    return Trainee(twin if dropout else network, dict(twin.named_parameters()), criterion)


def plain_trainee(model: Tacotron2) -> Trainee:
    """With the decoder in plain PyTorch, in the dtype of the model, without dropout."""
    model = without_dropout(model)
    dtype = model.embedding.weight.dtype

    def network(inputs: Any) -> list[Tensor]:
        text, text_lengths, mels, *_ = inputs
        memory = model.encoder(model.embedding(text).transpose(1, 2), text_lengths)
        weights = plain_tacotron2.weights_of(model.decoder)
        mel, gate, alignments = plain_tacotron2.run_forced(
            memory, mels.to(dtype), text_lengths, weights, (0.0, 0.0, 0.0)
        )
        return [mel, mel + model.postnet(mel), gate, alignments]

    def criterion(output: list[Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
        mels, gate = targets
        return Tacotron2Loss()(output, (mels.to(dtype), gate.to(dtype)))

    return Trainee(network, dict(model.named_parameters()), criterion)


def without_dropout(model: Tacotron2) -> Tacotron2:
    """A copy in training mode."""
    parameter = next(model.parameters())
    with torch.device("meta"):
        copy = Tacotron2(**asdict(model.config) | {f"p_{name}_dropout": 0.0 for name in DROPOUTS})
    copy = copy.to_empty(device=parameter.device).to(parameter.dtype)
    copy.load_state_dict(model.state_dict())
    return copy.train()


@contextmanager
def no_dropout() -> Iterator[None]:
    """Inside, PyTorch's function for dropout drops nothing."""
    with mock.patch.object(torch.nn.functional, "dropout", lambda x, *_, **__: x):
        yield


def decoder_flops(model: Tacotron2, batch: int, text: int, frames: int) -> int:
    """Of a teacher-forced forward pass over padded items."""
    recurrent, output, memory_weight = plain_tacotron2.weights_of(model.decoder)
    A, _, taps = len(recurrent.attention.query), *recurrent.attention.location_conv.shape[1:]
    D = memory_weight.shape[1]
    products = decoder_weights(model) + text * ((2 * taps + 1) * A + D)
    return 2 * batch * (frames * products + text * D * A)


def decoder_weights(model: Tacotron2) -> int:
    """The numbers that each frame reads."""
    recurrent, output, _ = plain_tacotron2.weights_of(model.decoder)
    return sum(tensor.numel() for tensor in plain_tacotron2.tensors_of((recurrent, output)))


def flops(model: Tacotron2, batch: int, text: int, frames: int) -> int:
    """Of a forward pass in training."""
    positions = ((model.encoder, text), (model.postnet, frames))
    around = sum(2 * batch * n * p.numel() for part, n in positions for p in part.parameters() if p.dim() > 1)
    return around + decoder_flops(model, batch, text, frames)
