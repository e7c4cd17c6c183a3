"""The results of a synthesis."""

from dataclasses import dataclass, field

import numpy as np
import torch

from fastglow.errors import FastglowError

from .reading import Fault, Reading


@dataclass
class Sentence:
    """The synthesis of one sentence.

    Attributes:
        text: as split from the input, before cleaning.
        mel: log-mel, float32 [n_mel_channels, frames].
        alignment: attention weights, float32 [decoder steps, symbols].
        audio: float32 [samples] in [-1, 1], with its final level and fades.
        stopped: whether it ends where the model's stop gate fired. If not, and it was not cut, the decoder ran to its
            step limit and the end of the text may be missing.
        readings: what attention and gate say of each attempt: decodings with other seeds, until one had no fault or no
            attempt was left.
        cut: whether every attempt went on past the end of the text, so that the result was cut there; mel, alignment
            and audio end at the cut.
    """

    text: str
    mel: np.ndarray
    alignment: np.ndarray
    audio: np.ndarray
    stopped: bool
    readings: tuple[Reading, ...] = (Reading(Fault.NONE),)
    cut: bool = False

    @property
    def attempts(self) -> int:
        """Number of decodings."""
        return len(self.readings)

    @property
    def reading(self) -> Reading:
        """Of the attempt that was used: the first of those with the lowest rank."""
        return min(self.readings, key=lambda reading: reading.rank)


@dataclass
class Speech:
    """The synthesis of a text.

    Attributes:
        sentences: in order.
        sample_rate: Hz.
        seed: reproduces this result.
        sentence_silence: seconds between the sentences.
        timings: seconds spent: 'acoustic' (text to mel), 'vocoder' (mel to audio), 'total'.
    """

    sentences: list[Sentence]
    sample_rate: int
    seed: int
    sentence_silence: float
    n_mel_channels: int
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def audio(self) -> np.ndarray:
        """float32 [N]: the sentences, separated by silence; empty if there was nothing to speak."""
        silence = silence_of(self.sentence_silence, self.sample_rate)
        parts = [part for sentence in self.sentences for part in (silence, sentence.audio)]
        return np.concatenate(parts[1:]) if parts else np.zeros(0, np.float32)

    @property
    def mel(self) -> np.ndarray:
        """float32 [n_mel_channels, frames]: the sentences' mels, concatenated."""
        if not self.sentences:
            return np.zeros((self.n_mel_channels, 0), np.float32)
        return np.concatenate([sentence.mel for sentence in self.sentences], axis=1)

    @property
    def alignment(self) -> np.ndarray:
        """float32 [decoder steps, symbols]: the sentences' alignments, block diagonal."""
        blocks = [torch.from_numpy(sentence.alignment) for sentence in self.sentences]
        return torch.block_diag(*blocks).numpy() if blocks else np.zeros((0, 0), np.float32)

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate


def silence_of(seconds: float, sampling_rate: int) -> np.ndarray:
    """Zeros, float32; raises FastglowError unless 0 <= seconds <= 60."""
    if not 0 <= seconds <= 60:
        raise FastglowError(f"sentence_silence={seconds} must be between 0 and 60 seconds")
    return np.zeros(round(seconds * sampling_rate), np.float32)
