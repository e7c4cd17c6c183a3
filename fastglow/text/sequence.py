"""Text to symbol ids and back, as in DeepLearningExamples' ``tacotron2/text/__init__.py``."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fastglow.text.cleaners import clean
from fastglow.text.lexicon import Pronounce, pronounce_words
from fastglow.text.symbol_set import PHONE_MARK, symbols
from fastglow.text.unspeakable import is_silent, warn_dropped

_NVIDIA_IDS = {symbol: index for index, symbol in enumerate(symbols)}

_LETTERS = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")


class Span(NamedTuple):
    """A word among symbols: `start` is the index of its first one, `end` is past its last one."""

    text: str
    start: int
    end: int


class EncodedText(NamedTuple):
    """A text as symbol ids.

    Attributes:
        ids: of the symbols, in order.
        dropped: characters and ``{PHONE}``s without a symbol, in the order in which they were found; see
            `fastglow.text.unspeakable.warn_dropped`.
        words: the words of the cleaned text that have symbols, in order: runs of letters, with the apostrophes inside
            them, and groups of phones.
    """

    ids: list[int]
    dropped: list[str]
    words: list[Span]


def encode(
    text: str,
    cleaner_names: Sequence[str] = (),
    pronounce: Pronounce | None = None,
    ids: Mapping[str, int] = _NVIDIA_IDS,
) -> EncodedText:
    """Cleans a text and looks up its symbols, without a warning. Everything that reads text goes through here.

    Args:
        text, cleaner_names, pronounce: as for `text_to_sequence`; without cleaners the text counts as cleaned.
        ids: symbol to id, symbols spelt as in `fastglow.text.symbols`.

    Raises:
        FastglowError: the text is not a string, or a cleaner is unknown.
    """
    text, dropped = clean(text, cleaner_names)
    found: list[int] = []
    words: list[Span] = []
    for piece, word in pronounce_words(text, pronounce):
        first, kept = len(found), []
        for item in piece if word is None else piece.split():
            index = ids.get(item if word is None else PHONE_MARK + item)
            if index is not None:
                found.append(index)
                kept.append(item)
            elif word is not None:
                dropped.append(f"{{{item}}}")
            elif not is_silent(item):
                dropped.append(item)
        if word is None:
            letters = _LETTERS.finditer("".join(kept))
            words.extend(Span(match[0], first + match.start(), first + match.end()) for match in letters)
        elif kept:
            words.append(Span(word, first, len(found)))
    return EncodedText(found, dropped, words)


def text_to_sequence(text: str, cleaner_names: Sequence[str], pronounce: Pronounce | None = None) -> list[int]:
    """Cleans a text and looks up its symbols.

    ``{HH AW1 S}`` in the text stands for ARPAbet phones, separated by white space. Characters without a symbol after
    cleaning, and unknown phones in braces, are dropped; one ``UnspeakableTextWarning`` names them all. Double
    quotation marks, combining marks and invisible characters are dropped without a warning. An underscore is the pad
    symbol, id 0: NVIDIA's code means to drop it, but compares identities and lets it through.

    Args:
        text: any Unicode string, however malformed.
        cleaner_names: names from ``cleaner_names()``, applied in turn; a single name may be a plain string.
        pronounce: phones of a word, such as a ``Lexicon``, asked for every word of the cleaned text; words for which
            it returns None stay letters.

    Returns:
        Indices into ``symbols``; empty if nothing can be spoken.

    Raises:
        FastglowError: the text is not a string, or a cleaner is unknown.
    """
    encoded = encode(text, cleaner_names, pronounce)
    warn_dropped(encoded.dropped, stacklevel=2)
    return encoded.ids


def sequence_to_text(sequence: Iterable[int]) -> str:
    """The text of symbol ids, phones in braces; ids outside the symbol table are skipped.

    Accepts a list, an array or a one-dimensional tensor of integers.
    """
    parts = []
    for index in map(int, sequence):
        if 0 <= index < len(symbols):
            symbol = symbols[index]
            parts.append(f"{{{symbol[1:]}}}" if symbol.startswith(PHONE_MARK) else symbol)
    return "".join(parts).replace("}{", " ")
