"""Tacotron 2 (Shen et al. 2018) as NVIDIA trained and published it (DeepLearningExamples, tacotron2/model.py)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import isnan, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights
from fastglow.modules import ConvNorm, LinearNorm, LocationAttention
from fastglow.modules.convolution import length_mask
from fastglow.modules.parameter_cache import ParameterCache, Refreshable

from .infer_arguments import check_text, step_limits
from .seeds import item_seeds


class DecoderStepLimitWarning(UserWarning):
    """The stop gate of an item never fired within max_decoder_steps."""


@dataclass
class Tacotron2Config:
    """Constructor keywords of `Tacotron2`; names and defaults are those of the reference's arg_parser.py.

    The last three are fastglow's: dropout probabilities that the reference fixes at 0.5.
    """

    mask_padding: bool = False
    n_mel_channels: int = 80
    n_symbols: int = 148
    symbols_embedding_dim: int = 512
    encoder_kernel_size: int = 5
    encoder_n_convolutions: int = 3
    encoder_embedding_dim: int = 512
    attention_rnn_dim: int = 1024
    attention_dim: int = 128
    attention_location_n_filters: int = 32
    attention_location_kernel_size: int = 31
    n_frames_per_step: int = 1
    decoder_rnn_dim: int = 1024
    prenet_dim: int = 256
    max_decoder_steps: int = 2000
    gate_threshold: float = 0.5
    p_attention_dropout: float = 0.1
    p_decoder_dropout: float = 0.1
    postnet_embedding_dim: int = 512
    postnet_kernel_size: int = 5
    postnet_n_convolutions: int = 5
    decoder_no_early_stopping: bool = False
    p_prenet_dropout: float = 0.5
    p_encoder_dropout: float = 0.5
    p_postnet_dropout: float = 0.5

    def __post_init__(self):
        if self.symbols_embedding_dim != self.encoder_embedding_dim:
            raise FastglowError(
                f"symbols_embedding_dim {self.symbols_embedding_dim} must equal "
                f"encoder_embedding_dim {self.encoder_embedding_dim}: the encoder's convolutions read the embedding"
            )
        if self.encoder_embedding_dim % 2:
            raise FastglowError(
                f"encoder_embedding_dim {self.encoder_embedding_dim} is odd: the encoder's LSTM has two directions"
            )
        for name in ("encoder_kernel_size", "attention_location_kernel_size", "postnet_kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise FastglowError(f"{name} {getattr(self, name)} is even: use an odd one, which keeps the length")
        for name in (f.name for f in fields(self) if f.name.startswith("p_")):
            if not 0 <= getattr(self, name) <= 1:
                raise FastglowError(f"{name} {getattr(self, name)} is no probability: use 0 to 1")
        if self.p_prenet_dropout == 1:
            raise FastglowError("p_prenet_dropout 1 drops everything: use less, this dropout never goes off")
        if isnan(self.gate_threshold):
            raise FastglowError("gate_threshold nan never stops: use a probability, such as 0.5")
        for name in ("n_frames_per_step", "max_decoder_steps"):
            if getattr(self, name) < 1:
                raise FastglowError(f"{name} {getattr(self, name)} must be at least 1")


def conv_block(in_channels: int, out_channels: int, kernel_size: int, w_init_gain: str) -> nn.Sequential:
    """Convolution and batch normalisation, [B, in_channels, T] -> [B, out_channels, T]."""
    return nn.Sequential(
        ConvNorm(in_channels, out_channels, kernel_size, w_init_gain=w_init_gain),
        nn.BatchNorm1d(out_channels),
    )


class Prenet(nn.Module):
    """Two bottleneck layers whose dropout never goes off; parameters `layers.N.linear_layer.weight`."""

    def __init__(self, in_dim: int, sizes: Sequence[int], p_dropout: float):
        super().__init__()
        self.p_dropout = p_dropout
        self.layers = nn.ModuleList(
            LinearNorm(n_in, n_out, bias=False) for n_in, n_out in zip([in_dim, *sizes[:-1]], sizes, strict=True)
        )

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[..., in_dim] -> [..., sizes[-1]]; `noise` as in `kernels.prenet`."""
        return kernels.prenet(
            x,
            [layer.linear_layer.weight for layer in self.layers],
            self.p_dropout,
            noise,
        )


