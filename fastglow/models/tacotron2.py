"""Tacotron 2 (Shen et al. 2018) as NVIDIA trained and published it (DeepLearningExamples, tacotron2/model.py)."""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow.errors import FastglowError
from fastglow.modules.convolution import length_mask
from fastglow.modules.parameter_cache import Refreshable

from .infer_arguments import check_text, step_limits
from .seeds import item_seeds
from .tacotron2_config import Tacotron2Config
from .tacotron2_decoder import Decoder, Prenet
from .tacotron2_encoder import Encoder, conv_block

# Re-exported because pickles of whole models refer to these classes by this module.
__all__ = ["Decoder", "DecoderStepLimitWarning", "Encoder", "Postnet", "Prenet", "Tacotron2", "Tacotron2Config"]


class DecoderStepLimitWarning(UserWarning):
    """The stop gate of an item did not fire within max_decoder_steps."""


class Postnet(nn.Module):
    """Convolutions that predict a residual of the decoder's mel spectrogram."""

    def __init__(self, config: Tacotron2Config):
        super().__init__()
        self.p_dropout = config.p_postnet_dropout
        channels = [
            config.n_mel_channels,
            *[config.postnet_embedding_dim] * (config.postnet_n_convolutions - 1),
            config.n_mel_channels,
        ]
        last = config.postnet_n_convolutions - 1
        self.convolutions = nn.ModuleList(
            conv_block(n_in, n_out, config.postnet_kernel_size, "linear" if i == last else "tanh")
            for i, (n_in, n_out) in enumerate(pairwise(channels))
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, n_mel_channels, T] -> the residual, same shape; `mask` [B, 1, T] as in `Encoder.forward`."""
        for i, conv in enumerate(self.convolutions):
            x = conv(x)
            if i < len(self.convolutions) - 1:
                x = torch.tanh(x)
            x = F.dropout(x, self.p_dropout, self.training)
            if mask is not None:
                x = x * mask
        return x


class Tacotron2(Refreshable):
    """Text to mel spectrogram. Keywords: `Tacotron2Config`. state_dict keys: NVIDIA's.

    Call `refresh()` after writing weights through `parameter.data` or with a replayed CUDA graph.
    """

    def __init__(self, **kw: Any):
        super().__init__()
        config = Tacotron2Config(**kw)
        self.config = config
        self.embedding = nn.Embedding(config.n_symbols, config.symbols_embedding_dim)
        bound = sqrt(6.0 / (config.n_symbols + config.symbols_embedding_dim))
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.postnet = Postnet(config)

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor, int, Tensor]) -> list[Tensor]:
        """Teacher-forced pass with the reference's semantics: the convolutions see the padding.

        Args:
            inputs: (text [B, T_in] int64, input_lengths [B], mels [B, n_mel_channels, T], max_len,
                output_lengths [B]); max_len is T_in, as in the reference's call. Items may be in any order; T must be
                a multiple of n_frames_per_step.

        Returns:
            [mel, mel_postnet, gate, alignments]: [B, n_mel_channels, T] twice, gate logits
            [B, T / n_frames_per_step], [B, T / n_frames_per_step, T_in]. With mask_padding the frames
            past output_lengths are 0 and their gate is 1000.

        Raises:
            FastglowError: no text, an empty one, no frames, or a T that is not a multiple of n_frames_per_step.
        """
        text, input_lengths, mels, _, output_lengths = inputs
        if mels.shape[2] == 0:
            raise FastglowError(f"mels have shape {list(mels.shape)}, must have at least 1 frame")
        memory = self.encoder(self.embedding(text).transpose(1, 2), input_lengths)
        mel, gate, alignments = self.decoder(memory, mels, input_lengths)
        mel_postnet = mel + self.postnet(mel)
        if self.config.mask_padding and output_lengths is not None:
            padding = ~length_mask(output_lengths, mel.shape[2])
            mel = mel.masked_fill(padding.unsqueeze(1), 0.0)
            mel_postnet = mel_postnet.masked_fill(padding.unsqueeze(1), 0.0)
            gate = gate.masked_fill(padding[:, :: self.config.n_frames_per_step], 1e3)
        return [mel, mel_postnet, gate, alignments]

    @torch.no_grad()
    def infer(
        self,
        text: Tensor,
        input_lengths: Tensor,
        *,
        seed: int | Sequence[int] | None = None,
        max_steps: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Free-running synthesis. Every item is computed as if it were alone in the batch.

        In float64 it gets the same result as alone. In lower precisions a batch's larger matrix products may round
        differently, and the decoder feeds its rounding back to itself: the first steps agree to that rounding, later
        ones drift apart, and the gate may fire a step earlier or later.

        Call `eval()` first, as for any module with batch normalisation.

        Args:
            text: symbol ids, [B, T_in] int64, padded with anything.
            input_lengths: [B], in any order.
            seed: of the prenet's dropout: one for all items, or one per item. An item's result depends only on its own
                seed. None: drawn from PyTorch's generator.
            max_steps: step limit of each item; default and maximum: max_decoder_steps.

        Returns:
            (mel_postnet [B, n_mel_channels, T], mel_lengths [B] int32, alignments
            [B, T / n_frames_per_step, T_in]). mel_lengths excludes the step on which the gate fires; the mel includes
            it, followed by zeros.

        Raises:
            FastglowError: shapes, lengths, symbol ids, seeds or limits that do not fit.

        Warns:
            DecoderStepLimitWarning: an item's gate did not fire within max_decoder_steps or its max_steps.
        """
        check_text(text, input_lengths, self.config.n_symbols)
        batch_size, max_input_length = text.shape
        limits = step_limits(max_steps, batch_size, self.decoder.max_decoder_steps).to(text.device)
        text_mask = length_mask(input_lengths.to(text.device), max_input_length)
        text = text.masked_fill(~text_mask, 0)
        memory = self.encoder(
            self.embedding(text).transpose(1, 2),
            input_lengths,
            text_mask.unsqueeze(1).to(self.embedding.weight.dtype),
        )
        mel, steps, alignments = self.decoder.infer(
            memory,
            input_lengths.to(text.device),
            item_seeds(seed, batch_size, text.device),
            # On a GPU steps are cheap, and a recorded graph has a fixed limit.
            self.decoder.max_decoder_steps if text.is_cuda else int(limits.max()),
        )
        r = self.config.n_frames_per_step
        # As for an item alone: up to the step on which the gate fires, or its own limit.
        frame_mask = length_mask(torch.minimum(steps + 1, limits) * r, mel.shape[2]).unsqueeze(1).to(mel.dtype)
        mel = mel * frame_mask
        mel = mel + self.postnet(mel, frame_mask)
        alignments = alignments * frame_mask[:, 0, ::r].unsqueeze(2)
        steps = torch.minimum(steps, limits)
        endless = (steps == limits).nonzero().flatten().tolist()
        if endless and self.decoder.early_stopping:
            warnings.warn(
                f"the stop gate of item(s) {endless} did not fire within "
                f"max_decoder_steps={int(limits.max())}: end the text with punctuation, or split it",
                DecoderStepLimitWarning,
                stacklevel=3,  # past torch.no_grad's wrapper
            )
        return mel, (steps * r).int(), alignments
