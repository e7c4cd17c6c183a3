"""Audio files and streams, in and out."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import soundfile
import soxr

from fastglow.audio.containers import check_complete, counts_mp3_frames, with_known_length
from fastglow.errors import FastglowError
from fastglow.files import replacing

from .formats import FORMATS

# libsndfile's Vorbis encoder keeps on the stack what it is given at once, and overflows it with long audio.
_ENCODED_AT_ONCE = 1 << 14  # samples

# What libsndfile says of a FLAC stream whose header has no length is about 2**63.
_UNKNOWN_FRAMES = 2**62
_DECODED_AT_ONCE = 1 << 16  # frames
# Encoders do not agree on whether the first and last frames count, which have 1152 samples.
_MP3_SLACK = 2 * 1152


def read_audio(path, sampling_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Reads a WAV, FLAC, Ogg or MP3 file (anything libsndfile knows) -> (audio, sampling rate in Hz).

    The audio is mono, float32 [N], finite and in [-1, 1]. Several channels are averaged. With
    `sampling_rate` given, other rates are resampled to it by soxr ("HQ"), which is told by a warning (once
    per pair of rates under Python's default filter). Decoders and resampling filters overshoot: audio that
    would leave [-1, 1] is scaled down to peak at 1, told by a warning if it was more than 1 dB.

    What was written to a pipe, whose header could not know the length, is read to its end.

    Raises FastglowError, naming the file, when it is missing, unreadable, empty, shorter than its header claims
    (WAV, RF64, Wave64, AIFF, AU, FLAC, Ogg and most MP3 files tell) or holds NaN or infinity.
    """
    path = Path(path)
    if sampling_rate is not None and sampling_rate < 1:
        raise FastglowError(f"sampling_rate must be positive, not {sampling_rate}")
    if not os.path.exists(path):  # no error for a name that no file can have
        raise FastglowError(f"{path}: no such audio file")
    if path.is_dir():
        raise FastglowError(f"{path}: is a folder, not an audio file")
    try:
        samples, rate = _decode(path)
    except FastglowError:
        raise
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError, MemoryError) as error:
        # TypeError is soundfile's answer to a headerless file with the suffix .raw, the last two are to absurd sizes.
        reason = " ".join(str(getattr(error, "error_string", error)).split())
        raise FastglowError(f"{path}: cannot be read as audio: {reason}") from error
    if path.is_file():
        check_complete(path)
    if samples.size == 0:
        raise FastglowError(f"{path}: holds no audio samples")
    if not np.isfinite(samples).all():
        raise FastglowError(f"{path}: holds samples that are NaN or infinite")
    # In fp64: a sum of channels may be beyond float32.
    audio = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    if sampling_rate is not None and sampling_rate != rate:
        warnings.warn(f"resampling audio from {rate} Hz to {sampling_rate} Hz", stacklevel=2)
        audio = soxr.resample(audio, rate, sampling_rate)
        if audio.size == 0:
            raise FastglowError(f"{path}: too short to be resampled from {rate} to {sampling_rate} Hz")
        rate = sampling_rate
    peak = float(np.abs(audio).max())
    if peak > 1.0:
        if peak > 1.12:
            warnings.warn(f"{path}: peaks at {peak:g}, scaled down to 1", stacklevel=2)
        # fp64 division so that no rounded quotient exceeds 1.
        audio = (audio / np.float64(peak)).astype(np.float32)
    return audio, rate


class _OneWay(soundfile.SoundFile):
    """Read from front to back: soundfile seeks after every read, which fails where the length is unknown."""

    def seekable(self) -> bool:
        return False


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """All samples, float32 [N, channels], and their rate."""
    is_regular = path.is_file()  # a pipe could not be read a second time
    with soundfile.SoundFile((with_known_length(path) if is_regular else None) or path) as file:
        if file.frames < _UNKNOWN_FRAMES:
            samples = file.read(dtype="float32", always_2d=True)
            if file.format == "MP3" and len(samples) + _MP3_SLACK < file.frames and counts_mp3_frames(path):
                raise FastglowError(
                    f"{path}: is cut short: its header claims {file.frames} samples, {len(samples)} are there; "
                    "copy or record it anew"
                )
            return samples, file.samplerate
    blocks = []
    with _OneWay(path) as file:
        while not blocks or len(blocks[-1]) == _DECODED_AT_ONCE:
            blocks.append(file.read(_DECODED_AT_ONCE, dtype="float32", always_2d=True))
        return np.concatenate(blocks), file.samplerate


