"""Tacotron 2's autoregressive decoder."""

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights
from fastglow.modules.convolution import length_mask
from fastglow.modules.parameter_cache import ParameterCache, Refreshable, parameters_of

from .seeds import Seeds, item_seeds
from .step_limits import step_limits, warn_of_endless
from .tacotron2_config import Tacotron2Config
from .tacotron2_prenet import Prenet
from .tacotron2_steps import StepwiseDecoder

# Re-exported because pickles of whole models refer to it by this module.
__all__ = ["CPU_WEIGHTS", "Decoder", "Prenet"]

CPU_WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)

Result = TypeVar("Result")


class Decoder(Refreshable, StepwiseDecoder):
    """Autoregressive decoder: prenet, attention LSTM, location-sensitive attention, decoder LSTM."""

    _cpu_weights: torch.dtype | None = None  # of the class, for pickles of older versions

    def __init__(self, config: Tacotron2Config):
        super().__init__(config)
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

    def forward(self, memory: Tensor, decoder_inputs: Tensor, memory_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher-forced decoding.

        Args:
            memory: [B, T_in, encoder_embedding_dim]; memory_lengths: [B].
            decoder_inputs: target mels, [B, n_mel_channels, T] with T a multiple of n_frames_per_step.

        Returns:
            (mel [B, n_mel_channels, T], gate logits [B, T / n_frames_per_step], alignments
            [B, T / n_frames_per_step, T_in]).
        """
        steps = self.parse_decoder_inputs(decoder_inputs)
        go_frame = steps.new_zeros(1, len(memory), self.step_dim)
        # The last target is never an input, but the reference passes it through the prenet. Doing the same draws the
        # same random numbers for dropout.
        prenet_outputs = self.prenet(torch.cat((go_frame, steps)))[:-1]  # [steps, B, prenet_dim]
        if not self._may_bypass_recurrence():
            return self._forward_by_steps(prenet_outputs, memory, memory_lengths)
        hidden_contexts, alignments = kernels.teacher_forced_loop(
            prenet_outputs,
            memory,
            self.attention_layer.memory_layer(memory),
            memory_lengths,
            self.recurrent_weights(),
            p_attention_dropout=self.p_attention_dropout if self.training else 0.0,
            p_decoder_dropout=self.p_decoder_dropout if self.training else 0.0,
        )
        mel = self.mel_of(self.linear_projection(hidden_contexts))
        return mel, self.gate_layer(hidden_contexts).squeeze(2), alignments

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
        frames, steps, alignments = self._decode(memory, memory_lengths, seeds, max_steps)
        return self.mel_of(frames), steps, alignments

    @torch.no_grad()
    def inference(self, memory: Tensor, *, seed: Seeds = None) -> tuple[Tensor, Tensor, Tensor]:
        """NVIDIA/tacotron2's free-running decoding, of texts without padding.

        Args:
            memory: [B, T_in, encoder_embedding_dim].
            seed: as of `Tacotron2.infer`.

        Returns:
            (mel [B, n_mel_channels, T], gate logits [B, T / n_frames_per_step, 1], alignments
            [B, T / n_frames_per_step, T_in]). After the step on which an item's gate fires, its mel and alignments are
            0 and its gate is 1000.

        Warns:
            DecoderStepLimitWarning: an item's gate did not fire within max_decoder_steps.
        """
        mel, gate, alignments, _ = self.infer_whole(memory, seed, stacklevel=4)  # past torch.no_grad's wrapper
        return mel, gate, alignments

    def infer_whole(self, memory: Tensor, seed: Seeds, stacklevel: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`inference`, and the steps before each item's gate fired, [B] int64; stacklevel: of the warning."""
        lengths = torch.full((len(memory),), memory.shape[1], device=memory.device)
        seeds = item_seeds(seed, len(memory), memory.device)
        frames, steps, alignments = self._decode(memory, lengths, seeds, None, with_gate=True)
        if self.early_stopping:
            limits = step_limits(None, len(memory), self.max_decoder_steps)
            warn_of_endless(steps.cpu(), limits, stacklevel + 1)
        frames, gate = frames.split((self.step_dim, 1), dim=2)
        gate = gate.masked_fill(~length_mask(steps + 1, gate.shape[1]).unsqueeze(2), 1e3)
        return self.mel_of(frames), gate, alignments, steps

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
        if not self._may_bypass_all():
            most = max_steps or self.max_decoder_steps
            return self._pieces_by_steps(memory, memory_lengths, seeds, most, piece_steps=piece_steps, with_gate=False)
        decode = self._partial(kernels.decode_pieces, memory, memory_lengths, seeds, max_steps, with_gate=False)
        return decode(piece_steps=piece_steps)

    def _decode(
        self,
        memory: Tensor,
        memory_lengths: Tensor,
        seeds: Tensor,
        max_steps: int | None,
        *,
        with_gate: bool = False,
    ) -> kernels.DecodeResult:
        """with_gate: frames have the gate's logit as one more value."""
        if self._may_bypass_all():
            decode = self._partial(kernels.decode_loop, memory, memory_lengths, seeds, max_steps, with_gate=with_gate)
            return decode()
        most = max_steps or self.max_decoder_steps
        (piece,) = self._pieces_by_steps(memory, memory_lengths, seeds, most, piece_steps=most, with_gate=with_gate)
        return kernels.DecodeResult(*piece[:3])

    def _partial(
        self,
        function: Callable[..., Result],
        memory: Tensor,
        memory_lengths: Tensor,
        seeds: Tensor,
        max_steps: int | None,
        *,
        with_gate: bool,
    ) -> Callable[..., Result]:
        """`decode_loop` or `decode_pieces` with the arguments that both take."""
        recurrent, output = self.recurrent_weights(), self.output_weights()
        if with_gate:
            output = _with_gate_in_frames(output)
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
                parameters_of(self), lambda: kernels.fold_decoder(recurrent, output, dtype), dtype, with_gate
            ),
            packed=lambda dtype: self._packed.get(
                parameters_of(self),
                lambda: kernels.pack_decoder(recurrent, output, dtype, self.cpu_weights),
                dtype,
                self.cpu_weights,
                with_gate,
            ),
        )


def _with_gate_in_frames(output: OutputWeights) -> OutputWeights:
    """The gate's logit as one more value of a frame, which the prenet does not read."""
    first, *others = output.prenet
    return output._replace(
        prenet=(F.pad(first, (0, 1)), *others),
        projection=torch.cat((output.projection, output.gate)),
        projection_bias=torch.cat((output.projection_bias, output.gate_bias)),
    )
