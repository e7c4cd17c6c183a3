"""Reads text files and streams of any common encoding."""

import codecs
import warnings
from os import PathLike
from pathlib import Path

from fastglow.errors import FastglowError

# UTF-32's mark begins with UTF-16's, so the longer marks come first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF8, "UTF-8-sig"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class TextEncodingWarning(UserWarning):
    """A text is not UTF-8 and was read in its probable encoding."""


def read_text(path: str | PathLike, *, warn: bool = True) -> str:
    """The text of a file, decoded by `decode_text`; line ends are unchanged.

    Raises:
        FastglowError: the file cannot be read or is not text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FastglowError(f"cannot read {path}: {error.strerror}") from error
    return decode_text(data, str(path), warn=warn)


def decode_text(data: bytes, name: str, *, warn: bool = True) -> str:
    """Decodes a text of unknown encoding and removes its byte order mark.

    The byte order mark tells UTF-8, UTF-16 and UTF-32 apart. Text without one is UTF-8, or else Windows-1252 (a
    superset of Latin-1's letters) with one TextEncodingWarning.

    Args:
        data: the whole text.
        name: of the file or stream, for errors and warnings.
        warn: False if encodings other than UTF-8 are common.

    Raises:
        FastglowError: the data contradict the byte order mark, have zero bytes without a mark, or are neither UTF-8
            nor Windows-1252.
    """
    encoding = marked_encoding(data)
    if encoding is not None:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            encoding = encoding.removesuffix("-sig")
            raise FastglowError(
                f"{name} begins with the byte order mark of {encoding}, but byte {error.start} is not {encoding} "
                f"({error.reason}): save it as UTF-8"
            ) from error
    if 0 in data:
        raise FastglowError(
            f"{name} has zero bytes, so it is not text, or UTF-16 without a byte order mark: save it as UTF-8"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        text, what = _decode_other(data, name, error)
    if warn:
        warnings.warn(f"{name} {what}", TextEncodingWarning, stacklevel=2)
    return text


def marked_encoding(data: bytes) -> str | None:
    """The encoding of the byte order mark, one that strips the mark; None without a mark."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def decode_argument(text: str) -> str:
    """Decodes a command-line argument, in which Python encodes bytes that are not UTF-8 as lone surrogates."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other surrogates, which no command line has
        return text
    return decode_text(data, "the text") if data != text.encode("utf-8", "replace") else text


def _decode_other(data: bytes, name: str, error: UnicodeDecodeError) -> tuple[str, str]:
    """(text, warning)."""
    before = data[: error.start]
    if error.reason == "unexpected end of data" and not before.isascii():
        return before.decode("utf-8"), "ends inside a UTF-8 character: the character is left out"
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as second:
        raise FastglowError(
            f"{name} is neither UTF-8 (byte {error.start}) nor Windows-1252 (byte {second.start}): save it as UTF-8"
        ) from second
    return text, f"is not UTF-8 (byte {error.start}), so it is read as Windows-1252: save it as UTF-8 if that is wrong"
