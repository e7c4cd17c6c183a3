"""Pronunciations by word, for models that read ARPAbet instead of English spelling."""

import gzip
import re
import zlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.text.arpabet import map_outside_arpabet
from fastglow.text.symbol_set import PHONE_MARK, symbols

Pronounce = Callable[[str], str | None]
"""From a word in lower case to its ARPAbet phones separated by spaces, or None to leave its letters."""

_word = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_variant = re.compile(r"\(\d+\)$")
_phones = {symbol.removeprefix(PHONE_MARK) for symbol in symbols if symbol.startswith(PHONE_MARK)}


class Lexicon:
    """Pronunciations read from a file in the CMU Pronouncing Dictionary's format, plain or gzipped.

    One word and its phones a line, separated by white space; ``;;;`` or ``#`` begins a comment; ``WORD(2)`` is a
    further pronunciation, of which the first one is kept. Calling it looks up a word in lower case.

    Args:
        path: the file.

    Raises:
        FastglowError: the file cannot be read, or a line has no phones or an unknown one.
    """

    def __init__(self, path: str | PathLike):
        self._pronunciations: dict[str, str] = {}
        for number, line in enumerate(_read(Path(path)).splitlines(), 1):
            if line.startswith(";;;"):
                continue
            word, *phones = line.split("#")[0].split() or [""]
            if not word:
                continue
            unknown = [phone for phone in phones if phone not in _phones]
            if unknown or not phones:
                what = f"unknown phone {unknown[0]!r}" if unknown else "no phones"
                raise FastglowError(f"{path}, line {number}: {what} for {word!r}: use ARPAbet as CMUdict does")
            self._pronunciations.setdefault(_variant.sub("", word).lower(), " ".join(phones))

    def __call__(self, word: str) -> str | None:
        return self._pronunciations.get(word)

    def __len__(self) -> int:
        return len(self._pronunciations)


def pronounce_words(text: str, pronounce: Pronounce) -> str:
    """Replaces the words that `pronounce` knows by ``{phones}``; what is in braces already stays."""

    def replace(match: re.Match) -> str:
        phones = pronounce(match[0].lower())
        return match[0] if phones is None else f"{{{phones}}}"

    return map_outside_arpabet(lambda piece: _word.sub(replace, piece), text)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FastglowError(f"cannot read the lexicon {path}: {error}") from error
