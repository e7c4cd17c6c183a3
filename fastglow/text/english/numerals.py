"""Numbers that no other step has read: telephone numbers, ranges, ordinals, fractions, years, the rest."""

import re

from fastglow.text.english.context import after, before, last_word
from fastglow.text.numbers import (
    FRACTION,
    NUMBER,
    cardinal,
    fraction_of,
    looks_like_year,
    number,
    ordinal,
    quantity,
    slash_word,
    spell_digits,
    year,
)

# Numbers this long are read digit by digit.
_LONG = re.compile(r"(?<!\d)(\d{1,15}\.)?(\d{16,})(?!\d)")
_UNGROUPED_LONG = re.compile(r"(?<![\d.,])\d{10,15}(?![\d,.]\d|\d)")

_PHONE = re.compile(
    r"(?<![\w.,-])(\+\d{1,3}(?:[ .-]?\(?\d{2,4}\)?){2,5}"
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}|\d{3}-\d{4}|\d{1,6}(?:-\d{1,6}){2,8}|\d{4}(?: \d{4}){2,4})"
    r"(?![\w-]|[.,]\d)"
)

_START = r"(?<![\w./])(?<!\d,)"
_MINUS = re.compile(r"(?<![\w)./^%°‰$£€¥₹¢-])-(?=\.?\d|[$£€¥₹]\d)")
_RANGE = re.compile(rf"{_START}({NUMBER})(?:-| ?– ?| - )({NUMBER})(?![\d-]|[.,/]\d)( ?=)?")
_ORDINAL = re.compile(rf"{_START}(\d{{1,3}}(?:,\d{{3}}){{1,4}}|\d{{1,15}}) ?(?:st|nd|rd|th)\b", re.IGNORECASE)
_SCIENTIFIC = re.compile(rf"{_START}({NUMBER})[eE]([+-]?)(\d{{1,3}})\b")
_POWER = re.compile(rf"\^(-?)({NUMBER})(?=([A-Za-z]?))")
_TIMES = re.compile(rf"{_START}({NUMBER})x(?![\w])")
_BY = re.compile(rf"{_START}({NUMBER})(?:[x×]| x )(?={NUMBER}(?![A-Za-wyz]))")
_SCALED = re.compile(rf"{_START}({NUMBER})([kKMB]|bn|tn)(?![A-Za-z0-9])")
_FRACTION = re.compile(rf"(?<![\w./,-]){FRACTION}(?!\w|[.,]\d)")
_ENDED_FRACTION = re.compile(
    r"(?<![\w./,-])(?:(\d{1,4})[ -])?"
    r"(?:(\d{1,4})/(\d{1,3}(?:,\d{3})+|\d{1,6})(?:st|nd|rd|th)s?|([2-9]|\d\d)/([2-9]|\d\d)s)\b",
    re.IGNORECASE,
)
_OVER = re.compile(r"(?<=\d) ?/ ?(?=(\d+))")
_NUMBER = re.compile(NUMBER)

_SCALES = {"k": "thousand", "M": "million", "B": "billion", "bn": "billion", "tn": "trillion"}
_SPECIAL_FRACTIONS = {"9/11": "nine eleven", "24/7": "twenty-four seven", "50/50": "fifty fifty"}

_BEFORE_YEAR = frozenset(
    "in since until till during year circa around early late mid summer autumn fall winter spring january february "
    "march april may june july august september october november december".split()
)
# "1850 was", not "1850 prisoners".
_SINGULAR_S = frozenset("as does has his is its series this thus us was yes".split())
_IRREGULAR_PLURALS = frozenset("people men women children feet sheep fish cattle".split())
_BEFORE_COUNT = frozenset("about nearly almost exactly only some over under another these those all".split())
_BEFORE_SIMPLE = frozenset("room number page chapter flight route highway channel boeing apartment suite bus".split())


def read_long_numbers(text: str) -> str:
    """Spells very long digit strings, so that later steps see at most 15 digits in a row."""
    return _LONG.sub(_long, text)


def read_codes(text: str) -> str:
    """Telephone and card numbers, digit by digit; fractions with an ending, such as ``3/4ths``."""
    text = _PHONE.sub(_phone, text)
    text = _ENDED_FRACTION.sub(_ended_fraction, text)
    return _UNGROUPED_LONG.sub(lambda match: spell_digits(match[0]), text)


def read_minus_signs(text: str) -> str:
    """``"-5"`` -> ``"minus 5"``, if the hyphen belongs to the number."""
    return _MINUS.sub("minus ", text)


