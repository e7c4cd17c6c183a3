"""The results of a synthesis."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from fastglow.text.sequence import Span

from .reading import Fault, Reading
from .silence import Silence
from .word_times import Clock, Word, word_times


class Seconds(NamedTuple):
    """Time spent; the entries of `Speech.timings`."""

    acoustic: float = 0.0
    vocoder: float = 0.0
    total: float = 0.0

    def plus(self, other: "Seconds") -> "Seconds":
        return Seconds(*(a + b for a, b in zip(self, other, strict=True)))


class WordSource(NamedTuple):
    """What a sentence's words are made of: their symbols, found when they are asked for, and the times of steps."""

    written: Callable[[], list[Span]]
    clock: Clock


@dataclass
class Sentence:
    """The synthesis of one sentence.

    Attributes:
        text: as split from the input, before cleaning; without tags and pause marks.
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
        word_source: what `words` are made of.
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
    word_source: WordSource | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the front end and its lexicon, which `word_source` refers to."""
        return {**self.__dict__, "words": self.words, "word_source": None}

    @cached_property
    def words(self) -> list[Word]:
        """The words of `text` and when they are heard, in seconds from the beginning of `audio`.

        A word is what stands between white space, as far as it is spoken: neither emoji nor dashes. Times come from the
        attention, see `fastglow.engine.word_times`: there are none if it is illegible.
        """
        if self.word_source is None or not self.reading.legible or not len(self.audio):
            return []
        return word_times(self.alignment, self.word_source.written(), self.word_source.clock)

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
    def starts(self) -> list[int]:
        """The sample of `audio` at which each sentence begins; one without audio has the end of those before it."""
        return self._laid_out()[0]

    @property
    def audio(self) -> np.ndarray:
        """float32 [N]: the sentences and the silence around them; empty if there was nothing to speak."""
        starts, end = self._laid_out()
        audio = np.zeros(end, np.float32)
        for start, sentence in zip(starts, self.sentences, strict=True):
            audio[start : start + len(sentence.audio)] = sentence.audio
        return audio

    @property
    def words(self) -> list[Word]:
        """The words of all sentences, as `Sentence.words`, in seconds from the beginning of `audio`."""
        begins = [start / self.sample_rate for start in self.starts]
        return [
            Word(word.text, begin + word.start, begin + word.end)
            for begin, sentence in zip(begins, self.sentences, strict=True)
            for word in sentence.words
        ]

    def _laid_out(self) -> tuple[list[int], int]:
        """Where each sentence begins in `audio`, and where it ends, in samples."""
        silence = Silence(self.sentence_silence, self.sample_rate)
        starts, end = [], 0
        for sentence in self.sentences:
            silence.ask(sentence.pause_before)
            if len(sentence.audio):
                end += silence.before_audio()
            starts.append(end)
            end += len(sentence.audio)
            silence.ask(sentence.pause_after)
        return starts, end + silence.certain()

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
