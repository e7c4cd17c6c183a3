"""Cleaners: functions from text to text that run before the symbols are looked up.

``basic_cleaners``, ``transliteration_cleaners`` and ``english_cleaners`` are those of NVIDIA's Tacotron 2, for
models trained with them; ``english_speech_cleaners`` is fastglow's own. Each leaves ``{ARPAbet}`` groups as they
are. A cleaner that finds characters without any spoken form drops them: it appends them to the list ``dropped``,
or, called without one, warns with ``UnspeakableTextWarning``.
"""

import functools
import re
from collections.abc import Callable

from fastglow.errors import FastglowError
from fastglow.text import nvidia_english
from fastglow.text.arpabet import map_outside_arpabet
from fastglow.text.transliteration import to_ascii
from fastglow.text.unspeakable import warn_dropped

Cleaner = Callable[..., str]

# Of NVIDIA's models, and of those that do not tell theirs.
DEFAULT_CLEANERS = ("english_cleaners",)

_WHITESPACE = re.compile(r"\s+")
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
    """The cleaner of that name; ``FastglowError`` when there is none."""
    try:
        return _cleaners[name]
    except (KeyError, TypeError):
        known = ", ".join(_cleaners)
        raise FastglowError(f"unknown cleaner {name!r}: the known ones are {known}") from None


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
    """The reference's English: ASCII, lower case, numbers and a few abbreviations written out.

    Its order is kept, and with it its quirks: ``"£5"`` is transliterated before anyone looks for currency signs,
    ``"$1.5"`` has five cents, every ``"st."`` is a saint, ``"&"`` and ``"%"`` are not spoken.
    """
    return map_outside_arpabet(lambda part: _english(part, dropped), text)


@_cleaner
def english_speech_cleaners(text: str, dropped: list[str]) -> str:
    """fastglow's English, the default of the bundled voice: see ``fastglow.text.english.normalization``."""
    # Its patterns take a while to compile: only those who use it pay.
    from fastglow.text.english.normalization import normalize

    return normalize(text, dropped)


def _english(text: str, dropped: list[str]) -> str:
    text = nvidia_english.expand_numbers(to_ascii(text, dropped).lower())
    return _WHITESPACE.sub(" ", nvidia_english.expand_abbreviations(text))


def _lower_and_collapse(text: str) -> str:
    return _WHITESPACE.sub(" ", text.lower())