def read_numbers(text: str) -> str:
    """Writes out all remaining numbers and separates them from adjacent letters."""
    text = _SCIENTIFIC.sub(_scientific, text)
    text = _POWER.sub(_power, text)
    text = _RANGE.sub(_range, text)
    text = _ORDINAL.sub(lambda match: ordinal(match[1]), text)
    text = _FRACTION.sub(_fraction, text)
    text = _OVER.sub(lambda match: f" {slash_word(match[1])} ", text)
    text = _BY.sub(lambda match: f"{match[1]} by ", text)
    text = _TIMES.sub(lambda match: f"{number(match[1])} times", text)
    text = _SCALED.sub(_scaled, text)
    text = _separate_letters(text)
    return _NUMBER.sub(_number, text)


def _long(match: re.Match) -> str:
    digits = spell_digits(match[2])
    return f" {number(match[1][:-1])} point {digits} " if match[1] else f" {digits} "


def _phone(match: re.Match) -> str:
    groups = re.findall(r"\d+", match[0])
    if " " in match[0] and all(map(looks_like_year, groups)):
        return match[0]
    return ("plus " if match[0].startswith("+") else "") + ", ".join(map(spell_digits, groups))


def _scientific(match: re.Match) -> str:
    sign = "minus " if match[2] == "-" else ""
    return f"{number(match[1])} times ten to the {sign}{cardinal(match[3])}"


def _power(match: re.Match) -> str:
    if not match[1] and match[2] in ("2", "3"):
        spoken = "squared" if match[2] == "2" else "cubed"
    else:
        spoken = f"to the power of {'minus ' if match[1] else ''}{number(match[2])}"
    return f" {spoken}{' ' if match[3] else ''}"


def _range(match: re.Match) -> str:
    first, last, equals = match.groups()
    if equals:
        return f"{number(first)} minus {number(last)}{equals}"
    if looks_like_year(first) and looks_like_year(last):
        return f"{year(int(first))} to {year(int(last))}"
    if looks_like_year(first) and len(last) == 2 and first[2:] < last:
        return f"{year(int(first))} to {number(last)}"
    return f"{number(first)} to {number(last)}"


def _fraction(match: re.Match) -> str:
    if match[0] in _SPECIAL_FRACTIONS:
        return _SPECIAL_FRACTIONS[match[0]]
    numerator, _, denominator = match[0].partition("/")
    if any(len(part) > 1 and part[0] == "0" for part in (numerator, denominator)):
        return f"{cardinal(numerator)} slash {cardinal(denominator)}"  # "06/07" is not a fraction
    if numerator == denominator:
        return f"{cardinal(numerator)} out of {cardinal(denominator)}"
    return quantity(match[0])


def _ended_fraction(match: re.Match) -> str:
    whole, numerator, denominator = match[1] or "", match[2] or match[4], match[3] or match[5]
    return fraction_of(whole, numerator, denominator)


def _scaled(match: re.Match) -> str:
    value, scale = match.groups()
    if scale == "B" and len(value) > 2 and value.isdigit():
        return f"{number(value)} bee"  # more often a house number than billions
    # 4K and 8K are screen resolutions, not thousands.
    if scale == "K" and value in ("4", "8"):
        return f"{number(value)} kay"
    return f"{number(value)} {_SCALES[scale.lower() if scale == 'K' else scale]}"


def _separate_letters(text: str) -> str:
    text = re.sub(r"(?<=\d)[aA]\b(?!')|\b[aA](?=\d)", " ay ", text)
    text = re.sub(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", " ", text)
    return re.sub(r"(?<=[A-Za-z])-(?=\d)", " ", text)


def _number(match: re.Match) -> str:
    written = match[0]
    if written[0] == "." and before(match)[-1:].isalnum():
        return f" {number(written)}"  # a dot that no other step has read
    if looks_like_year(written) and _is_year(int(written), match):
        return year(int(written))
    return number(written)


def _is_year(value: int, match: re.Match) -> bool:
    previous = last_word(before(match)).lower()
    if previous in _BEFORE_SIMPLE:
        return False
    following = re.match(r" ([a-z]+)", after(match))
    counts_things = following is not None and _is_plural(following[1])
    if value < 1500:
        return previous in _BEFORE_YEAR and not counts_things
    return previous in _BEFORE_YEAR or not (counts_things or previous in _BEFORE_COUNT)


def _is_plural(noun: str) -> bool:
    return noun in _IRREGULAR_PLURALS or (noun.endswith("s") and noun not in _SINGULAR_S)
