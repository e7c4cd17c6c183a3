"""Tacotron 2 (Shen et al. 2018) as NVIDIA trained and published it (DeepLearningExamples, tacotron2/model.py)."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastglow.devices import move
from fastglow.errors import FastglowError
from fastglow.kernels.backend import fitting
from fastglow.modules.bypassing import accepts
from fastglow.modules.convolution import length_mask
from fastglow.modules.parameter_cache import Refreshable

from .calling import DIRECT, Call
from .infer_arguments import check_text
from .seeds import Seeds, item_seeds
from .step_limits import DecoderStepLimitWarning, MaxSteps, step_limits, warn_of_endless
from .tacotron2_config import Tacotron2Config
from .tacotron2_decoder import Decoder
from .tacotron2_encoder import Encoder
from .tacotron2_pieces import MelPiece, mel_pieces
from .tacotron2_postnet import Postnet, receptive_field
from .tacotron2_prenet import Prenet

# Re-exported because pickles of whole models refer to these classes by this module.
__all__ = ["Decoder", "DecoderStepLimitWarning", "Encoder", "Postnet", "Prenet", "Tacotron2", "Tacotron2Config"]


class DecodedBatch(NamedTuple):
    """
    Attributes:
        mel: before the postnet, [B, n_mel_channels, T].
        n_frames: [B] int64, up to the step on which an item's gate fired, or its limit.
        steps: [B] int64 on the CPU, how many steps came before that one, at most the limit.
        limits: [B] int64 on the CPU.
        alignments: [B, T / n_frames_per_step, T_in].
    """

    mel: Tensor
    n_frames: Tensor
    steps: Tensor
    limits: Tensor
    alignments: Tensor

    def item(self, i: int, n_frames: int) -> "DecodedBatch":
        """One of them as a batch of its own, given its number of frames."""
        mel, *others = (x[i : i + 1] for x in self)
        return DecodedBatch(mel[:, :, :n_frames], *others)


class Tacotron2(Refreshable):
    """Text to mel spectrogram. state_dict keys: NVIDIA's.

    Keywords: `Tacotron2Config`; or one positional argument with them as keys or attributes, as NVIDIA/tacotron2's
    hparams, of which others are ignored.

    Call `refresh()` after writing weights through `parameter.data` or with a replayed CUDA graph.
    """

    def __init__(self, hparams: object = None, **kw: Any):
        super().__init__()
        config = Tacotron2Config(**kw) if hparams is None else Tacotron2Config.from_hparams(hparams, **kw)
        self.config = config
        self.embedding = nn.Embedding(config.n_symbols, config.symbols_embedding_dim)
        bound = sqrt(6.0 / (config.n_symbols + config.symbols_embedding_dim))
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.postnet = Postnet(config)

    @property
    def mask_padding(self) -> bool:
        """Whether `forward` writes over its results past the output lengths."""
        return self.config.mask_padding

    @mask_padding.setter
    def mask_padding(self, masks: bool) -> None:
        self.config.mask_padding = bool(masks)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether `forward` stores only the inputs of the encoder and of each of the postnet's convolutions: the
        backward pass computes the rest again. The gradients are the same, and so are dropout and running statistics.

        The decoder's activations are stored. They are the largest part, and recomputing them would need their memory
        all the same. Neither the config nor the state_dict has this attribute.
        """
        return bool(getattr(self.postnet, "gradient_checkpointing", False))

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, recomputes: bool) -> None:
        for part in (self.encoder, self.postnet):
            part.gradient_checkpointing = bool(recomputes)

    @property
    def n_mel_channels(self) -> int:
        return self.config.n_mel_channels

    @property
    def n_frames_per_step(self) -> int:
        return self.config.n_frames_per_step

    def parse_batch(
        self, batch: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, Tensor, Tensor, int, Tensor], tuple[Tensor, Tensor]]:
        """A batch of NVIDIA's data loader, on the model's device.

        Args:
            batch: text [B, T_in], input_lengths [B], mels [B, n_mel_channels, T], gate targets [B, T],
                output_lengths [B]; what follows is ignored.

        Returns:
            (inputs of `forward`, targets of `Tacotron2Loss`).
        """
        device = self.embedding.weight.device
        text, input_lengths, mels, gates, output_lengths = (move(x, device) for x in batch[:5])
        mels, gates = mels.float(), gates.float()
        inputs = text.long(), input_lengths.long(), mels, int(batch[1].max()), output_lengths.long()
        return inputs, (mels, gates)

    def parse_output(self, outputs: list[Tensor], output_lengths: Tensor | None = None) -> list[Tensor]:
        """With mask_padding, `forward`'s results without what is past output_lengths [B]; else as they are."""
        mel, mel_postnet, gate, alignments = outputs
        if self.mask_padding and output_lengths is not None:
            padding = ~length_mask(output_lengths, mel.shape[2])
            mel = mel.masked_fill(padding.unsqueeze(1), 0.0)
            mel_postnet = mel_postnet.masked_fill(padding.unsqueeze(1), 0.0)
            gate = gate.masked_fill(padding[:, :: self.n_frames_per_step], 1e3)
        return [mel, mel_postnet, gate, alignments]

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor, int, Tensor]) -> list[Tensor]:
        """Teacher-forced pass with the reference's semantics: the convolutions see the padding.

        Args:
            inputs: (text [B, T_in] int64, input_lengths [B], mels [B, n_mel_channels, T], max_len,
                output_lengths [B]); max_len is T_in, as in the reference's call. Items may be in any order; T must be
                a multiple of n_frames_per_step. On a GPU, input_lengths may be on the CPU: with the longest text
                first, the host then waits for nothing.

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
        mel, gate, alignments = self.decoder(memory, mels, move(input_lengths, memory.device))
        return self.parse_output([mel, mel + self.postnet(mel), gate, alignments], output_lengths)

    @torch.no_grad()
    def inference(self, inputs: Tensor, *, seed: Seeds = None) -> list[Tensor]:
        """NVIDIA/tacotron2's synthesis, of texts without padding: what `infer` gives, and the gate.

        Args:
            inputs: symbol ids, [B, T_in] int64.
            seed: as of `infer`.

        Returns:
            [mel, mel_postnet, gate, alignments]: [B, n_mel_channels, T] twice, the rest as of `Decoder.inference`.

        Raises:
            FastglowError: as `infer`.

        Warns:
            DecoderStepLimitWarning: as `infer`.
        """
        lengths = torch.full(inputs.shape[:1], inputs.shape[-1])
        check_text(inputs, lengths, self.config.n_symbols)
        device = self.embedding.weight.device
        memory = self._memory(move(inputs, device), move(lengths, device))
        mel, gate, alignments, steps = self.decoder.infer_whole(memory, seed, stacklevel=4)
        n_frames = (steps + 1) * self.n_frames_per_step
        return [mel, self.add_residual(mel, n_frames), gate, alignments]

    @torch.no_grad()
    def infer(
        self,
        text: Tensor,
        input_lengths: Tensor,
        *,
        seed: Seeds = None,
        max_steps: MaxSteps = None,
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
            max_steps: step limit, one for all items or one per item; default and maximum: max_decoder_steps.

        Returns:
            (mel_postnet [B, n_mel_channels, T], mel_lengths [B] int32, alignments
            [B, T / n_frames_per_step, T_in]). mel_lengths excludes the step on which the gate fires; the mel includes
            it, followed by zeros. Of a bfloat16 model on a CPU, which keeps its state in float32, they are float32.

        Raises:
            FastglowError: shapes, lengths, symbol ids, seeds or limits that do not fit.

        Warns:
            DecoderStepLimitWarning: an item's gate did not fire within max_decoder_steps or its max_steps.
        """
        decoded = self.decode(text, input_lengths, seed=seed, max_steps=max_steps)
        if self.decoder.early_stopping:
            warn_of_endless(decoded.steps, decoded.limits, stacklevel=4)  # past torch.no_grad's wrapper
        lengths = (decoded.steps * self.config.n_frames_per_step).int()
        return self.refine(decoded), move(lengths, text.device), decoded.alignments

    @torch.no_grad()
    def decode(
        self,
        text: Tensor,
        input_lengths: Tensor,
        *,
        seed: Seeds = None,
        max_steps: MaxSteps = None,
        call: Call = DIRECT,
    ) -> DecodedBatch:
        """`infer` for an engine, up to the postnet: without its warning, with the lengths on the host, which is all
        that it waits for.

        Args:
            text, input_lengths, seed, max_steps: as for `infer`; a text on the CPU is checked without waiting for the
                model's device.
            call: runs the encoder.
        """
        inputs, limits = self._encode(text, input_lengths, seed, max_steps, call)
        return self._decoded(inputs, limits)

    @torch.no_grad()
    def decode_apart(
        self,
        texts: Sequence[Tensor],
        *,
        n_rows: int,
        n_symbols: int,
        seed: Sequence[int],
        max_steps: Sequence[int],
        call: Call = DIRECT,
    ) -> DecodedBatch:
        """`decode` for texts that must not round each other's results.

        Rounding follows the shapes of the products. So each text is encoded alone, and all are decoded as the first
        rows of a batch of one shape, whose other rows are empty.

        Args:
            texts: symbol ids, [T] int64 each, on the CPU.
            n_rows, n_symbols: the shape; at least the number of texts, and the longest one's length.
            seed, max_steps: of each text.
            call: runs the encoder.

        Returns:
            of `n_rows` items.
        """
        n_empty = n_rows - len(texts)
        seed, max_steps = [*seed, *[0] * n_empty], [*max_steps, *[1] * n_empty]
        rows = [
            self._encode(text[None], torch.tensor([len(text)]), seed[i : i + 1], max_steps[i : i + 1], call)[0][0]
            for i, text in enumerate(texts)
        ]
        memory = rows[0].new_zeros(n_rows, n_symbols, rows[0].shape[2])
        for i, row in enumerate(rows):
            memory[i, : row.shape[1]] = row[0]
        lengths = move(torch.tensor([*map(len, texts), *[0] * n_empty]), memory.device)
        limits = step_limits(max_steps, n_rows, self.decoder.max_decoder_steps)
        return self._decoded(
            (memory, lengths, item_seeds(seed, n_rows, memory.device), self._most_steps(limits)), limits
        )

    def _decoded(self, inputs: tuple[Tensor, Tensor, Tensor, int], limits: Tensor) -> DecodedBatch:
        mel, steps, alignments = self.decoder.infer(*inputs)
        steps = steps.cpu()
        r, most = self.config.n_frames_per_step, int(limits.max())
        # As for an item alone: up to the step on which the gate fires, or its own limit.
        n_steps = torch.minimum(steps + 1, limits)
        mel, alignments = mel[:, :, : most * r], alignments[:, :most]
        n_frames = move(n_steps * r, mel.device)
        alignments = alignments * length_mask(n_frames, mel.shape[2])[:, ::r].unsqueeze(2)
        return DecodedBatch(mel, n_frames, torch.minimum(steps, limits), limits, alignments)

    @torch.no_grad()
    def refine(self, decoded: DecodedBatch, call: Call = DIRECT) -> Tensor:
        """The mel after the postnet, which `call` runs, [B, n_mel_channels, T]; zeros past each item's n_frames."""
        mel = decoded.mel
        return call(self.add_residual, *call.padded(mel, decoded.n_frames))[: len(mel), :, : mel.shape[2]]

    def add_residual(self, mel: Tensor, n_frames: Tensor) -> Tensor:
        """The mel plus the postnet's residual, [B, n_mel_channels, T]; zeros past each item's number of frames [B]."""
        mask = length_mask(n_frames, mel.shape[2]).unsqueeze(1)
        mel = mel * mask
        x = fitting(mel, next(self.postnet.parameters(), mel))
        fitted = mask.to(x.dtype)
        if accepts(self.postnet, Postnet, x, fitted):
            return mel + self.postnet(x, fitted)
        return mel + self.postnet(x) * fitted

    def infer_pieces(
        self,
        text: Tensor,
        input_lengths: Tensor,
        *,
        piece_frames: int | Iterable[int],
        seed: Seeds = None,
        max_steps: MaxSteps = None,
    ) -> Generator[MelPiece, None, None]:
        """`infer` as a stream: mel while the decoder still runs, in memory that does not grow with its length.

        The joined mels and alignments and the last lengths are the result of `infer`; only the postnet may round
        differently. The text is encoded at once, the rest computed when a piece is asked for. `close()` ends the
        decoder early.

        Args:
            text, input_lengths, seed, max_steps: as `infer`.
            piece_frames: frames of every piece, or of the first, second, ..., of which the last repeats; at least 1
                each. A piece is longer to complete a decoder step, or on a GPU a replay of the decoder's graph; the
                last one has what remains.

        Raises:
            FastglowError: as `infer`; for piece_frames when the piece is asked for.

        Warns:
            DecoderStepLimitWarning: as `infer`, before the last piece.
        """
        pieces = self.decode_pieces(
            text, input_lengths, piece_frames=piece_frames, seed=seed, max_steps=max_steps, call=DIRECT
        )
        if not self.decoder.early_stopping:
            return pieces
        limits = step_limits(max_steps, len(text), self.decoder.max_decoder_steps)
        return _warning_of_endless(pieces, limits, self.config.n_frames_per_step)

    def decode_pieces(
        self,
        text: Tensor,
        input_lengths: Tensor,
        *,
        piece_frames: int | Iterable[int],
        seed: Seeds = None,
        max_steps: MaxSteps = None,
        call: Call = DIRECT,
    ) -> Generator[MelPiece, None, None]:
        """`infer_pieces` for an engine: without its warning; arguments as there and as for `decode`."""
        with torch.no_grad():
            inputs, limits = self._encode(text, input_lengths, seed, max_steps, call)
            return mel_pieces(
                self.decoder, self.add_residual, receptive_field(self.postnet), inputs, limits, piece_frames, call
            )

    def _encode(
        self, text: Tensor, input_lengths: Tensor, seed: Seeds, max_steps: MaxSteps, call: Call
    ) -> tuple[tuple[Tensor, Tensor, Tensor, int], Tensor]:
        """(arguments of `Decoder.infer`, step limit of each item [B] int64 on the CPU)."""
        check_text(text, input_lengths, self.config.n_symbols)
        limits = step_limits(max_steps, len(text), self.decoder.max_decoder_steps)
        device = self.embedding.weight.device
        text, input_lengths = move(text, device), move(input_lengths, device)
        memory = call(self._memory, *call.padded(text, input_lengths))[: len(text), : text.shape[1]]
        return (memory, input_lengths, item_seeds(seed, len(text), device), self._most_steps(limits)), limits

    def _most_steps(self, limits: Tensor) -> int:
        """Of a batch. On a GPU steps are cheap, and a recorded graph has a fixed limit."""
        return self.decoder.max_decoder_steps if self.embedding.weight.is_cuda else int(limits.max())

    def _memory(self, text: Tensor, input_lengths: Tensor) -> Tensor:
        mask = length_mask(input_lengths, text.shape[1])
        x = self.embedding(text.masked_fill(~mask, 0)).transpose(1, 2)
        inputs = x, input_lengths, mask.unsqueeze(1).to(x.dtype)
        return self.encoder(*inputs) if accepts(self.encoder, Encoder, *inputs) else self.encoder(*inputs[:2])


def _warning_of_endless(
    pieces: Generator[MelPiece, None, None], limits: Tensor, r: int
) -> Generator[MelPiece, None, None]:
    with closing(pieces):
        for piece in pieces:
            if piece.finished:
                warn_of_endless(piece.lengths.cpu() // r, limits, stacklevel=3)
            yield piece