def write_audio(target, audio, sampling_rate: int, format: str | None = None) -> int:
    """Writes mono audio and returns how many samples had to be clipped.

    `target` is a path or a binary stream with a `write` method, which need not be seekable (a pipe). `audio`
    is a floating-point NumPy array or torch tensor [N] on any device, in [-1, 1]; samples are rounded to
    the nearest step, and those outside are clipped to the loudest value, never wrapped around, with a
    warning. `format` is "wav" or "flac" (16-bit PCM), "mp3", "ogg" (Vorbis) or "opus"; by default it is the
    path's suffix in capitals or not, and "wav" for a stream. A rate that MP3 or Opus lacks is resampled to the next
    one that it has: Opus writes 22,050 Hz as 24,000.

    A file is written under a temporary name in the same folder and then renamed, so it appears complete or
    not at all; devices and named pipes are written to directly. Raises FastglowError for audio that is not
    [N], not floating point, empty or not finite, for an unknown format and for a path that cannot be
    written; errors of a stream are left to its owner.
    """
    is_stream = hasattr(target, "write")
    if is_stream:
        format = check_format("", format or "wav")
    else:
        format = check_format(target, format)
    pcm, n_clipped = _to_pcm16(audio)
    data = _encode(pcm, sampling_rate, format)
    if is_stream:
        _write_all(target, data)
    else:
        try:
            with replacing(target) as path:
                path.write_bytes(data)
        except OSError as error:
            raise FastglowError(f"{target}: cannot be written: {error.strerror or error}") from error
    if n_clipped:
        warnings.warn(f"{n_clipped} of {pcm.size} samples were outside [-1, 1] and clipped", stacklevel=2)
    return n_clipped


def check_format(path, format: str | None = None) -> str:
    """The name of the format that `write_audio` would use.

    Raises:
        FastglowError: there is no such format, or the libsndfile of this machine cannot write it.
    """
    format = (Path(path).suffix.removeprefix(".") if format is None else format).lower()
    name = f"{path}: " if path else ""
    if format not in FORMATS:
        known = ", ".join("." + suffix for suffix in FORMATS)
        raise FastglowError(f"{name}cannot write audio as {format!r}: supported are {known}")
    container, subtype = FORMATS[format].container, FORMATS[format].subtype
    if container not in soundfile.available_formats() or subtype not in soundfile.available_subtypes(container):
        raise FastglowError(
            f"{name}libsndfile {soundfile.__libsndfile_version__} cannot write {format!r}: install a newer soundfile, "
            "or use .wav or .flac"
        )
    return format


def _to_pcm16(audio) -> tuple[np.ndarray, int]:
    """float [N] -> (int16 [N], how many samples lay outside [-1, 1])."""
    if hasattr(audio, "detach"):
        # .double() because NumPy has no bf16.
        if not audio.is_floating_point():
            raise FastglowError(f"audio must be floating point in [-1, 1], not {audio.dtype}")
        audio = audio.detach().double().cpu().numpy()
    audio = np.asarray(audio)
    if audio.ndim != 1:
        raise FastglowError(f"audio must have shape [N], not {list(audio.shape)}: write one clip at a time")
    if not np.issubdtype(audio.dtype, np.floating):
        raise FastglowError(f"audio must be floating point in [-1, 1], not {audio.dtype}")
    if audio.size == 0:
        raise FastglowError("there is no audio to write: it has 0 samples")
    if not np.isfinite(audio).all():
        raise FastglowError("audio holds samples that are NaN or infinite")
    # 32768 steps to 1.0 is how 16-bit files are read, so what was read is written back bit for bit.
    steps = np.rint(audio.astype(np.float64) * 32768.0)
    n_clipped = int((np.abs(steps) > 32768).sum())
    return np.clip(steps, -32768, 32767).astype(np.int16), n_clipped


def _encode(pcm: np.ndarray, sampling_rate: int, name: str) -> bytes:
    format = FORMATS[name]
    rate = format.rate_for(sampling_rate)
    audio = pcm
    if rate != sampling_rate and sampling_rate > 0:
        audio = soxr.resample(pcm / np.float32(32768), sampling_rate, rate).clip(-1, 1)
    # In memory, because libsndfile must seek back to complete the header.
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", rate, 1, format.subtype, format=format.container) as file:
            for start in range(0, len(audio), _ENCODED_AT_ONCE):
                file.write(audio[start : start + _ENCODED_AT_ONCE])
    except soundfile.LibsndfileError as error:
        raise FastglowError(f"cannot write {name} at {rate} Hz: {error.error_string}") from error
    return buffer.getvalue()


def _write_all(stream, data: bytes) -> None:
    # An unbuffered stream may take only part of what it is given.
    rest = memoryview(data)
    while rest:
        taken = stream.write(rest)
        rest = rest[len(rest) if taken is None else taken :]
