"""Encodes audio, whole or piece by piece while it is made."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, BinaryIO, TypeGuard

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike

from fastglow.errors import FastglowError

from .formats import STREAM_FORMATS
from .mp3 import mp3_frame_bytes

if TYPE_CHECKING:
    from torch import Tensor

# libsndfile's Vorbis encoder keeps each call's samples on the stack, which long audio overflows.
_ENCODED_AT_ONCE = 1 << 14  # samples

# Beyond, libsndfile crashes.
_HIGHEST_VORBIS_RATE = 200_000

# libsndfile's commands, for which soundfile has no names in all its versions.
_SET_COMPRESSION_LEVEL, _SET_OGG_PAGE_MILLISECONDS, _SET_BITRATE_MODE = 0x1301, 0x1302, 0x1305
_CONSTANT_BITRATE = 0


class StreamEncoder:
    """Encodes mono audio while it is made: each `push` returns what is complete.

    A stream has no lengths in its headers, because they leave before the end is known. Its samples are as in a file of
    `write_audio`, but MP3 has a constant bitrate and begins with the codec's delay of 1105 samples, and Opus ends with
    40 ms of silence. However the audio is split into calls, the bytes are the same, except for the serial numbers of
    Ogg streams, which libsndfile draws. FLAC is behind by 4096 samples, Vorbis by a page of 4 KB, which holds 0.7 to
    2 s, the others by at most 0.2 s.

    Memory does not grow with the length. Encoders in different threads are independent; one is for one thread at a
    time. An encoder that is dropped leaves nothing behind.

    Args:
        format: "wav", "flac", "mp3", "ogg" (Vorbis), "opus", or "pcm": 16-bit little-endian samples without a header,
            at 24,000 Hz.
        sampling_rate: of the audio, in Hz. Resampled, as by `write_audio`, if the format lacks it.

    Attributes:
        rate: sampling rate of the stream in Hz.
        media_type: as in HTTP's Content-Type.

    Raises:
        FastglowError: an unknown format, or a rate that it cannot have.
    """

    def __init__(self, format: str, sampling_rate: int):
        if format not in STREAM_FORMATS:
            raise FastglowError(f"format={format!r} must be one of {', '.join(STREAM_FORMATS)}")
        check_available(format)
        self._format = format
        self._sink = _Pipe()
        self._encoder = Encoder(self._sink, format, sampling_rate, for_stream=True)
        self._n_pushed = 0
        self._has_begun = self._is_finished = False
        self.rate = self._encoder.rate
        self.media_type = STREAM_FORMATS[format].media_type

    def push(self, audio: ArrayLike | Tensor) -> bytes:
        """Audio [n] in [-1, 1], floating point, n >= 0 -> the stream's next bytes, often none.

        Samples outside are clipped, with a warning.

        Raises FastglowError for audio that is not [n], not floating point or not finite.
        """
        self._check_unfinished()
        pcm, _ = to_pcm16(audio)
        self._n_pushed += len(pcm)
        self._encoder.write(pcm)
        return self._taken()

    def finish(self) -> bytes:
        """The rest. An empty stream has one sample of silence, because players refuse one without ("pcm" has none)."""
        self._check_unfinished()
        if not self._n_pushed and self._format != "pcm":
            self._encoder.write(np.zeros(1, np.int16))
        self._is_finished = True
        self._encoder.close()
        return self._taken()

    def _check_unfinished(self) -> None:
        if self._is_finished:
            raise RuntimeError("this StreamEncoder is finished: use a new one for each stream")

    def _taken(self) -> bytes:
        data = self._sink.take()
        if self._has_begun or not data:
            return data
        self._has_begun = True
        if self._format == "mp3":
            # An empty frame, to be filled in with the length at the end. Empty, it would be heard as silence.
            size = mp3_frame_bytes(data[:4])
            return data if any(data[4:size]) else data[size:]
        if self._format == "wav":
            # What ffmpeg writes to a pipe: readers take it for "until the end".
            size = data.index(b"data") + 4
            return data[:4] + b"\xff" * 4 + data[8:size] + b"\xff" * 4 + data[size + 4 :]
        return data


class Encoder:
    """16-bit samples -> a file that libsndfile writes. Does not depend on how the samples are split into calls.

    Args:
        file: open for writing; seekable, for its header to be completed.
        name: in `STREAM_FORMATS`.
        sampling_rate: of the samples, in Hz.
        for_stream: for a file without lengths in its header, whose bytes should leave early.

    Attributes:
        rate: sampling rate of the file in Hz.

    Raises:
        FastglowError: libsndfile does not write this format at this rate.
    """

    def __init__(self, file: BinaryIO | _Pipe, name: str, sampling_rate: int, for_stream: bool = False):
        format = STREAM_FORMATS[name]
        if sampling_rate < 1:
            raise FastglowError(f"cannot write {name} at {sampling_rate} Hz: a sampling rate must be positive")
        if format.subtype == "VORBIS" and sampling_rate > _HIGHEST_VORBIS_RATE:
            raise FastglowError(f"cannot write {name} at {sampling_rate} Hz: use at most {_HIGHEST_VORBIS_RATE} Hz")
        self._name = name
        self.rate = format.rate_for(sampling_rate)
        self._resampler: soxr.ResampleStream | None = None
        if self.rate != sampling_rate:
            self._resampler = soxr.ResampleStream(sampling_rate, self.rate, 1)
        self._is_pcm = format.subtype == "PCM_16"
        # libsndfile fills Opus's last packet with old sound, which is heard as a click before the end.
        self._n_after = self.rate // 25 if for_stream and format.subtype == "OPUS" else 0
        # Vorbis extrapolates to before the first sample from all samples of the first call.
        self._first: np.ndarray | None = np.zeros(0, np.int16) if format.subtype == "VORBIS" else None
        endian = "LITTLE" if format.container == "RAW" else None
        try:
            self._file = soundfile.SoundFile(file, "w", self.rate, 1, format.subtype, endian, format.container)
        except soundfile.LibsndfileError as error:
            raise self._cannot(error) from error
        if for_stream and format.subtype == "OPUS":
            # Not pages of a second, which come late. These make a stream 5 % larger.
            self._command(_SET_OGG_PAGE_MILLISECONDS, "double", 100.0)
        elif for_stream and format.container == "MP3":
            # From the size of the first frames, players estimate how long the audio is, and some stop there: 96 kbit/s
            # for MPEG-1, else 64, or at the lowest rates 32.
            self._command(_SET_BITRATE_MODE, "int", _CONSTANT_BITRATE)
            self._command(_SET_COMPRESSION_LEVEL, "double", 0.78 if self.rate >= 32000 else 0.62)

    def _cannot(self, error: soundfile.LibsndfileError) -> FastglowError:
        return FastglowError(f"cannot write {self._name} at {self.rate} Hz: {error.error_string}")

    def _command(self, command: int, kind: str, value: float) -> None:
        # Private names: should soundfile change them, sound comes later, but comes.
        with contextlib.suppress(AttributeError):
            argument = soundfile._ffi.new(f"{kind} *", value)
            soundfile._snd.sf_command(self._file._file, command, argument, soundfile._ffi.sizeof(kind))

    def write(self, pcm: np.ndarray) -> None:
        """int16 [n], n >= 0."""
        self._write(self._resampled(pcm), is_last=False)

    def close(self) -> None:
        rest = self._resampled(np.zeros(0, np.int16), is_last=True)
        self._write(np.append(rest, np.zeros(self._n_after, rest.dtype)), is_last=True)
        self._file.close()

    def _resampled(self, pcm: np.ndarray, is_last: bool = False) -> np.ndarray:
        if self._resampler is None:
            return pcm
        audio = self._resampler.resample_chunk(pcm / np.float32(32768), last=is_last).clip(-1, 1)
        # libsndfile would multiply by 32767.
        return to_pcm16(audio)[0] if self._is_pcm else audio

    def _write(self, audio: np.ndarray, is_last: bool) -> None:
        if self._first is not None:
            audio = np.concatenate((self._first, audio))
            if len(audio) < _ENCODED_AT_ONCE and not is_last:
                self._first = audio
                return
            self._first = None
        try:
            for start in range(0, len(audio), _ENCODED_AT_ONCE):
                self._file.write(audio[start : start + _ENCODED_AT_ONCE])
        except soundfile.LibsndfileError as error:
            raise self._cannot(error) from error


class _Pipe:
    """A file that libsndfile writes, and whose bytes are taken while it does: what it writes to taken places is lost.

    libsndfile reads nothing.
    """

    def __init__(self) -> None:
        self._fresh = bytearray()
        self._position = self._end = 0

    def write(self, data: bytes) -> int:
        end = self._position + len(data)
        if end > self._end:
            self._fresh += data[self._end - self._position :]
            self._end = end
        self._position = end
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._end)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        fresh, self._fresh = bytes(self._fresh), bytearray()
        return fresh


def check_available(name: str, where: str = "") -> None:
    """Raises FastglowError, which begins with `where`, if this machine's libsndfile cannot write a format."""
    container, subtype = STREAM_FORMATS[name].container, STREAM_FORMATS[name].subtype
    if container not in soundfile.available_formats() or subtype not in soundfile.available_subtypes(container):
        raise FastglowError(
            f"{where}libsndfile {soundfile.__libsndfile_version__} cannot write {name!r}: install a newer soundfile, "
            "or use .wav or .flac"
        )


