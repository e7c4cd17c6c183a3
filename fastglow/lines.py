"""Reads text files with one entry per line: filelists, metadata.csv, lexicons, manifests."""

from os import PathLike
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.text_files import marked_encoding


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end at "\\n", "\\r\\n" or "\\r" only.

    `str.splitlines` also splits at U+0085, U+2028 and other separators, which occur inside copied sentences.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | PathLike[str]) -> list[str]:
    """The lines of a text file in UTF-8, or in the encoding of its byte order mark.

    Labels must be exact, so no other encoding is guessed.

    Raises:
        FastglowError: the file cannot be read, or has another encoding.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FastglowError(f"{path} cannot be read: {error.strerror}") from error
    encoding = marked_encoding(data) or "UTF-8"
    name = encoding.removesuffix("-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        number = len(split_lines(data[: error.start].decode(encoding, errors="replace") + "x"))
        raise FastglowError(
            f"{path} cannot be read as {name} text: line {number} has the byte 0x{data[error.start]:02X}, which is "
            f"not {name}; save it as UTF-8"
        ) from error
    lines = split_lines(text)
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise FastglowError(f"{path} cannot be read as {name} text: line {number} has a NUL; save it as UTF-8")
    # Later lines have a mark if files with marks were concatenated.
    return [line.removeprefix("\ufeff") for line in lines]
