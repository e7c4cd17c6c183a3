"""Reads and writes audio files and streams."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike

from fastglow.audio.containers import check_complete, with_known_length
from fastglow.errors import FastglowError
from fastglow.files import replacing

from .encoder import Encoder, check_available, to_pcm16
from .formats import FORMATS
from .mp3 import counts_mp3_frames, with_frame_count

if TYPE_CHECKING:
    from torch import Tensor

_DECODED_AT_ONCE = 1 << 16  # frames
# Encoders disagree on whether to count the first and last frames, of 1152 samples each.
_MP3_SLACK = 2 * 1152


class ByteSink(Protocol):
    """A binary stream to write to."""

    def write(self, data: memoryview, /) -> int | None: ...


def read_audio(path: str | os.PathLike[str], sampling_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Reads a WAV, FLAC, Ogg or MP3 file (anything libsndfile knows) -> (audio, sampling rate in Hz).

    The audio is mono, float32 [N], finite and in [-1, 1]. Several channels are averaged. If `sampling_rate` is
    given, soxr ("HQ") resamples other rates to it, with a warning (once per pair of rates under Python's default
    filter). Decoders and resampling filters overshoot: audio that would leave [-1, 1] is scaled down to peak at 1,
    with a warning if that is more than 1 dB.

    A file that was written to a pipe, so that its header has no length, is read to its end.

    Raises FastglowError, naming the file, if it is missing, unreadable, empty, shorter than its header declares
    (WAV, RF64, Wave64, AIFF, AU, FLAC, Ogg and most MP3 files declare it) or holds NaN or infinity.
    """
    path = Path(path)
    if sampling_rate is not None and sampling_rate < 1:
        raise FastglowError(f"sampling_rate={sampling_rate} must be positive")
    if not os.path.exists(path):  # unlike Path.exists, accepts names that no file can have
        raise FastglowError(f"{path}: no such audio file")
    if path.is_dir():
        raise FastglowError(f"{path}: is a folder, must be an audio file")
    try:
        samples, rate = _decode(path)
    except FastglowError:
        raise
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError, MemoryError) as error:
        # soundfile raises TypeError for a headerless file with the suffix .raw, the last two for absurd sizes.
        reason = " ".join(str(getattr(error, "error_string", error)).split())
        raise FastglowError(f"{path}: cannot be read as audio: {reason}") from error
    if path.is_file():
        check_complete(path)
    if samples.size == 0:
        raise FastglowError(f"{path}: has no audio samples")
    if not np.isfinite(samples).all():
        raise FastglowError(f"{path}: has samples that are NaN or infinite")
    # In fp64: a sum of channels may overflow float32.
    audio = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    if sampling_rate is not None and sampling_rate != rate:
        warnings.warn(f"resampling audio from {rate} Hz to {sampling_rate} Hz", stacklevel=2)
        audio = soxr.resample(audio, rate, sampling_rate)
        if audio.size == 0:
            raise FastglowError(f"{path}: is too short to resample from {rate} to {sampling_rate} Hz")
        rate = sampling_rate
    peak = float(np.abs(audio).max())
    if peak > 1.0:
        if peak > 1.12:
            warnings.warn(f"{path}: peaks at {peak:g}, scaled down to 1", stacklevel=2)
        # In fp64, so that no rounded quotient exceeds 1.
        audio = (audio / np.float64(peak)).astype(np.float32)
    return audio, rate