class Encoder(nn.Module):
    """Convolutions over the symbols, then a bidirectional LSTM."""

    def __init__(self, config: Tacotron2Config):
        super().__init__()
        dim = config.encoder_embedding_dim
        self.p_dropout = config.p_encoder_dropout
        self.convolutions = nn.ModuleList(
            conv_block(dim, dim, config.encoder_kernel_size, "relu") for _ in range(config.encoder_n_convolutions)
        )
        self.lstm = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, input_lengths: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a padded batch.

        Args:
            x: embedded symbols, [B, dim, T].
            input_lengths: [B], in any order.
            mask: [B, 1, T], 1 inside an item. With it an item's padding stays zero between the
                convolutions, as beyond the end of an item alone; without it the padding's embedding
                and biases leak in, as they do in the reference.

        Returns:
            [B, T, dim].
        """
        if mask is not None:
            x = x * mask
        for conv in self.convolutions:
            x = F.dropout(F.relu(conv(x)), self.p_dropout, self.training)
            if mask is not None:
                x = x * mask
        packed = pack_padded_sequence(
            x.transpose(1, 2),
            input_lengths.cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        outputs, _ = self.lstm(packed)
        return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[2])[0]


class Postnet(nn.Module):
    """Convolutions that predict what the decoder's mel spectrogram lacks."""

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
            conv_block(
                n_in,
                n_out,
                config.postnet_kernel_size,
                "linear" if i == last else "tanh",
            )
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


