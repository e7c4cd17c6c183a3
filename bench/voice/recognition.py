"""What an independent recogniser hears: pocketsphinx with its bundled model of US English.

It is weak: it errs on about a sixth to a quarter of the words of clear recordings. Its word error rate compares voices
and recordings of the same sentences; it is no absolute score.
"""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr

from bench import records

from .extra import require

RATE = 16_000  # Hz
PEAK = 0.7  # of full scale
MARGIN = RATE // 4  # samples of silence on both sides


class Recogniser(Protocol):
    """Writes down speech."""

    name: str  # with the version: transcripts are kept under it

    def hear(self, pcm: np.ndarray) -> str:
        """The words of 16-bit samples [N] at `RATE`, as `as_pcm` makes them."""


class Pocketsphinx:
    """pocketsphinx, whose every result is that of a new decoder.

    Raises:
        FastglowError: pocketsphinx is not installed.
    """

    def __init__(self) -> None:
        require("pocketsphinx", "word error rates")
        from pocketsphinx import Decoder

        self.name = f"pocketsphinx {metadata.version('pocketsphinx')}"
        self._decoder = Decoder(samprate=RATE, loglevel="FATAL")

    def hear(self, pcm: np.ndarray) -> str:
        # Otherwise the estimate of the noise, which is removed, would begin with that of the clip before.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.astype("<i2").tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


class Remembering:
    """A recogniser that hears the same samples only once, also in later runs.

    Args:
        recogniser: makes the transcripts that are missing.
        path: of the file that keeps transcripts under digests of the samples.
    """

    def __init__(self, recogniser: Recogniser, path: Path):
        self.recogniser = recogniser
        self.name = recogniser.name
        self._path = path
        self._known = {
            record["digest"]: record["heard"] for record in records.read(path) if {"digest", "heard"} <= record.keys()
        }

    def hear(self, pcm: np.ndarray) -> str:
        digest = hashlib.sha256(f"{self.name}\n".encode() + pcm.astype("<i2").tobytes()).hexdigest()
        if digest not in self._known:
            self._known[digest] = self.recogniser.hear(pcm)
            records.append(self._path, {"digest": digest, "heard": self._known[digest]})
        return self._known[digest]


def as_pcm(audio: np.ndarray, rate: int) -> np.ndarray:
    """Float audio [N] at `rate` Hz -> int16 [N'] at `RATE`, with a fixed peak, between two margins of silence."""
    resampled = soxr.resample(np.asarray(audio, np.float32), rate, RATE)
    peak = float(np.abs(resampled).max(initial=0.0))
    if peak > 0:
        resampled = resampled * np.float32(PEAK / peak)
    return (np.pad(resampled, MARGIN) * 32767).astype(np.int16)
