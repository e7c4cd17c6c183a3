"""A tiny Tacotron 2 and its inputs."""

from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from fastglow import Tacotron2
from fastglow.kernels.backend import use_backend

TINY = {
    "n_mel_channels": 5,
    "n_symbols": 11,
    "symbols_embedding_dim": 6,
    "encoder_kernel_size": 3,
    "encoder_n_convolutions": 2,
    "encoder_embedding_dim": 6,
    "attention_rnn_dim": 9,
    "attention_dim": 7,
    "attention_location_n_filters": 3,
    "attention_location_kernel_size": 5,
    "decoder_rnn_dim": 11,
    "prenet_dim": 13,
    "max_decoder_steps": 16,
    "postnet_embedding_dim": 7,
    "postnet_kernel_size": 3,
    "postnet_n_convolutions": 3,
}


NO_DROPOUT = dict.fromkeys(
    ("p_attention_dropout", "p_decoder_dropout", "p_prenet_dropout", "p_encoder_dropout", "p_postnet_dropout"), 0.0
)


TEXT = torch.tensor([[3, 1, 4, 1, 0, 0, 0], [5, 9, 2, 6, 5, 3, 5], [8, 9, 0, 0, 0, 0, 0], [2, 7, 1, 8, 2, 8, 0]])


LENGTHS = torch.tensor([4, 7, 2, 6])


SEEDS = [5, 2, 9, 5]


def build(**config):
    """In eval mode, with weights that make the decoder's steps differ and nontrivial batch statistics."""
    model = Tacotron2(**{**TINY, **config}).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.bias.uniform_(-0.5, 0.5)
    return model


def build_stopping(seed, **config):
    """With these seeds, its gate stops every item before the limit, and not all on one step."""
    model, logits = build(**config), []
    gate = model.decoder.gate_layer.linear_layer
    nn.init.zeros_(gate.bias)
    linear = F.linear

    def recording(x, weight, bias=None):
        output = linear(x, weight, bias)
        if weight is gate.weight:
            logits.append(output)
        return output

    model.decoder.early_stopping = False
    with mock.patch.object(F, "linear", recording), use_backend("reference"):
        model.infer(TEXT, LENGTHS, seed=seed)
    model.decoder.early_stopping = True
    choices = []  # (how many different lengths, sign of the gate's weights, level of the logits that stops)
    for sign in (1, -1):
        signed = sign * torch.cat(logits, dim=1)[:, :-1].double()  # [B, steps]
        levels = signed.flatten().sort().values
        levels = ((levels[1:] + levels[:-1]) / 2)[levels.diff() > 1e-3]  # with a margin for rounding
        above = signed > levels.view(-1, 1, 1)
        stops = above.int().cumsum(dim=2).eq(0).sum(dim=2)  # steps before the first logit above, [levels, B]
        choices += [
            (len(set(row)), sign, level)
            for row, level in zip(stops.tolist(), levels.tolist(), strict=True)
            if max(row) < signed.shape[1]
        ]
    n_lengths, sign, level = max(choices)
    assert n_lengths > 1
    with torch.no_grad():
        gate.weight *= sign
        gate.bias -= level
    return model


def training_batch(batch_size=3, dtype=torch.float32):
    """(inputs of forward, targets of the loss), unsorted, 12 frames."""
    lengths = torch.tensor([9, 12, 5] if batch_size == 3 else [12])
    n_frames = 12
    mel = torch.randn(batch_size, 5, n_frames, dtype=dtype)
    gate = (torch.arange(n_frames) >= lengths.unsqueeze(1) - 1).to(dtype)
    text, input_lengths = TEXT[:batch_size], LENGTHS[:batch_size]
    text = text[:, : int(input_lengths.max())]
    return (text, input_lengths, mel, text.shape[1], lengths), (mel, gate)