class Decoder(Refreshable):
    """Autoregressive decoder: prenet, attention LSTM, location-sensitive attention, decoder LSTM."""

    def __init__(self, config: Tacotron2Config):
        super().__init__()
        memory_dim = config.encoder_embedding_dim
        self.n_mel_channels = config.n_mel_channels
        self.n_frames_per_step = config.n_frames_per_step
        self.max_decoder_steps = config.max_decoder_steps
        self.gate_threshold = config.gate_threshold
        self.early_stopping = not config.decoder_no_early_stopping
        self.p_attention_dropout = config.p_attention_dropout
        self.p_decoder_dropout = config.p_decoder_dropout
        self.step_dim = config.n_mel_channels * config.n_frames_per_step
        self.prenet = Prenet(self.step_dim, [config.prenet_dim] * 2, config.p_prenet_dropout)
        self.attention_rnn = nn.LSTMCell(config.prenet_dim + memory_dim, config.attention_rnn_dim)
        self.attention_layer = LocationAttention(
            config.attention_rnn_dim,
            memory_dim,
            config.attention_dim,
            config.attention_location_n_filters,
            config.attention_location_kernel_size,
        )
        self.decoder_rnn = nn.LSTMCell(config.attention_rnn_dim + memory_dim, config.decoder_rnn_dim)
        self.linear_projection = LinearNorm(config.decoder_rnn_dim + memory_dim, self.step_dim)
        self.gate_layer = LinearNorm(config.decoder_rnn_dim + memory_dim, 1, w_init_gain="sigmoid")
        self._folded: ParameterCache[kernels.FoldedDecoder] = ParameterCache()

    def recurrent_weights(self) -> RecurrentWeights:
        """What the steps' loops take."""
        attention_rnn, decoder_rnn = (
            LSTMWeights(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
            for cell in (self.attention_rnn, self.decoder_rnn)
        )
        layer = self.attention_layer
        attention = AttentionWeights(
            layer.query_layer.linear_layer.weight,
            layer.location_layer.location_conv.conv.weight,
            layer.location_layer.location_dense.linear_layer.weight,
            layer.v.linear_layer.weight,
        )
        return RecurrentWeights(attention_rnn, attention, decoder_rnn)

    def output_weights(self) -> OutputWeights:
        """What the free-running loop takes besides."""
        projection, gate = self.linear_projection.linear_layer, self.gate_layer.linear_layer
        prenet = tuple(layer.linear_layer.weight for layer in self.prenet.layers)
        return OutputWeights(prenet, projection.weight, projection.bias, gate.weight, gate.bias)

    def forward(self, memory: Tensor, mels: Tensor, memory_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher-forced decoding.

        Args:
            memory: [B, T_in, encoder_embedding_dim]; memory_lengths: [B].
            mels: targets, [B, n_mel_channels, T] with T a multiple of n_frames_per_step.

        Returns:
            (mel [B, n_mel_channels, T], gate logits [B, T / n_frames_per_step], alignments
            [B, T / n_frames_per_step, T_in]).
        """
        batch_size, _, n_frames = mels.shape
        if n_frames % self.n_frames_per_step:
            raise FastglowError(
                f"{n_frames} mel frames are no multiple of n_frames_per_step {self.n_frames_per_step}: pad the mels"
            )
        steps = mels.transpose(1, 2).reshape(batch_size, -1, self.step_dim).transpose(0, 1)
        go_frame = steps.new_zeros(1, batch_size, self.step_dim)
        # The last target is never an input, but the reference passes it through the prenet: the random numbers
        # that dropout takes, and with them a training run, stay those of the reference.
        decoder_inputs = self.prenet(torch.cat((go_frame, steps)))[:-1]  # [steps, B, prenet_dim]

        hidden_contexts, alignments = kernels.teacher_forced_loop(
            decoder_inputs,
            memory,
            self.attention_layer.memory_layer(memory),
            memory_lengths,
            self.recurrent_weights(),
            p_attention_dropout=self.p_attention_dropout if self.training else 0.0,
            p_decoder_dropout=self.p_decoder_dropout if self.training else 0.0,
        )
        mel = self.linear_projection(hidden_contexts).reshape(batch_size, n_frames, self.n_mel_channels)
        gate = self.gate_layer(hidden_contexts).squeeze(2)
        return mel.transpose(1, 2), gate, alignments

    def infer(
        self, memory: Tensor, memory_lengths: Tensor, seeds: Tensor, max_steps: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Free-running decoding until every item's gate has fired.

        Args:
            memory: [B, T_in, encoder_embedding_dim]; memory_lengths: [B].
            seeds: [B] int64, of the prenet's dropout.
            max_steps: the most steps; default max_decoder_steps.

        Returns:
            (mel [B, n_mel_channels, T], steps before the gate fired [B] int64, alignments
            [B, T / n_frames_per_step, T_in]). An item that was never stopped has max_steps.
        """
        recurrent, output = self.recurrent_weights(), self.output_weights()
        frames, steps, alignments = kernels.decode_loop(
            memory,
            self.attention_layer.memory_layer(memory),
            memory_lengths,
            seeds,
            recurrent,
            output,
            p_prenet_dropout=self.prenet.p_dropout,
            gate_threshold=self.gate_threshold,
            max_steps=max_steps or self.max_decoder_steps,
            early_stopping=self.early_stopping,
            folded=lambda dtype: self._folded.get(
                list(self.parameters()), lambda: kernels.fold_decoder(recurrent, output, dtype), dtype
            ),
        )
        mel = frames.reshape(len(frames), -1, self.n_mel_channels).transpose(1, 2)
        return mel, steps, alignments


class Tacotron2(Refreshable):
    """Text to mel spectrogram. Keywords: `Tacotron2Config`. state_dict keys: NVIDIA's.

    After weights were written through `parameter.data` or by a replayed CUDA graph, call `refresh()`.
    """

    def __init__(self, **kw):
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
        """Teacher-forced pass with the reference's semantics: padding is seen by the convolutions.

        Args:
            inputs: (text [B, T_in] int64, input_lengths [B], mels [B, n_mel_channels, T], max_len,
                output_lengths [B]); max_len is T_in, kept for the reference's call. Items may come in
                any order; T must be a multiple of n_frames_per_step.

        Returns:
            [mel, mel_postnet, gate, alignments]: [B, n_mel_channels, T] twice, gate logits
            [B, T / n_frames_per_step], [B, T / n_frames_per_step, T_in]. With mask_padding the frames
            past output_lengths are 0 and their gate is 1000.

        Raises:
            FastglowError: T is no multiple of n_frames_per_step.
        """
        text, input_lengths, mels, _, output_lengths = inputs
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
        """Free-running synthesis; for every item the computation is the one it gets alone, whatever it is batched with.

        In float64 so is the result. In lower precisions a batch's larger matrix products may be rounded otherwise, and
        the decoder feeds its rounding back to itself: the first steps agree to that rounding, later ones drift apart,
        and the gate may fire a step sooner or later.

        Call `eval()` first, as for any module with batch normalisation.

        Args:
            text: symbol ids, [B, T_in] int64, padded with anything.
            input_lengths: [B], in any order.
            seed: of the prenet's dropout: one for all items, or one an item. An item's result depends
                on its own seed only. None: drawn from PyTorch's generator.
            max_steps: the most decoder steps of each item; default, and the most that counts: max_decoder_steps.

        Returns:
            (mel_postnet [B, n_mel_channels, T], mel_lengths [B] int32, alignments
            [B, T / n_frames_per_step, T_in]). mel_lengths leaves out the step on which the gate fires;
            the mel holds it, and zeros after it.

        Raises:
            FastglowError: shapes, lengths, symbol ids, seeds or limits that do not fit.

        Warns:
            DecoderStepLimitWarning: an item was not stopped within max_decoder_steps or its max_steps.
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
            # On a GPU steps cost little, and a recorded graph holds one limit.
            self.decoder.max_decoder_steps if text.is_cuda else int(limits.max()),
        )
        r = self.config.n_frames_per_step
        # What it has alone: the step on which the gate fires included, nothing past its own limit.
        frame_mask = length_mask(torch.minimum(steps + 1, limits) * r, mel.shape[2]).unsqueeze(1).to(mel.dtype)
        mel = mel * frame_mask
        mel = mel + self.postnet(mel, frame_mask)
        alignments = alignments * frame_mask[:, 0, ::r].unsqueeze(2)
        steps = torch.minimum(steps, limits)
        endless = (steps == limits).nonzero().flatten().tolist()
        if endless and self.decoder.early_stopping:
            warnings.warn(
                f"the stop gate of item(s) {endless} did not fire within max_decoder_steps "
                f"{int(limits.max())}: end the text with punctuation, or split it",
                DecoderStepLimitWarning,
                stacklevel=3,  # past torch.no_grad's wrapper
            )
        return mel, (steps * r).int(), alignments
