"""Cleaners rewrite a text before its symbols are looked up.

``basic_cleaners``, ``transliteration_cleaners`` and ``english_cleaners`` are NVIDIA's, for models trained with them;
``english_speech_cleaners`` is fastglow's own. ``{ARPAbet}`` groups pass through unchanged. A cleaner drops characters
that have no spoken form: it appends them to the list ``dropped``, or, called without one, warns with
``UnspeakableTextWarning``.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from fastglow.errors import FastglowError
from fastglow.text import nvidia_english
from fastglow.text.arpabet import map_outside_arpabet
from fastglow.text.transliteration import to_ascii
from fastglow.text.unspeakable import warn_dropped

# For NVIDIA's models, and for models that do not name their cleaners.
DEFAULT_CLEANERS = ("english_cleaners",)

_WHITESPACE = re.compile(r"\s+")


class Cleaner(Protocol):
    def __call__(self, text: str, dropped: list[str] | None = None) -> str: ...


class CleanedText(NamedTuple):
    """A cleaned text, and the characters that cleaning dropped."""

    text: str
    dropped: list[str]


_cleaners: dict[str, Cleaner] = {}


def _cleaner(rewrite: Callable[[str, list[str]], str]) -> Cleaner:
    @functools.wraps(rewrite)
    def cleaner(text: str, dropped: list[str] | None = None) -> str:
        if dropped is not None:
            return rewrite(text, dropped)
        dropped = []
        cleaned = rewrite(text, dropped)
        warn_dropped(dropped, stacklevel=2)
        return cleaned

    _cleaners[rewrite.__name__] = cleaner
    return cleaner


def cleaner_names() -> list[str]:
    """The names that ``text_to_sequence`` accepts."""
    return list(_cleaners)


def find_cleaner(name: str) -> Cleaner:
    """The cleaner ``name``; raises ``FastglowError`` if there is none."""
    try:
        return _cleaners[name]
    except (KeyError, TypeError):
        raise FastglowError(f"unknown cleaner {name!r}: use one of {', '.join(_cleaners)}") from None


def clean(text: str, names: Sequence[str]) -> CleanedText:
    """Applies cleaners in turn, without a warning; a single name may be a plain string.

    Raises:
        FastglowError: the text is not a string, or a cleaner is unknown.
    """
    if not isinstance(text, str):
        raise FastglowError(f"text must be a str, not {type(text).__name__}: decode or convert it first")
    dropped: list[str] = []
    for cleaner in [find_cleaner(name) for name in ([names] if isinstance(names, str) else names)]:
        text = cleaner(text, dropped)
    return CleanedText(text, dropped)


@_cleaner
def basic_cleaners(text: str, dropped: list[str]) -> str:
    """Lower case; every run of white space becomes one space."""
    return map_outside_arpabet(_lower_and_collapse, text)


@_cleaner
def transliteration_cleaners(text: str, dropped: list[str]) -> str:
    """ASCII by ``unidecode``, then ``basic_cleaners``."""
    return map_outside_arpabet(lambda part: _lower_and_collapse(to_ascii(part, dropped)), text)


@_cleaner
def english_cleaners(text: str, dropped: list[str]) -> str:
    """NVIDIA's English: ASCII, lower case, numbers and a few abbreviations written out.

    The order of its steps is kept, and with it its quirks: ``"£5"`` is transliterated before currency signs are
    looked for, ``"$1.5"`` has five cents, every ``"st."`` is a saint, ``"&"`` and ``"%"`` are not spoken.
    """
    return map_outside_arpabet(lambda part: _english(part, dropped), text)


@_cleaner
def english_speech_cleaners(text: str, dropped: list[str]) -> str:
    """fastglow's English, the bundled voice's default: see ``fastglow.text.english.normalization``."""
    # Imported on first use: compiling its patterns takes a while.
    from fastglow.text.english.normalization import normalize

    return normalize(text, dropped)


def _english(text: str, dropped: list[str]) -> str:
    text = nvidia_english.expand_numbers(to_ascii(text, dropped).lower())
    return _WHITESPACE.sub(" ", nvidia_english.expand_abbreviations(text))


def _lower_and_collapse(text: str) -> str:
    return _WHITESPACE.sub(" ", text.lower())
