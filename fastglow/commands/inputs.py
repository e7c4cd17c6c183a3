"""What `fastglow synth` reads: a whole text, or lines as they arrive."""

import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fastglow.errors import FastglowError
from fastglow.text_files import decode_argument, decode_text, read_text

_READ_AT_ONCE = 1 << 16  # bytes


class Line(NamedTuple):
    """A line of an input.

    Attributes:
        source: the input's name.
        number: in the input, from 1.
        position: in all inputs together, from 1.
        data: without its end.
    """

    source: str
    number: int
    position: int
    data: bytes

    @property
    def place(self) -> str:
        return f"{self.source}:{self.number}"


def check_inputs(inputs: tuple[str, ...]) -> None:
    """Raises FastglowError unless the files exist and standard input, if it is one of them, can be read."""
    if inputs.count("-") > 1:
        raise FastglowError("--input - is given more than once: standard input can be read only once")
    if "-" in (inputs or "-") and (sys.stdin is None or sys.stdin.isatty()):
        raise FastglowError("no text given: pass it as an argument, with -i FILE, or on standard input")
    for path in inputs:
        try:
            if path != "-":
                os.stat(path)
        except OSError as error:
            raise FastglowError(f"cannot read {path}: {error.strerror}") from error


def read_whole(arguments: tuple[str, ...], inputs: tuple[str, ...]) -> str:
    """The text of the arguments, or of the inputs, one after the other.

    Raises:
        FastglowError: both are given, neither is, or an input cannot be read or is not text.
    """
    if arguments and inputs:
        raise FastglowError(f"text given both as an argument and as --input {inputs[0]}: pass one of them")
    if arguments:
        return decode_argument(" ".join(arguments))
    check_inputs(inputs)
    # A blank line ends a sentence.
    return "\n\n".join(_read_standard_input() if path == "-" else read_text(path) for path in inputs or ("-",))


def read_windows(inputs: tuple[str, ...], most: int) -> Iterator[list[Line]]:
    """The lines of all inputs, 1 to `most` at a time: a pipe is waited for only while no line is there.

    Raises:
        FastglowError: an input cannot be read.
    """
    index = 0
    for path in inputs or ("-",):
        source = "standard input" if path == "-" else path
        number = 0
        with _opened(path, source) as descriptor:
            for window in _windows(descriptor, most):
                yield [Line(source, number + i, index + i, data) for i, data in enumerate(window, 1)]
                number += len(window)
                index += len(window)


def count_lines(inputs: tuple[str, ...]) -> int | None:
    """Number of lines that are not blank; None if an input is not a regular file."""
    if not inputs or not all(os.path.isfile(path) for path in inputs):
        return None
    n_lines = 0
    for path in inputs:
        with open(path, "rb") as file:
            n_lines += sum(1 for line in file if line.strip())
    return n_lines


def _read_standard_input() -> str:
    try:
        return decode_text(sys.stdin.buffer.read(), "standard input")
    except OSError as error:
        raise FastglowError(f"cannot read standard input: {error.strerror}") from error


def _windows(descriptor: int, most: int) -> Iterator[list[bytes]]:
    lines: deque[bytes] = deque()
    rest, ended = b"", False
    while lines or not ended:
        while not ended and len(lines) < most and (not lines or _has_data(descriptor)):
            data = os.read(descriptor, _READ_AT_ONCE)
            ended = not data
            *whole, rest = (rest + data).split(b"\n")
            lines.extend(whole)
            if ended and rest:
                lines.append(rest)
        if lines:
            yield [lines.popleft() for _ in range(min(most, len(lines)))]


def _has_data(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _opened(path: str, name: str) -> Iterator[int]:
    try:
        if path == "-":
            yield sys.stdin.fileno()
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FastglowError(f"cannot read {name}: {error.strerror}") from error
