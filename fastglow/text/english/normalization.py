"""The steps of ``english_speech_cleaners``, in order."""

import re

from fastglow.text.arpabet import split_arpabet
from fastglow.text.english.abbreviations import expand_abbreviations
from fastglow.text.english.acronyms import is_shouted, read_capitals
from fastglow.text.english.currency import read_currency
from fastglow.text.english.dates import read_dates
from fastglow.text.english.decimal_commas import convert_decimal_commas
from fastglow.text.english.designations import read_labels
from fastglow.text.english.dotted_days import read_dotted_days
from fastglow.text.english.numerals import read_codes, read_long_numbers, read_minus_signs, read_numbers
from fastglow.text.english.places import read_places
from fastglow.text.english.plurals import read_plurals
from fastglow.text.english.roman import read_roman_numerals
from fastglow.text.english.signs import read_signs, read_signs_in_context, tidy
from fastglow.text.english.stutter import read_stutters
from fastglow.text.english.times import read_times
from fastglow.text.english.typography import GROUP, normalize_quotes, normalize_words, to_signs
from fastglow.text.english.units import read_heights, read_units
from fastglow.text.english.web import read_addresses
from fastglow.text.line_breaks import join_hyphenated_words
from fastglow.text.markup import without_markup

# Each step reads the digits and signs that the steps before it left; lower-case words are final.
_STEPS = (
    read_heights,
    normalize_quotes,
    read_addresses,
    read_places,
    read_dotted_days,
    convert_decimal_commas,
    read_long_numbers,
    read_dates,
    read_times,
    read_plurals,
    read_codes,
    read_labels,
    normalize_words,
    read_stutters,
    read_roman_numerals,
    read_minus_signs,
    expand_abbreviations,
    read_currency,
    read_units,
    read_signs_in_context,
    read_numbers,
)


def normalize(text: str, dropped: list[str]) -> str:
    """Writes English text out in lower-case words: numbers, money, units, dates, times, abbreviations, signs.

    Single letters and acronyms become letter names (``"BBC"`` -> ``"bee bee see"``), other scripts are transliterated,
    HTML tags, entities and quotation marks are removed, words hyphenated at a line end are joined, and at most one mark
    is left between two words. ``{ARPAbet}`` groups stay. Every character of the result has a symbol, and cleaning it
    again does not change it. A text without words gives an empty string. Characters without a spoken form are appended
    to ``dropped``.
    """
    hidden, groups = _hide_groups(without_markup(text), dropped)
    hidden = to_signs(join_hyphenated_words(hidden), dropped)
    shouted = is_shouted(hidden)
    for step in _STEPS:
        hidden = step(hidden)
    spoken = tidy(read_signs(read_capitals(hidden, shouted)))
    remaining = iter(groups)
    return re.sub(GROUP, lambda match: next(remaining), spoken)


def _hide_groups(text: str, dropped: list[str]) -> tuple[str, list[str]]:
    """Replaces each ``{...}`` by ``GROUP`` and drops other braces: (text, groups)."""
    hidden, groups = [], []
    for piece, is_group in split_arpabet(text):
        if is_group:
            hidden.append(GROUP)
            groups.append(f"{{{piece}}}")
            continue
        for reserved in ("{", "}", GROUP):
            if reserved in piece:
                dropped.append(reserved)
                piece = piece.replace(reserved, " ")
        hidden.append(piece)
    return "".join(hidden), groups
