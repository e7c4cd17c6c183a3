"""Tacotron 2's autoregressive decoder."""

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights
from fastglow.modules import LinearNorm, LocationAttention
from fastglow.modules.module_lists import modules_of_type
from fastglow.modules.parameter_cache import ParameterCache, Refreshable, parameters_of

from .tacotron2_config import Tacotron2Config

CPU_WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)

Result = TypeVar("Result")


class Prenet(nn.Module):
    """Two bottleneck layers whose dropout is always on; parameters `layers.N.linear_layer.weight`."""

    def __init__(self, in_dim: int, sizes: Sequence[int], p_dropout: float):
        super().__init__()
        self.p_dropout = p_dropout
        self.layers = nn.ModuleList(
            LinearNorm(n_in, n_out, bias=False) for n_in, n_out in zip([in_dim, *sizes[:-1]], sizes, strict=True)
        )

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[..., in_dim] -> [..., sizes[-1]]; `noise` as in `kernels.prenet`."""
        return kernels.prenet(x, self.weights(), self.p_dropout, noise)

    def weights(self) -> list[Tensor]:
        """The weight of each layer, [n_out, n_in]."""
        return [layer.linear_layer.weight for layer in modules_of_type(LinearNorm, self.layers)]


class Decoder(Refreshable):
    """Autoregressive decoder: prenet, attention LSTM, location-sensitive attention, decoder LSTM."""

    _cpu_weights: torch.dtype | None = None  # of the class, for pickles of older versions

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
        self._packed: ParameterCache[kernels.PackedDecoder] = ParameterCache()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_packed": ParameterCache(), **state})  # absent in pickles of older versions

    @property
    def cpu_weights(self) -> torch.dtype | None:
        """Type in which inference on a CPU reads the LSTMs' weights: float32, bfloat16, int8, or None for that of the
        parameters; setting another is a FastglowError."""
        return self._cpu_weights

    @cpu_weights.setter
    def cpu_weights(self, dtype: torch.dtype | None) -> None:
        if dtype is not None and dtype not in CPU_WEIGHTS:
            choices = ", ".join(map(str, CPU_WEIGHTS))
            raise FastglowError(f"cpu_weights={dtype!r} must be one of {choices}, or None for the parameters' own")
        self._cpu_weights = dtype

    def recurrent_weights(self) -> RecurrentWeights:
        """The weights that `decode_loop` and `teacher_forced_loop` both take."""
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
        """The further weights that `decode_loop` takes."""
        projection, gate = self.linear_projection.linear_layer, self.gate_layer.linear_layer
        return OutputWeights(tuple(self.prenet.weights()), projection.weight, projection.bias, gate.weight, gate.bias)

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
                f"{n_frames} mel frames must be a multiple of n_frames_per_step={self.n_frames_per_step}: pad the mels"
            )
        steps = mels.transpose(1, 2).reshape(batch_size, -1, self.step_dim).transpose(0, 1)
        go_frame = steps.new_zeros(1, batch_size, self.step_dim)
        # The last target is never an input, but the reference passes it through the prenet. Doing the same draws the
        # same random numbers for dropout.
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
            max_steps: step limit; default max_decoder_steps.

        Returns:
            (mel [B, n_mel_channels, T], steps before the gate fired [B] int64, alignments
            [B, T / n_frames_per_step, T_in]). An item whose gate did not fire has max_steps.
        """
        frames, steps, alignments = self._partial(kernels.decode_loop, memory, memory_lengths, seeds, max_steps)()
        return self.mel_of(frames), steps, alignments

    def infer_pieces(
        self,
        memory: Tensor,
        memory_lengths: Tensor,
        seeds: Tensor,
        max_steps: int | None = None,
        *,
        piece_steps: int | Iterable[int],
    ) -> Generator[kernels.DecodePiece, None, None]:
        """As `infer`, in pieces as of `kernels.decode_pieces`; `mel_of` gives the mel of their frames."""
        decode = self._partial(kernels.decode_pieces, memory, memory_lengths, seeds, max_steps)
        return decode(piece_steps=piece_steps)

    def mel_of(self, frames: Tensor) -> Tensor:
        """Frames of steps, [B, n, n_mel_channels * n_frames_per_step] -> [B, n_mel_channels, n * n_frames_per_step]."""
        return frames.reshape(len(frames), -1, self.n_mel_channels).transpose(1, 2)

    def _partial(
        self,
        function: Callable[..., Result],
        memory: Tensor,
        memory_lengths: Tensor,
        seeds: Tensor,
        max_steps: int | None,
    ) -> Callable[..., Result]:
        """`decode_loop` or `decode_pieces` with the arguments that both take."""
        recurrent, output = self.recurrent_weights(), self.output_weights()
        return partial(
            function,
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
                parameters_of(self), lambda: kernels.fold_decoder(recurrent, output, dtype), dtype
            ),
            packed=lambda dtype: self._packed.get(
                parameters_of(self),
                lambda: kernels.pack_decoder(recurrent, output, dtype, self.cpu_weights),
                dtype,
                self.cpu_weights,
            ),
        )
