"""A recording to a clip: read, check, resample, trim, compute the log-mel."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastglow.audio import MelConfig, MelSpectrogram, read_audio
from fastglow.errors import FastglowError
from fastglow.text import text_to_sequence

from .shards import Entry, Recording
from .sources import Source

TRIM_WINDOW = 512  # samples
_BLOCK = 2**20  # bytes


@dataclass(frozen=True)
class ClipOptions:
    """All that a clip depends on beside its recording and text; see `prepare`."""

    audio: MelConfig
    mel_dtype: str
    cleaners: Sequence[str]
    min_seconds: float
    max_seconds: float
    trim_db: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, flat."""
        values = asdict(self) | {"cleaners": list(self.cleaners)}
        return values.pop("audio") | values


class Made(NamedTuple):
    """A clip; without samples [N] int16 and mel [n_mel_channels, frames] if its entry has a reason to leave it out."""

    entry: Entry
    samples: np.ndarray | None = None
    mel: np.ndarray | None = None


class ClipMaker:
    """Makes clips, in any thread."""

    def __init__(self, options: ClipOptions):
        self.options = options
        self.mel_spectrogram = MelSpectrogram.from_config(options.audio)

    def __call__(self, source: Source) -> Made:
        entry = Entry(source.id, source.text, recording=recording_of(source.path))
        try:
            samples = self._samples(source)
            mel = self.mel_spectrogram(torch.from_numpy(samples.astype(np.float32) / 32768.0).unsqueeze(0))[0].numpy()
        except FastglowError as error:
            return Made(entry._replace(reason=str(error)))
        return Made(entry._replace(samples=len(samples), frames=mel.shape[1]), samples, mel)

    def _samples(self, source: Source) -> np.ndarray:
        options = self.options
        if not text_to_sequence(source.text, options.cleaners):
            raise FastglowError(f"text {source.text!r} has nothing to speak")
        rate = options.audio.sampling_rate
        samples, _ = read_audio(source.path, rate)
        if options.trim_db is not None:
            samples = trim_silence(samples, options.trim_db, keep=rate // 20)
        seconds = len(samples) / rate
        if not options.min_seconds <= seconds <= options.max_seconds:
            bounds = f"{options.min_seconds:g} to {options.max_seconds:g} s"
            raise FastglowError(f"{source.path} lasts {seconds:.2f} s, must be {bounds}")
        pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
        # A constant is silence too: 8-bit files and cheap converters have an offset.
        if pcm.min() == pcm.max():
            raise FastglowError(f"{source.path} is silent throughout")
        return pcm


def trim_silence(audio: np.ndarray, trim_db: float, keep: int) -> np.ndarray:
    """Cuts both ends where every window is more than `trim_db` below the loudest one, except `keep` samples."""
    n_windows = len(audio) // TRIM_WINDOW
    if n_windows == 0:
        return audio
    energy = np.square(audio[: n_windows * TRIM_WINDOW].reshape(n_windows, TRIM_WINDOW)).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-trim_db / 10))
    if len(loud) == 0:
        return audio
    return audio[max(0, loud[0] * TRIM_WINDOW - keep) : (loud[-1] + 1) * TRIM_WINDOW + keep]


def recording_of(path: Path) -> Recording:
    """The file as it is now, with the digest of its contents."""
    size, changed = _status(path)
    return Recording(str(path), size, changed, _digest(path) if size >= 0 else "")


def is_recording(known: Recording, path: Path) -> bool:
    """Whether `path` has the contents that `known` was made of; they are read unless path, size and time agree."""
    size, changed = _status(path)
    if size != known.size or size >= 0 and not known.digest:  # it could not be read, which says nothing of its contents
        return False
    return size < 0 or (known.path, known.changed) == (str(path), changed) or known.digest == _digest(path)


def _status(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, 0
    # Not the time of modification, which a program can set, as those do that copy or tag files.
    return (status.st_size, status.st_ctime_ns) if stat.S_ISREG(status.st_mode) else (-1, 0)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()[:32]
