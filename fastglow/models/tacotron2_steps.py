"""Tacotron 2's decoder step by step, in calls of its modules."""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import kernels
from fastglow.errors import FastglowError
from fastglow.kernels.arguments import sizes_of_pieces
from fastglow.modules import ConvNorm, LinearNorm, LocationAttention
from fastglow.modules.bypassing import accepts, may_bypass
from fastglow.modules.convolution import length_mask
from fastglow.modules.location_attention import LocationLayer

from .tacotron2_config import Tacotron2Config
from .tacotron2_prenet import Prenet

_RECURRENT: frozenset[type[nn.Module]] = frozenset(
    {nn.LSTMCell, LocationAttention, LocationLayer, ConvNorm, nn.Conv1d, LinearNorm, nn.Linear}
)
_PRENET: frozenset[type[nn.Module]] = frozenset({Prenet, nn.ModuleList, LinearNorm, nn.Linear})


class DecoderState(NamedTuple):
    """What a step leaves to the next one."""

    attention_hidden: Tensor  # [B, attention_rnn_dim]
    attention_cell: Tensor
    decoder_hidden: Tensor  # [B, decoder_rnn_dim]
    decoder_cell: Tensor
    attention_weights: Tensor  # [B, T_in]
    attention_weights_cum: Tensor
    attention_context: Tensor  # [B, encoder_embedding_dim]


_KEPT = (*DecoderState._fields, "memory", "processed_memory", "mask")