class _OneWay(soundfile.SoundFile):
    """Reads from front to back: soundfile seeks after every read, which fails if the length is unknown."""

    def seekable(self) -> bool:
        return False


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """(samples, float32 [N, channels]; sampling rate)."""
    source: Path | io.BytesIO = path
    is_regular = path.is_file()  # a pipe can be read only once
    if is_regular:
        source = with_frame_count(path) or with_known_length(path) or path
    blocks: list[np.ndarray] = []
    with _OneWay(source) as file:
        while not blocks or len(blocks[-1]) == _DECODED_AT_ONCE:
            blocks.append(file.read(_DECODED_AT_ONCE, dtype="float32", always_2d=True))
        samples = np.concatenate(blocks)
        is_short = len(samples) + _MP3_SLACK < file.frames
        if is_short and is_regular and file.format == "MP3" and counts_mp3_frames(path):
            raise FastglowError(
                f"{path}: is cut short: its header declares {file.frames} samples, the file has {len(samples)}; "
                "copy or record it again"
            )
        return samples, file.samplerate


def write_audio(
    target: str | os.PathLike[str] | ByteSink,
    audio: ArrayLike | Tensor,
    sampling_rate: int,
    format: str | None = None,
) -> int:
    """Writes mono audio and returns the number of clipped samples.

    Args:
        target: a path, or a binary stream, which need not be seekable (a pipe).
        audio: array or tensor [N], floating point in [-1, 1], on any device. Rounded to 16 bits; samples outside
            are clipped, with a warning.
        sampling_rate: in Hz. A rate that MP3 or Opus lacks is resampled to their next higher one: Opus writes
            22,050 Hz as 24,000.
        format: "wav" or "flac" (16-bit PCM), "mp3", "ogg" (Vorbis) or "opus"; default: the path's suffix in any
            case, "wav" for a stream.

    A file is written under a temporary name in the same folder and then renamed, so it appears complete or not at
    all; devices and named pipes are written directly. A stream's own errors pass through.

    Raises:
        FastglowError: audio that is not [N], not floating point, empty or not finite, an unknown format, or a path
            that cannot be written.
    """
    if isinstance(target, str | os.PathLike):
        format = check_format(target, format)
    else:
        format = check_format("", format or "wav")
    pcm, n_clipped = to_pcm16(audio)
    _check_any(pcm)
    data = _encode(pcm, sampling_rate, format)
    if not isinstance(target, str | os.PathLike):
        _write_all(target, data)
    else:
        write_encoded(target, data)
    return n_clipped


def write_encoded(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a whole audio file as `write_audio` does: it appears complete or not at all.

    Raises:
        FastglowError: the path cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise FastglowError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_pcm16(stream: ByteSink, audio: ArrayLike | Tensor) -> None:
    """Writes mono audio as 16-bit little-endian PCM without a header.

    `audio` [N] is rounded, and clipped with a warning, as by `write_audio`. A stream's own errors pass through.

    Raises:
        FastglowError: audio that is not [N], not floating point, empty or not finite.
    """
    pcm, _ = to_pcm16(audio)
    _check_any(pcm)
    _write_all(stream, pcm.astype("<i2").tobytes())


def check_format(path: str | os.PathLike[str], format: str | None = None) -> str:
    """The name of the format that `write_audio` would use.

    Raises:
        FastglowError: the format is unknown, or this machine's libsndfile cannot write it.
    """
    format = (Path(path).suffix.removeprefix(".") if format is None else format).lower()
    name = f"{path}: " if path else ""
    if format not in FORMATS:
        known = ", ".join("." + suffix for suffix in FORMATS)
        raise FastglowError(f"{name}cannot write audio as {format!r}: use one of {known}")
    check_available(format, name)
    return format


def _check_any(pcm: np.ndarray) -> None:
    if pcm.size == 0:
        raise FastglowError("audio has 0 samples, must have at least one")


def _encode(pcm: np.ndarray, sampling_rate: int, format: str) -> bytes:
    # In memory, because libsndfile seeks back to complete the header.
    buffer = io.BytesIO()
    encoder = Encoder(buffer, format, sampling_rate)
    encoder.write(pcm)
    encoder.close()
    return buffer.getvalue()


def _write_all(stream: ByteSink, data: bytes) -> None:
    # An unbuffered stream may write only part of the data.
    rest = memoryview(data)
    while rest:
        taken = stream.write(rest)
        rest = rest[len(rest) if taken is None else taken :]
