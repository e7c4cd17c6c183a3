"""What a synthesis gives back."""

from dataclasses import dataclass, field

import numpy as np
import torch

from fastglow.errors import FastglowError


@dataclass
class Sentence:
    """One sentence's synthesis.

    Attributes:
        text: as split from the input, before cleaning.
        mel: log-mel, float32 [n_mel_channels, frames].
        alignment: attention weights, float32 [decoder steps, symbols].
        audio: float32 [samples] in [-1, 1], at its final level and with its fades.
        stopped: whether it ends where the model's stop gate fired. If not, and it was not cut, the decoder ran to its
            step limit and the end of the text may be missing.
        attempts: how many times it was decoded, with another seed each, until nothing was wrong with it or no attempt
            was left.
        cut: whether it went on past the end of its text in every attempt, and so was cut there; mel, alignment and
            audio end at the cut.
    """

    text: str
    mel: np.ndarray
    alignment: np.ndarray
    audio: np.ndarray
    stopped: bool
    attempts: int = 1
    cut: bool = False


@dataclass
class Speech:
    """A text's synthesis.

    Attributes:
        sentences: one by one.
        sample_rate: Hz.
        seed: what to pass to get the same again.
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
        """float32 [N]: the sentences with silence between them; empty if there was nothing to speak."""
        silence = silence_of(self.sentence_silence, self.sample_rate)
        parts = [part for sentence in self.sentences for part in (silence, sentence.audio)]
        return np.concatenate(parts[1:]) if parts else np.zeros(0, np.float32)

    @property
    def mel(self) -> np.ndarray:
        """float32 [n_mel_channels, frames]: the sentences' mels one after the other."""
        if not self.sentences:
            return np.zeros((self.n_mel_channels, 0), np.float32)
        return np.concatenate([sentence.mel for sentence in self.sentences], axis=1)

    @property
    def alignment(self) -> np.ndarray:
        """float32 [decoder steps, symbols]: the sentences' alignments as blocks along the diagonal."""
        blocks = [torch.from_numpy(sentence.alignment) for sentence in self.sentences]
        return torch.block_diag(*blocks).numpy() if blocks else np.zeros((0, 0), np.float32)

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate


def silence_of(seconds: float, sampling_rate: int) -> np.ndarray:
    """Zeros, float32; raises FastglowError for a length that is none."""
    if not 0 <= seconds <= 60:
        raise FastglowError(f"sentence silence of {seconds} s: use 0 to 60 seconds")
    return np.zeros(round(seconds * sampling_rate), np.float32)
