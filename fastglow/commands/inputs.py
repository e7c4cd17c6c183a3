"""What `fastglow synth` reads: a whole text, or lines as they arrive."""

import os
import re
import select
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
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


@dataclass(frozen=True)
class Shard:
    """Every `count`-th line of all inputs together, from that of this index on, which counts from 0."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Raises FastglowError unless the text is I/N with I < N."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if match and int(match[1]) < int(match[2]):
            return cls(int(match[1]), int(match[2]))
        raise FastglowError(f"--shard {text} must be I/N with I from 0 to N-1: 0/2 and 1/2 are the two halves")

    def has(self, position: int) -> bool:
        return (position - 1) % self.count == self.index


EVERY_LINE = Shard(0, 1)


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


def read_windows(inputs: tuple[str, ...], most: int, patience: float | None = None) -> Iterator[list[Line]]:
    """The lines of all inputs, 1 to `most` at a time: a pipe is waited for only while no line is there.

    Args:
        inputs: paths, "-" for standard input, which is read if there are none.
        most: lines at a time.
        patience: seconds after which a wait gives an empty list.

    Raises:
        FastglowError: an input cannot be read.
    """
    index = 0
    for path in inputs or ("-",):
        source = "standard input" if path == "-" else path
        number = 0
        with _opened(path, source) as descriptor:
            for window in _windows(descriptor, most, patience):
                yield [Line(source, number + i, index + i, data) for i, data in enumerate(window, 1)]
                number += len(window)
                index += len(window)


def count_lines(inputs: tuple[str, ...], shard: Shard) -> int | None:
    """Number of the shard's lines that are not blank; None if an input is not a regular file."""
    if not inputs or not all(os.path.isfile(path) for path in inputs):
        return None
    n_lines, positions = 0, count(1)
    for path in inputs:
        with open(path, "rb") as file:
            n_lines += sum(1 for line in file if shard.has(next(positions)) and line.strip())
    return n_lines


def _read_standard_input() -> str:
    try:
        return decode_text(sys.stdin.buffer.read(), "standard input")
    except OSError as error:
        raise FastglowError(f"cannot read standard input: {error.strerror}") from error


def _windows(descriptor: int, most: int, patience: float | None = None) -> Iterator[list[bytes]]:
    lines: deque[bytes] = deque()
    rest, ended = b"", False
    while lines or not ended:
        while not ended and len(lines) < most and _has_data(descriptor, 0 if lines else patience):
            data = os.read(descriptor, _READ_AT_ONCE)
            ended = not data
            *whole, rest = (rest + data).split(b"\n")
            lines.extend(whole)
            if ended and rest:
                lines.append(rest)
        if lines or not ended:
            yield [lines.popleft() for _ in range(min(most, len(lines)))]


def _has_data(descriptor: int, patience: float | None) -> bool:
    """Whether there are data, or the end, within so many seconds; None: it waits."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if patience is None else 1000 * patience))


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
