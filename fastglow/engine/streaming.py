"""The audio of a sentence in chunks, also while its decoder still runs."""

from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from .acoustic import Acoustic
from .attempts import Attempts, Decoded
from .reading import Fault, Watch
from .vocoders import Context, Vocoder

# Six seconds of the published models. A chunk of theirs computes 195 frames of context, too.
MAX_CHUNK_FRAMES = 512
# What the decoder hands out at once.
PIECE_FRAMES = 32


def growing(first: int) -> Iterator[int]:
    """Frames of successive chunks: the first is soon heard, large ones cost less."""
    size = first
    while True:
        yield size
        size = max(size, min(2 * size, MAX_CHUNK_FRAMES))


class Chunks:
    """Vocodes a growing mel in chunks that, joined, are the audio of the whole.

    Args:
        vocoder: one with a context vocodes a chunk with the mel around it; others vocode all in one chunk at the end.
        hop_length: samples of a frame.
        seed: of the vocoder's noise.
        sizes: frames of the chunks.

    Attributes:
        n_spoken: frames whose audio was handed out.
    """

    def __init__(self, vocoder: Vocoder, hop_length: int, seed: int, sizes: Iterator[int]):
        self.n_spoken = 0
        self._vocoder, self._hop, self._seed, self._sizes = vocoder, hop_length, seed, sizes
        self._context = vocoder.context
        self._size = next(sizes)

    @property
    def can_begin_early(self) -> bool:
        """Whether any audio is known before the mel's end."""
        return self._context is not None

    def certain(self, mel: Tensor, n_certain: int) -> Iterator[np.ndarray]:
        """The audio that is certain while the mel still grows, float32 [n] each.

        Args:
            mel: log-mel from the beginning, [n_mel_channels, T].
            n_certain: frames that will be spoken, whatever follows.
        """
        while self._context is not None and self.n_spoken + self._size + self._context.after <= n_certain:
            yield self._next(mel[:, :n_certain], self.n_spoken + self._size, self._context)

    def rest(self, mel: Tensor) -> Iterator[tuple[np.ndarray, bool]]:
        """The other audio of a mel that has ended, and whether it is the last; some, though empty, if there is none."""
        n_frames = mel.shape[1]
        if self.n_spoken >= n_frames:
            yield np.zeros(0, np.float32), True
        elif self._context is None:
            self.n_spoken = n_frames
            yield self._vocoder.vocode(mel[None], [n_frames], [self._seed])[0], True
        else:
            while self.n_spoken < n_frames:
                audio = self._next(mel, min(self.n_spoken + self._size, n_frames), self._context)
                yield audio, self.n_spoken == n_frames

    def _next(self, mel: Tensor, stop: int, context: Context) -> np.ndarray:
        """The audio up to frame `stop`."""
        start, self.n_spoken, self._size = self.n_spoken, stop, next(self._sizes)
        first = max(0, start - context.before) // context.step * context.step
        last = min(mel.shape[1], stop + context.after)
        audio = self._vocoder.vocode(mel[None, :, first:last], [last - first], [self._seed], first)[0]
        return audio[(start - first) * self._hop : (stop - first) * self._hop]


def speak_while_decoding(acoustic: Acoustic, attempts: Attempts, chunks: Chunks) -> Generator[np.ndarray, None, None]:
    """Makes the first attempt at a sentence, and hands out audio that cannot be cut any more.

    An attempt that is known to be faulty before its first chunk leaves no audio; its sentence is to be completed as
    usual. Once a chunk was handed out, there are no further attempts.
    """
    watch = Watch(attempts.task.n_sounding, acoustic.seconds_per_step)
    r = acoustic.frames_per_step
    mel, alignment, n_enough = torch.zeros(0), np.zeros((0, len(attempts.task.symbols)), np.float32), None
    with closing(acoustic.pieces(attempts.task.symbols, attempts.seed, PIECE_FRAMES)) as pieces:
        for piece in pieces:
            mel = piece.mel if not mel.numel() else torch.cat((mel, piece.mel), dim=1)
            alignment = np.concatenate((alignment, piece.alignment))
            n_safe = watch.push(piece.alignment)
            if piece.ended:
                break
            if watch.fault is not Fault.NONE and not chunks.n_spoken:
                attempts.postpone(watch.fault)
                return
            if watch.fault is Fault.RUNS_ON:  # it will be cut in what is decoded, once the mel has come so far
                n_enough = n_enough or len(alignment)
                if mel.shape[1] >= n_enough * r:
                    alignment = alignment[: mel.shape[1] // r]
                    break
            yield from chunks.certain(mel, min(mel.shape[1], n_safe * r))
    attempts.limit = acoustic.max_steps
    attempts.record(Decoded(mel[:, : len(alignment) * r], alignment, piece.ended and piece.stopped))
    if chunks.n_spoken:
        attempts.settle()
