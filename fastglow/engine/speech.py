"""The results of a synthesis."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from .reading import Fault, Reading
from .silence import Silence


class Seconds(NamedTuple):
    """Time spent; the entries of `Speech.timings`."""

    acoustic: float = 0.0
    vocoder: float = 0.0
    total: float = 0.0

    def plus(self, other: "Seconds") -> "Seconds":
        return Seconds(*(a + b for a, b in zip(self, other, strict=True)))


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
        cut: whether no attempt was right and the best one did not end, so that it was cut: after the end of the text,
            or else after the last progress of the attention. mel, alignment and audio end at the cut.
        pause_before: seconds of silence that the text's pause marks ask for between the sentence before, or the
            beginning, and this one; None: no marks.
        pause_after: likewise, between the last sentence and the end of the text.
    """

    text: str
    mel: np.ndarray
    alignment: np.ndarray
    audio: np.ndarray
    stopped: bool
    readings: tuple[Reading, ...] = (Reading(Fault.NONE),)
    cut: bool = False
    pause_before: float | None = None
    pause_after: float | None = None

    @property
    def attempts(self) -> int:
        """Number of decodings."""
        return len(self.readings)

    @property
    def reading(self) -> Reading:
        """Of the attempt that was used: the first of those with the lowest rank."""
        return min(self.readings, key=lambda reading: reading.rank)

    @property
    def fault(self) -> str | None:
        """What is wrong with the result: the name of a `Fault` in lower case."""
        return self.reading.fault.label

    @property
    def faults(self) -> list[str | None]:
        """What was wrong with each attempt."""
        return [reading.fault.label for reading in self.readings]


@dataclass
class Speech:
    """The synthesis of a text.

    Attributes:
        sentences: in order.
        sample_rate: Hz.
        seed: reproduces this result.
        sentence_silence: seconds between sentences without a pause mark between them.
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
        """float32 [N]: the sentences and the silence around them; empty if there was nothing to speak."""
        silence = Silence(self.sentence_silence, self.sample_rate)
        parts: list[np.ndarray] = []
        for sentence in self.sentences:
            silence.ask(sentence.pause_before)
            if len(sentence.audio):
                parts += [np.zeros(silence.before_audio(), np.float32), sentence.audio]
            silence.ask(sentence.pause_after)
        parts.append(np.zeros(silence.certain(), np.float32))
        return np.concatenate(parts)

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