class StepwiseDecoder(nn.Module):
    """The modules of the decoder, and the methods with which NVIDIA's scripts write its loop themselves."""

    memory: Tensor
    processed_memory: Tensor
    mask: Tensor | None

    def __init__(self, config: Tacotron2Config):
        super().__init__()
        self.n_mel_channels = config.n_mel_channels
        self.n_frames_per_step = config.n_frames_per_step
        self.encoder_embedding_dim = config.encoder_embedding_dim
        self.attention_rnn_dim = config.attention_rnn_dim
        self.decoder_rnn_dim = config.decoder_rnn_dim
        self.prenet_dim = config.prenet_dim
        self.max_decoder_steps = config.max_decoder_steps
        self.gate_threshold = config.gate_threshold
        self.early_stopping = not config.decoder_no_early_stopping
        self.p_attention_dropout = config.p_attention_dropout
        self.p_decoder_dropout = config.p_decoder_dropout
        self.step_dim = config.n_mel_channels * config.n_frames_per_step
        memory_dim = config.encoder_embedding_dim
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

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have no state of a loop."""
        return {name: value for name, value in vars(self).items() if name not in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "prenet_dim" not in state:  # a pickle of an older version
            self.encoder_embedding_dim = self.attention_layer.memory_layer.linear_layer.in_features
            self.attention_rnn_dim = self.attention_rnn.hidden_size
            self.decoder_rnn_dim = self.decoder_rnn.hidden_size
            self.prenet_dim = self.attention_rnn.input_size - self.encoder_embedding_dim

    def get_go_frame(self, memory: Tensor) -> Tensor:
        """The first input of the prenet: zeros, [B, n_mel_channels * n_frames_per_step]."""
        return memory.new_zeros(len(memory), self.step_dim)

    def initialize_decoder_states(self, memory: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """The state before the first step, kept for `decode(decoder_input)` and returned for `decode(...)`.

        Args:
            memory: encoder outputs, [B, T_in, encoder_embedding_dim].
            mask: [B, T_in] bool, True in padding; only for `decode(decoder_input)`.

        Returns:
            attention_hidden and attention_cell [B, attention_rnn_dim], decoder_hidden and decoder_cell
            [B, decoder_rnn_dim], attention_weights and attention_weights_cum [B, T_in], attention_context
            [B, encoder_embedding_dim], processed_memory [B, T_in, attention_dim].
        """
        state = self._initial_state(memory)
        self._keep(state)
        self.memory, self.processed_memory, self.mask = memory, self.attention_layer.memory_layer(memory), mask
        return *state, self.processed_memory

    def parse_decoder_inputs(self, decoder_inputs: Tensor) -> Tensor:
        """Mels [B, n_mel_channels, T] -> steps [T / n_frames_per_step, B, n_mel_channels * n_frames_per_step].

        Raises:
            FastglowError: T is not a multiple of n_frames_per_step.
        """
        n_frames = decoder_inputs.shape[2]
        if n_frames % self.n_frames_per_step:
            raise FastglowError(
                f"{n_frames} mel frames must be a multiple of n_frames_per_step={self.n_frames_per_step}: pad the mels"
            )
        return decoder_inputs.transpose(1, 2).reshape(len(decoder_inputs), -1, self.step_dim).transpose(0, 1)

    def parse_decoder_outputs(
        self,
        mel_outputs: Tensor | Sequence[Tensor],
        gate_outputs: Tensor | Sequence[Tensor],
        alignments: Tensor | Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of the steps, lists or stacked, with the batch first.

        Args:
            mel_outputs: [steps, B, n_mel_channels * n_frames_per_step].
            gate_outputs: [steps, B] or [steps, B, 1].
            alignments: [steps, B, T_in].

        Returns:
            (mel [B, n_mel_channels, T], gate [B, steps] or [B, steps, 1], alignments [B, steps, T_in]).
        """
        mel, gate, alignments = (
            (x if isinstance(x, Tensor) else torch.stack(list(x))).transpose(0, 1)
            for x in (mel_outputs, gate_outputs, alignments)
        )
        return self.mel_of(mel), gate.contiguous(), alignments.contiguous()

    def mel_of(self, frames: Tensor) -> Tensor:
        """Frames of steps, [B, n, n_mel_channels * n_frames_per_step] -> [B, n_mel_channels, n * n_frames_per_step]."""
        return frames.reshape(len(frames), -1, self.n_mel_channels).transpose(1, 2)

    def decode(self, decoder_input: Tensor, *state: Tensor | None) -> tuple[Tensor, ...]:
        """One step, with dropout in training.

        Args:
            decoder_input: the prenet's output, [B, prenet_dim].
            state: none, as in NVIDIA/tacotron2: the decoder keeps it from `initialize_decoder_states` on. Or, as in
                DeepLearningExamples, ten: attention_hidden, attention_cell, decoder_hidden, decoder_cell,
                attention_weights, attention_weights_cum, attention_context, memory, processed_memory, mask.

        Returns:
            decoder_output [B, n_mel_channels * n_frames_per_step], gate logit [B, 1], and attention_weights [B, T_in];
            or, if the state was given, its first seven.

        Raises:
            FastglowError: no kept state, or a given one that is not complete.
        """
        if state:
            tensors = [x for x in state[:-1] if x is not None]
            if (len(state), len(tensors)) != (len(_KEPT), len(_KEPT) - 1):
                raise FastglowError(
                    f"decode got a state of {len(state)}, must be {len(_KEPT)}, of which only the mask may be None: "
                    + ", ".join(_KEPT)
                )
            *before, memory, processed_memory = tensors
            frame, gate, after = self._step(decoder_input, DecoderState(*before), memory, processed_memory, state[-1])
            return frame, gate, *after
        if "memory" not in vars(self):
            raise FastglowError("decode has no state: call initialize_decoder_states(memory) before the first step")
        kept = DecoderState(*(getattr(self, name) for name in DecoderState._fields))
        frame, gate, after = self._step(decoder_input, kept, self.memory, self.processed_memory, self.mask)
        self._keep(after)
        return frame, gate, after.attention_weights

    def _keep(self, state: DecoderState) -> None:
        vars(self).update(state._asdict())

    def _initial_state(self, memory: Tensor) -> DecoderState:
        sizes = (*[self.attention_rnn_dim] * 2, *[self.decoder_rnn_dim] * 2, *[memory.shape[1]] * 2, memory.shape[2])
        return DecoderState(*(memory.new_zeros(len(memory), size) for size in sizes))

    def _step(
        self,
        x: Tensor,
        state: DecoderState,
        memory: Tensor,
        processed_memory: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, DecoderState]:
        attention_hidden, attention_cell = self.attention_rnn(torch.cat((x, state.attention_context), dim=1), state[:2])
        attention_hidden = F.dropout(attention_hidden, self.p_attention_dropout, self.training)
        attended = torch.stack((state.attention_weights, state.attention_weights_cum), dim=1)
        context, weights = self.attention_layer(attention_hidden, memory, processed_memory, attended, mask)
        decoder_hidden, decoder_cell = self.decoder_rnn(torch.cat((attention_hidden, context), dim=1), state[2:4])
        decoder_hidden = F.dropout(decoder_hidden, self.p_decoder_dropout, self.training)
        x = torch.cat((decoder_hidden, context), dim=1)
        after = DecoderState(
            attention_hidden, attention_cell, decoder_hidden, decoder_cell,
            weights, state.attention_weights_cum + weights, context,
        )  # fmt: skip
        return self.linear_projection(x), self.gate_layer(x), after

    def _may_bypass_recurrence(self) -> bool:
        """Whether a loop over the steps may take the weights instead of calling the modules after the prenet."""
        return (
            may_bypass(
                (self.attention_rnn, self.attention_layer, self.decoder_rnn, self.linear_projection, self.gate_layer),
                _RECURRENT,
            )
            and self.attention_layer.is_nvidias()
        )

    def _may_bypass_all(self) -> bool:
        return may_bypass((self.prenet,), _PRENET) and self._may_bypass_recurrence()

    def _forward_by_steps(
        self, decoder_inputs: Tensor, memory: Tensor, memory_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`Decoder.forward` of the prenet's outputs [steps, B, prenet_dim]."""
        processed_memory = self.attention_layer.memory_layer(memory)
        mask = ~length_mask(memory_lengths, memory.shape[1])
        state, mels, gates, alignments = self._initial_state(memory), [], [], []
        for x in decoder_inputs:
            mel, gate, state = self._step(x, state, memory, processed_memory, mask)
            mels.append(mel)
            gates.append(gate.squeeze(1))
            alignments.append(state.attention_weights)
        return self.parse_decoder_outputs(mels, gates, alignments)

    def _pieces_by_steps(
        self,
        memory: Tensor,
        memory_lengths: Tensor,
        seeds: Tensor,
        max_steps: int,
        *,
        piece_steps: int | Iterable[int],
        with_gate: bool,
    ) -> Generator[kernels.DecodePiece, None, None]:
        """As `kernels.decode_pieces`; with_gate: the gate's logit is one more value of a frame."""
        processed_memory = self.attention_layer.memory_layer(memory)
        # An item of length 0 attends to position 0, as if its length were 1.
        mask = ~length_mask(memory_lengths.clamp(min=1), memory.shape[1])
        state, frame = self._initial_state(memory), self.get_go_frame(memory)
        running = memory_lengths > 0
        steps = torch.zeros_like(seeds)
        frames, alignments = [], []
        seeded = accepts(self.prenet, Prenet, frame, seeds=seeds, start=0)
        sizes = sizes_of_pieces("piece_steps", piece_steps)
        stop = min(next(sizes), max_steps)
        for step in range(max_steps):
            x = self.prenet(frame, seeds=seeds, start=step) if seeded else self.prenet(frame)
            frame, gate, state = self._step(x, state, memory, processed_memory, mask)
            ended = ~running.unsqueeze(1)
            frames.append((torch.cat((frame, gate), dim=1) if with_gate else frame).masked_fill(ended, 0.0))
            alignments.append(state.attention_weights.masked_fill(ended, 0.0))
            running = running & (torch.sigmoid(gate.squeeze(1).float()) <= self.gate_threshold)
            steps = steps + running
            goes_on = bool(running.any())
            last = step + 1 == max_steps or (self.early_stopping and not goes_on)
            if last or step + 1 == stop:
                yield kernels.DecodePiece(
                    torch.stack(frames, dim=1), steps, torch.stack(alignments, dim=1), goes_on and not last
                )
                frames, alignments = [], []
                if last:
                    return
                stop = min(stop + next(sizes), max_steps)
