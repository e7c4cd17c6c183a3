"""Pronunciations by word, for models that read ARPAbet instead of English spelling."""

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from fastglow.errors import FastglowError
from fastglow.lines import split_lines
from fastglow.text.arpabet import split_arpabet
from fastglow.text.symbol_set import ARPABET
from fastglow.text_files import decode_text

Pronounce = Callable[[str], str | None]
"""Maps a lower-case word to its ARPAbet phones, separated by spaces, or to None to keep its letters."""

_word = re.compile(r"(?<!\w)[A-Za-z]+(?:'[A-Za-z]+)*(?!\w)")
_variant = re.compile(r"\(\d+\)$")
_phones = frozenset(ARPABET)
_sibilants = frozenset("S Z SH ZH CH JH".split())
_voiceless = frozenset("P T K F TH".split())


class Piece(NamedTuple):
    """Part of a text: letters and marks, or the phones of one word.

    Attributes:
        text: as written, or the phones, separated by white space.
        word: what the phones stand for: a word, or a `{PHONES}` group as written; None: `text` is no phones.
    """

    text: str
    word: str | None = None


class Lexicon:
    """Pronunciations read from files in the CMU Pronouncing Dictionary's format, plain or gzipped.

    One word and its phones per line, separated by white space. ``;;;`` or ``#`` begins a comment. ``WORD(2)`` is a
    further pronunciation; the first one is kept. Calling the lexicon looks up a lower-case word. If a file has a word
    only without 's, the possessive gets the ending that fits the last phone, as in Jack's, John's and James's.

    Args:
        paths: the files; the first that has a word counts.

    Raises:
        FastglowError: a file cannot be read, or a line has no phones or an unknown one.
    """

    def __init__(self, *paths: str | PathLike):
        self._files = [_read(Path(path)) for path in paths]

    @property
    def digest(self) -> str:
        """A hexadecimal digest of the pronunciations, independent of compression and comments."""
        digest = hashlib.sha256()
        for pronunciations in self._files:
            digest.update("\n".join(f"{word} {phones}" for word, phones in pronunciations.items()).encode() + b"\0")
        return digest.hexdigest()

    def __call__(self, word: str) -> str | None:
        for pronunciations in self._files:
            phones = pronunciations.get(word)
            if phones is None and word.endswith("'s"):
                phones = _add_s(pronunciations.get(word[:-2]))
            if phones is not None:
                return phones
        return None


def pronounce_words(text: str, pronounce: Pronounce | None) -> list[Piece]:
    """Cuts a text at its `{PHONES}` groups and at the words that `pronounce` knows."""
    pieces = []
    for piece, is_group in split_arpabet(text):
        position = 0
        if pronounce is not None and not is_group:
            for match in _word.finditer(piece):
                phones = pronounce(match[0].lower())
                if phones is not None:
                    pieces += [Piece(piece[position : match.start()]), Piece(phones, match[0])]
                    position = match.end()
        pieces.append(Piece(piece[position:], f"{{{piece}}}" if is_group else None))
    return pieces


def _add_s(phones: str | None) -> str | None:
    """The phones of a word's possessive."""
    if phones is None:
        return None
    last = phones.split()[-1]
    return f"{phones} {'IH0 Z' if last in _sibilants else 'S' if last in _voiceless else 'Z'}"


def _read(path: Path) -> dict[str, str]:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        raise FastglowError(f"cannot read the lexicon {path}: {getattr(error, 'strerror', None) or error}") from error
    text = decode_text(data, f"the lexicon {path}", warn=False)  # CMUdict 0.7b is Latin-1
    pronunciations: dict[str, str] = {}
    for number, line in enumerate(split_lines(text), 1):
        word, _, phones = line.partition(" ")
        phones = phones.lstrip(" ")  # CMUdict 0.7b has two spaces
        # Nearly every line has but this form, and CMUdict has 124,000.
        if not (word.isalpha() and _phones.issuperset(phones.split(" "))):
            word, phones = _parse(line, path, number)
        if word:
            pronunciations.setdefault(word.lower(), phones)
    return pronunciations


def _parse(line: str, path: Path, number: int) -> tuple[str, str]:
    """Word and phones; empty ones of a comment."""
    word, *phones = ("" if line.startswith(";;;") else line.partition("#")[0]).split() or [""]
    if word and not (phones and _phones.issuperset(phones)):
        unknown = [phone for phone in phones if phone not in _phones]
        what = f"unknown phone {unknown[0][:40]!r}" if unknown else "no phones"
        raise FastglowError(f"{path}, line {number}: {what} for {word[:40]!r}: use ARPAbet as CMUdict does")
    return _variant.sub("", word), " ".join(phones)
