"""The number and abbreviation rules of NVIDIA's ``english_cleaners``, quirks included.

Source: DeepLearningExamples, PyTorch/SpeechSynthesis/Tacotron2, ``tacotron2/text/numbers.py`` and ``cleaners.py``.
Models were trained on their output, so the rules must not change. One exception: numbers on which NVIDIA's code raises
(more than 36 digits, ``$,5``) are spoken.
"""

import re

from fastglow.text.numbers import number_to_words, spell_digits

# The look-behinds change no match; they keep the time linear for long runs of digits.
_GROUPED = re.compile(r"[0-9][0-9,]+[0-9]")
_DOLLARS = re.compile(r"\$([0-9.,]*[0-9])")
_DECIMAL = re.compile(r"(?<![0-9])[0-9]+\.[0-9]+")
_ORDINAL = re.compile(r"(?<![0-9])[0-9]+(?:st|nd|rd|th)")
_INTEGER = re.compile(r"[0-9]+")

_MAX_DIGITS = 36

_ABBREVIATIONS = [
    (re.compile(rf"\b{short}\.", re.IGNORECASE), full)
    for short, full in {
        "mrs": "misess",
        "mr": "mister",
        "dr": "doctor",
        "st": "saint",
        "co": "company",
        "jr": "junior",
        "maj": "major",
        "gen": "general",
        "drs": "doctors",
        "rev": "reverend",
        "lt": "lieutenant",
        "hon": "honorable",
        "sgt": "sergeant",
        "capt": "captain",
        "esq": "esquire",
        "ltd": "limited",
        "col": "colonel",
        "ft": "fort",
    }.items()
]


def expand_abbreviations(text: str) -> str:
    """Writes out NVIDIA's 18 abbreviations before any full stop."""
    # In sequence: an expansion can remove the word boundary that a later abbreviation needs.
    for pattern, full in _ABBREVIATIONS:
        text = pattern.sub(full, text)
    return text


def expand_numbers(text: str) -> str:
    """Writes out dollars, decimals, ordinals and integers in ASCII text."""
    text = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    text = _DOLLARS.sub(_dollars, text)
    text = _DECIMAL.sub(lambda match: match[0].replace(".", " point "), text)
    text = _ORDINAL.sub(_ordinal, text)
    return _INTEGER.sub(_integer, text)


def _dollars(match: re.Match) -> str:
    parts = [part.replace(",", "").lstrip("0") for part in match[1].split(".")]
    if len(parts) > 2:
        return f"{match[1]} dollars"
    amounts = [
        f"{part} {unit if part == '1' else unit + 's'}"
        for part, unit in zip(parts, ("dollar", "cent"), strict=False)
        if part
    ]
    return ", ".join(amounts) or "zero dollars"


def _ordinal(match: re.Match) -> str:
    if len(match[0]) - 2 > _MAX_DIGITS:
        return f"{spell_digits(match[0])} {match[0][-2:]}"
    return number_to_words(match[0])


def _integer(match: re.Match) -> str:
    if len(match[0].lstrip("0")) > _MAX_DIGITS:
        return spell_digits(match[0])
    value = int(match[0][-_MAX_DIGITS:])
    if not 1000 < value < 3000 or value == 2000:
        return number_to_words(value, andword="")
    if 2000 < value < 2010:
        return f"two thousand {number_to_words(value % 100)}"
    if value % 100 == 0:
        return f"{number_to_words(value // 100)} hundred"
    return number_to_words(value, andword="", zero="oh", group=2).replace(", ", " ")
