"""Where the command writes speech: files, standard output, other descriptors, never a terminal."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastglow.errors import FastglowError

if TYPE_CHECKING:
    from fastglow.engine import Speech

_DESCRIPTOR = re.compile(r"/dev/(?:fd/(\d+)|(stdout)|(stderr))|/proc/self/fd/(\d+)")


def is_standard_output(path: str) -> bool:
    """Whether `path` is "-" or another name of standard output."""
    return path == "-" or _descriptor(path) == 1


def check_output(path: str, format: str | None) -> str:
    """Checks, before any speech is synthesised, that it can be written; returns the audio format's name.

    Args:
        path: of a file, or "-" for standard output.
        format: None: the path's suffix; WAV for a device, pipe or descriptor without a known suffix.

    Raises:
        FastglowError: an unknown format, a terminal, or a path that cannot be written.
    """
    from fastglow.audio.formats import FORMATS
    from fastglow.audio.io import check_format

    descriptor = _descriptor(path)
    if path == "-" and sys.stdout is None:
        raise FastglowError("standard output is closed: pass -o FILE.wav")
    if path != "-" and descriptor is None:
        check_writable(path)
    if _is_terminal(path, descriptor):
        raise FastglowError(
            f"audio is not written to a terminal ({path}): pass -o FILE.wav, or pipe it into a program, such as aplay"
        )
    if format is None and _is_stream(path) and Path(path).suffix[1:].lower() not in FORMATS:
        format = "wav"
    return check_format("" if path == "-" else path, format)


def check_writable(path: str) -> None:
    """Raises FastglowError if `path` cannot be written."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise FastglowError(f"cannot write {path}: there is no folder {folder}")
    if Path(path).is_dir():
        raise FastglowError(f"cannot write {path}: it is a folder")
    if not os.access(folder if not os.path.exists(path) or os.path.isfile(path) else path, os.W_OK):
        raise FastglowError(f"cannot write {path}: no permission in {folder}")


def write_speech(speech: "Speech", path: str, format: str) -> None:
    """Writes a `Speech` to a path that `check_output` accepted.

    Raises:
        FastglowError: the path cannot be written.
    """
    from fastglow.audio import write_audio

    descriptor = _descriptor(path)
    if path == "-" or descriptor == 1 and sys.stdout is not None:
        try:
            write_audio(sys.stdout.buffer, speech.audio, speech.sample_rate, format)
            sys.stdout.buffer.flush()
        except OSError as error:
            # Otherwise the interpreter would flush the rest at exit and report a second error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise FastglowError(f"cannot write to standard output: {error.strerror}") from error
    elif descriptor is not None:
        try:
            with os.fdopen(os.dup(descriptor), "wb") as stream:
                write_audio(stream, speech.audio, speech.sample_rate, format)
        except OSError as error:
            raise FastglowError(f"cannot write to {path}: {error.strerror}") from error
    else:
        write_audio(path, speech.audio, speech.sample_rate, format)


def draws_progress(quiet: bool) -> bool:
    """Whether to draw a progress bar: only on a terminal."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


def _descriptor(path: str) -> int | None:
    """The descriptor that a path names, if any; its file must not be replaced."""
    match = _DESCRIPTOR.fullmatch(path)
    if match is None:
        return None
    number, stdout, stderr, other = match.groups()
    return 1 if stdout else 2 if stderr else int(number or other)


def _is_terminal(path: str, descriptor: int | None) -> bool:
    if path == "-":
        return sys.stdout.isatty()
    if descriptor is not None:
        try:
            os.fstat(descriptor)
        except OSError as error:
            raise FastglowError(f"cannot write {path}: descriptor {descriptor} is not open") from error
        return os.isatty(descriptor)
    if not Path(path).is_char_device():
        return False
    try:
        opened = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise FastglowError(f"cannot write {path}: {error.strerror}") from error
    try:
        return os.isatty(opened)
    finally:
        os.close(opened)


def _is_stream(path: str) -> bool:
    return path == "-" or _descriptor(path) is not None or (os.path.exists(path) and not os.path.isfile(path))
