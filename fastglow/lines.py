"""Lists in text files, an entry a line: filelists, metadata.csv, lexicons, manifests."""

import codecs
import re
from pathlib import Path

from fastglow.errors import FastglowError

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF8: "UTF-8-sig",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LINE_END = re.compile(r"\r\n|\n|\r")


def split_lines(text: str) -> list[str]:
    """The lines of a text, ended by "\\n", "\\r\\n" or "\\r" and by nothing else.

    `str.splitlines` also cuts at U+0085, U+2028 and other separators, which do occur within a sentence that was
    copied from somewhere.
    """
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def find_encoding(data: bytes) -> str:
    """The encoding that a byte order mark names; without one UTF-8."""
    return next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "UTF-8")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, or in what its byte order mark says.

    Labels must be right to the letter, so no other encoding is guessed at.

    Raises:
        FastglowError: the file cannot be read, or is in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FastglowError(f"{path} cannot be read: {error.strerror}") from error
    encoding = find_encoding(data)
    name = encoding.removesuffix("-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(split_lines(data[: error.start].decode(encoding, errors="replace") + "x"))
        raise FastglowError(
            f"{path} cannot be read as {name} text: line {line} holds the byte 0x{data[error.start]:02X}, which is not "
            f"{name}; save it as UTF-8"
        ) from error
    lines = split_lines(text)
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise FastglowError(f"{path} cannot be read as {name} text: line {number} holds a NUL; save it as UTF-8")
    # A mark stands before a later line where files with marks were joined.
    return [line.removeprefix("\ufeff") for line in lines]
