"""Text to symbol ids and back, as in DeepLearningExamples' ``tacotron2/text/__init__.py``."""

from collections.abc import Iterable, Sequence

from fastglow.errors import FastglowError
from fastglow.text.arpabet import split_arpabet
from fastglow.text.cleaners import find_cleaner
from fastglow.text.lexicon import Pronounce, pronounce_words
from fastglow.text.symbol_set import PHONE_MARK, symbols
from fastglow.text.unspeakable import is_silent, warn_dropped

_id_of = {symbol: index for index, symbol in enumerate(symbols)}


def text_to_sequence(text: str, cleaner_names: Sequence[str], pronounce: Pronounce | None = None) -> list[int]:
    """Clean a text and look up its symbols.

    ``{HH AW1 S}`` in the text stands for ARPAbet phones, separated by white space. What has no symbol after
    cleaning is dropped, and one ``UnspeakableTextWarning`` names it: characters, and unknown phones in braces.
    Double quotation marks, combining marks and invisible characters are dropped without a word. An underscore is
    the pad symbol, id 0: the reference means to drop it, but its test compares identities and lets it through.

    Args:
        text: any Unicode string, however malformed.
        cleaner_names: names of ``cleaner_names()``, applied in turn; one name may be given as a plain string.
        pronounce: phones of a word, such as a ``Lexicon``, asked for every word of the cleaned text; words for which
            it has none stay letters.

    Returns:
        Indices into ``symbols``; empty when nothing can be spoken.

    Raises:
        FastglowError: the text is not a string, or a cleaner is unknown.
    """
    if not isinstance(text, str):
        raise FastglowError(f"text must be a str, not {type(text).__name__}: decode or convert it first")
    if isinstance(cleaner_names, str):
        cleaner_names = [cleaner_names]
    dropped: list[str] = []
    for clean in [find_cleaner(name) for name in cleaner_names]:
        text = clean(text, dropped)

    sequence: list[int] = []
    pieces = split_arpabet(text) if pronounce is None else pronounce_words(text, pronounce)
    for piece, is_group in pieces:
        if is_group:
            _append_phones(piece, sequence, dropped)
        else:
            _append_characters(piece, sequence, dropped)
    warn_dropped(dropped, stacklevel=2)
    return sequence


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


def _append_characters(text: str, sequence: list[int], dropped: list[str]) -> None:
    for character in text:
        index = _id_of.get(character)
        if index is not None:
            sequence.append(index)
        elif not is_silent(character):
            dropped.append(character)


def _append_phones(text: str, sequence: list[int], dropped: list[str]) -> None:
    for phone in text.split():
        index = _id_of.get(PHONE_MARK + phone)
        if index is not None:
            sequence.append(index)
        else:
            dropped.append(f"{{{phone}}}")
