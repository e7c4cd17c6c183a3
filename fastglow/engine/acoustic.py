"""Symbols to mel: the acoustic model with attempts, batches and pieces."""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastglow.devices import upload
from fastglow.kernels.graphs import FRAMES_PER_GRAPH
from fastglow.models import Tacotron2

from .attempts import Attempts, Decoded, Task
from .recording import Recorder

# Attention is unreliable in longer sentences. Sentences are split at 200 characters, but become longer when numbers and
# abbreviations are written out.
MAX_SYMBOLS = 250
# Symbols per second of slow speech; usual are 10 to 15. Sentences are split so that they fit the decoder's step limit,
# but not into pieces that are too short to be read well.
SLOW, MIN_SYMBOLS = 10, 60


class Piece(NamedTuple):
    """The next part of an utterance.

    Attributes:
        mel: log-mel, [n_mel_channels, frames], behind the decoder by the postnet's receptive field.
        alignment: attention weights of the new steps, float32 [steps, symbols].
        ended: whether this is the last piece.
        stopped: whether the stop gate fired.
    """

    mel: Tensor
    alignment: np.ndarray
    ended: bool
    stopped: bool


class Acoustic:
    """Decodes sentences.

    Args:
        tacotron2: on its final device, in eval mode.
        seconds_per_frame: duration of a mel frame.

    Attributes:
        frames_per_step, seconds_per_step, max_steps: of the decoder.
        most_symbols: of a sentence that is read at once.
    """

    def __init__(self, tacotron2: Tacotron2, seconds_per_frame: float):
        config = tacotron2.config
        self.tacotron2 = tacotron2
        self.frames_per_step = config.n_frames_per_step
        self.seconds_per_step = seconds_per_frame * config.n_frames_per_step
        self.max_steps = config.max_decoder_steps
        self.most_symbols = min(
            MAX_SYMBOLS, max(MIN_SYMBOLS, int(config.max_decoder_steps * self.seconds_per_step * SLOW))
        )
        self.call = Recorder(tacotron2)

    def attempts(self, task: Task) -> Attempts:
        """At a sentence, none made yet."""
        return Attempts(task, self.seconds_per_step, self.max_steps)

    def complete(self, attempts: Sequence[Attempts]) -> None:
        """Decodes sentences in batches until all are done.

        Except for rounding, the result of one does not depend on the others.
        """
        while pending := [one for one in attempts if not one.done]:
            symbols = [one.task.symbols for one in pending]
            batch = self.decode(symbols, [one.seed for one in pending], [one.limit for one in pending])
            for one, decoded in zip(pending, batch, strict=True):
                one.record(decoded)

    def warm_up(self, batch_size: int) -> None:
        """Decodes texts and refines mels of every size that is recorded."""
        weight = self.tacotron2.embedding.weight
        for n_symbols in self.call.sizes(self.most_symbols):
            for _ in range(2):
                self.decode([[1] * n_symbols] * batch_size, [0] * batch_size, [FRAMES_PER_GRAPH] * batch_size)
            with closing(self.pieces([1] * n_symbols, 0, 1)) as pieces:
                next(pieces)
        for n_frames in self.call.sizes(self.max_steps * self.frames_per_step):
            mel = weight.new_zeros(batch_size, self.tacotron2.config.n_mel_channels, n_frames)
            for _ in range(2):
                inputs = self.call.padded(mel, upload([n_frames] * batch_size, weight.device))
                self.call(self.tacotron2.add_residual, *inputs)

    def decode(self, texts: Sequence[list[int]], seeds: Sequence[int], limits: Sequence[int]) -> list[Decoded]:
        """Decodes sentences as one batch.

        Args:
            texts: symbol ids.
            seeds, limits: of each: the prenet's seed and the most steps.
        """
        decoded = self.tacotron2.decode(*_padded(texts), seed=seeds, max_steps=limits, call=self.call)
        # In one transfer, and before the postnet is queued, which then runs while they are judged.
        alignments = decoded.alignments.float().cpu().numpy()
        mels = self.tacotron2.refine(decoded, self.call)
        results = []
        for i, n_steps in enumerate(decoded.steps.tolist()):
            # A copy, because a view would keep the whole batch's.
            alignment = alignments[i, :n_steps, : len(texts[i])].copy()
            mel = mels[i, :, : n_steps * self.frames_per_step]
            results.append(Decoded(mel, alignment, n_steps < limits[i]))
        return results

    def pieces(self, symbols: list[int], seed: int, n_frames: int) -> Generator[Piece, None, None]:
        """Decodes a sentence in pieces of `n_frames` of its decoder's frames."""
        n_steps = 0
        pieces = self.tacotron2.decode_pieces(*_padded([symbols]), seed=[seed], piece_frames=n_frames, call=self.call)
        with closing(pieces):
            for piece in pieces:
                rows = piece.alignments[0].float().cpu().numpy()
                if piece.finished:  # without the step on which the gate fired
                    rows = rows[: int(piece.lengths[0]) // self.frames_per_step - n_steps]
                n_steps += len(rows)
                yield Piece(piece.mel[0], rows, piece.finished, n_steps < self.max_steps)


def _padded(texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """[B, T] int64 and the lengths [B], on the CPU."""
    lengths = torch.tensor([len(symbols) for symbols in texts])
    return pad_sequence([torch.tensor(symbols) for symbols in texts], batch_first=True), lengths
