"""Text of users' files and streams, whatever encoding their editors chose."""

import codecs
import warnings
from os import PathLike
from pathlib import Path

from fastglow.errors import FastglowError

# UTF-32's mark begins with that of UTF-16: the longer ones first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF8, "UTF-8-sig"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class TextEncodingWarning(UserWarning):
    """A text is not UTF-8, and was read as what it probably is."""


def read_text(path: str | PathLike, *, warn: bool = True) -> str:
    """The text of a file, decoded by `decode_text`; line ends are left as they are.

    Raises:
        FastglowError: the file cannot be read or is not text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FastglowError(f"cannot read {path}: {error.strerror}") from error
    return decode_text(data, str(path), warn=warn)


def decode_text(data: bytes, name: str, *, warn: bool = True) -> str:
    """Decodes a text of unknown encoding; a byte order mark is left out.

    A byte order mark says which of UTF-8, UTF-16 and UTF-32 it is. Without one it is UTF-8, or else Windows-1252,
    of which Latin-1's letters are a part, with one TextEncodingWarning.

    Args:
        data: the whole text.
        name: of the file or stream, for errors and warnings.
        warn: False where other encodings than UTF-8 are usual.

    Raises:
        FastglowError: data that its byte order mark belies; zero bytes without a mark; bytes that neither UTF-8 nor
            Windows-1252 has.
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
            f"{name} holds zero bytes, so it is no text, or UTF-16 without a byte order mark: save it as UTF-8"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        text, what = _decode_other(data, name, error)
    if warn:
        warnings.warn(f"{name} {what}", TextEncodingWarning, stacklevel=2)
    return text


def marked_encoding(data: bytes) -> str | None:
    """The encoding that a byte order mark names, which leaves the mark out; None without one."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def decode_argument(text: str) -> str:
    """A text from the command line, whose bytes Python gives as lone surrogates where they are not UTF-8."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other surrogates: from no command line
        return text
    return decode_text(data, "the text") if data != text.encode("utf-8", "replace") else text


def _decode_other(data: bytes, name: str, error: UnicodeDecodeError) -> tuple[str, str]:
    """The text, and what to say about it."""
    before = data[: error.start]
    if error.reason == "unexpected end of data" and not before.isascii():
        return before.decode("utf-8"), "ends within a character of UTF-8: the character is left out"
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as second:
        raise FastglowError(
            f"{name} is neither UTF-8 (byte {error.start}) nor Windows-1252 (byte {second.start}): save it as UTF-8"
        ) from second
    return text, f"is not UTF-8 (byte {error.start}), so it is read as Windows-1252: save it as UTF-8 if that is wrong"