def to_pcm16(audio: ArrayLike | Tensor) -> tuple[np.ndarray, int]:
    """Floating-point array or tensor [N] -> (int16 [N], number of samples outside [-1, 1]).

    These are clipped, with a warning for the caller's caller. Raises FastglowError for another shape or dtype, NaN or
    infinity.
    """
    if _is_tensor(audio):
        if not audio.is_floating_point():
            raise FastglowError(f"audio has dtype {audio.dtype}, must be floating point in [-1, 1]")
        # .double() because NumPy has no bf16.
        audio = audio.detach().double().cpu().numpy()
    samples = np.asarray(audio)
    if samples.ndim != 1:
        raise FastglowError(f"audio has shape {list(samples.shape)}, must be [N]: write one clip at a time")
    if not np.issubdtype(samples.dtype, np.floating):
        raise FastglowError(f"audio has dtype {samples.dtype}, must be floating point in [-1, 1]")
    if not np.isfinite(samples).all():
        raise FastglowError("audio has samples that are NaN or infinite")
    # Readers divide by 32768, too, so that audio from a file is written back bit for bit.
    steps = np.rint(samples.astype(np.float64) * 32768.0)
    n_clipped = int((np.abs(steps) > 32768).sum())
    if n_clipped:
        warnings.warn(f"{n_clipped} of {steps.size} samples were outside [-1, 1] and clipped", stacklevel=3)
    return np.clip(steps, -32768, 32767).astype(np.int16), n_clipped


def _is_tensor(audio: object) -> TypeGuard[Tensor]:
    return hasattr(audio, "detach")  # without importing torch
