"""Labels of letters, numbers and dots, and numbered things: ``"C.3"``, ``"H.265"``, ``"Chapter 01"``."""

import re

from fastglow.text.english.abbreviations import BEFORE_NAME, BEFORE_NUMBER, GENERAL, TITLES
from fastglow.text.english.context import after, before, last_word
from fastglow.text.english.letters import spell
from fastglow.text.english.roman import HEADINGS, roman_value
from fastglow.text.numbers import cardinal, number, spell_digits

# A dot inside the label, no space, digits after the dot.
_LABEL = re.compile(
    r"(?<![\w.])([A-Za-z]{1,5})\.(\d{1,9}(?:\.(?:\d{1,9}|[A-Za-z](?![A-Za-z0-9]))){0,8})([a-z]?)(?![\w]|\.\d)"
)
_CLAUSE = re.compile(r"(?<![\w.,])(\d{1,4}(?:\.(?:\d{1,4}|[A-Za-z](?![A-Za-z0-9]))){1,8})(?![\w]|\.\w)")
_VERSION = re.compile(r"(?<![\d.,_])([vV]?)(\d{1,15}(?:\.\d{1,15}){2,15})(?![\d_]|\.\d)")
_MARKED_VERSION = re.compile(r"\b[vV](?:er)?\.? ?(\d{1,15}\.\d{1,15})(?![\w]|\.\d)")
_KNOWN = frozenset({*BEFORE_NAME, *GENERAL, *TITLES, "a.m", "p.m"})

_NUMBERED = HEADINGS | frozenset(
    """
    bay block building bus car chap clause day disc disk draft ep example exercise floor game gate heat highway hymn
    issue item lane lap layer line locker lot map mission module no number option page para paragraph pier pit
    platform player point problem program question race reel release room round route row sample sequence series
    shot side slide song squad step tape task team test topic track unit version video volume ward week world year
    zone
    """.split()
)
_ZEROS = re.compile(
    rf"(?<![A-Za-z])((?:{'|'.join(sorted(_NUMBERED, key=len, reverse=True))})s?(?:\.? ?#? ?|[_-])|# ?)"
    r"(\d{1,3}(?:(?: ?[-–&] ?|, | (?:of|to|and|or|through) )\d{1,3}){0,8})(?!\d|[A-Za-z_]{2}|[:.,/-]\d)",
    re.IGNORECASE,
)
_EPISODE = re.compile(r"\bS(\d\d)E(\d\d)\b", re.IGNORECASE)
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def read_labels(text: str) -> str:
    """``"Fig. C.3"`` -> ``"Fig. C point three"``, ``"p.3"`` -> ``"p. 3"``, ``"Track 07"`` -> ``"Track 7"``.

    A letter, a dot and a number without spaces are one label, even at the end of a sentence.
    """
    text = _EPISODE.sub(r"season \1 episode \2", text)
    text = _ZEROS.sub(lambda match: match[1] + _LEADING_ZEROS.sub("", match[2]), text)
    text = _LABEL.sub(_label, text)
    text = _VERSION.sub(_version, text)
    text = _MARKED_VERSION.sub(lambda match: f"version {number(match[1])}", text)
    return _CLAUSE.sub(_clause, text)


def _label(match: re.Match) -> str:
    letters, parts, ending = match.groups()
    key = letters.lower()
    rest = parts + ending
    if key in ("v", "ver") and letters[0] == "v":
        return f"version {_spoken(parts, ending)}"
    is_circa = key == "c" and letters == "c" and re.fullmatch(r"\d{3,4}", rest)
    if is_circa or key in _KNOWN or (key in BEFORE_NUMBER and key != "c"):
        return f"{letters}. {rest}"
    if len(letters) > 1 and not letters.isupper():
        return match[0]
    value = roman_value(letters)
    name = str(value) if value else "Ay" if key == "a" else letters
    return f"{name} point {_spoken(parts, ending)}"


def _spoken(parts: str, ending: str = "") -> str:
    spoken = " point ".join(map(_part, parts.split(".")))
    return f"{spoken} {spell(ending)}" if ending else spoken


def _part(part: str) -> str:
    if part.isalpha():
        return spell(part)
    return cardinal(part) if len(part) < 3 else spell_digits(part)


def _version(match: re.Match) -> str:
    marker, digits = match.groups()
    parts = digits.split(".")
    is_address = len(parts) == 4 and all(len(part) < 4 and int(part) < 256 for part in parts)
    is_numbered = marker or last_word(before(match)).lower() in _NUMBERED or before(match).endswith(("§", "§ "))
    dot = " dot " if is_address and not is_numbered else " point "
    spoken = dot.join([parts[0], *map(cardinal, parts[1:])])
    preceded = before(match)[-1:].isalpha()
    return " " * preceded + "version " * bool(marker) + spoken + " " * after(match)[:1].isalpha()


def _clause(match: re.Match) -> str:
    """``"section 4.b"``, ``"1.B.2"``; digits with a single dot are a decimal."""
    parts = match[1].split(".")
    if all(part.isdigit() for part in parts):
        return match[0]
    if len(parts) == 2 and last_word(before(match)).lower() not in _NUMBERED:
        return match[0]
    return " point ".join([parts[0], *map(_part, parts[1:])])
