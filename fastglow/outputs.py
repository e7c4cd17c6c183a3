"""Where the command writes speech: files, standard output, other descriptors, never a terminal."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastglow.errors import FastglowError
from fastglow.files import replacing

if TYPE_CHECKING:
    from fastglow.engine import Speech

_DESCRIPTOR = re.compile(r"/dev/(?:fd/(\d+)|(stdout)|(stderr))|/proc/self/fd/(\d+)")


def is_standard_output(path: str) -> bool:
    """Whether `path` is "-" or another name of standard output."""
    return path == "-" or _descriptor(path) == 1


def check_output(path: str) -> None:
    """Checks, before any speech is synthesised, that it can be written to `path`, or "-" for standard output.

    Raises:
        FastglowError: a terminal, or a path that cannot be written.
    """
    descriptor = _descriptor(path)
    if path == "-" and sys.stdout is None:
        raise FastglowError("standard output is closed: pass -o FILE.wav")
    if path != "-" and descriptor is None:
        check_writable(path)
    if _is_terminal(path, descriptor):
        raise FastglowError(
            f"audio is not written to a terminal ({path}): pass -o FILE.wav, or pipe it into a program, such as aplay"
        )


def output_format(path: str, format: str | None) -> str:
    """The name of the audio format to write to a path that `check_output` accepted.

    Args:
        path: of a file, or "-" for standard output.
        format: None: the path's suffix; WAV for a device, pipe or descriptor without a known suffix.

    Raises:
        FastglowError: an unknown format.
    """
    from fastglow.audio.formats import FORMATS
    from fastglow.audio.io import check_format

    if format is None and is_stream(path) and Path(path).suffix[1:].lower() not in FORMATS:
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


class ClosedPipeError(FastglowError):
    """The program that read the output has left."""


# What a shell reports of a program that SIGPIPE has ended, as it does most whose reader leaves.
CLOSED_PIPE = 128 + signal.SIGPIPE


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A stream to a path that `check_output` accepted. A regular file is replaced once the block has succeeded.

    Raises:
        FastglowError: the path cannot be written.
        ClosedPipeError: nobody reads any more.
    """
    descriptor = _descriptor(path)
    is_stdout = path == "-" or descriptor == 1 and sys.stdout is not None
    try:
        if is_stdout:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif descriptor is not None:
            with os.fdopen(os.dup(descriptor), "wb") as stream:
                yield stream
        else:
            with replacing(path) as temporary, open(temporary, "wb") as stream:
                yield stream
    except OSError as error:
        if is_stdout:
            discard_standard_output()
        kind = ClosedPipeError if isinstance(error, BrokenPipeError) else FastglowError
        raise kind(f"cannot write to {'standard output' if is_stdout else path}: {error.strerror}") from error


def discard_standard_output() -> None:
    """After a failed write: otherwise the interpreter would flush the rest at exit and report a second error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_speech(speech: "Speech", path: str, format: str) -> None:
    """Writes a `Speech` to a path that `check_output` accepted, in a format of `output_format`.

    Raises:
        FastglowError: the path cannot be written.
    """
    from fastglow.audio import write_audio

    with opened(path) as stream:
        write_audio(stream, speech.audio, speech.sample_rate, format)


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


def is_stream(path: str) -> bool:
    """Whether `path` is a device, pipe or descriptor: neither a file, present or to be made, nor a folder."""
    special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return special or path == "-" or _descriptor(path) is not None
