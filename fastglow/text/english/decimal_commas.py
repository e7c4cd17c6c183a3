"""Rewrites continental European numbers as English ones, before the other steps read digits.

Only unambiguous ones: ``"1.000.000"``, ``"1.234,56"``, ``"1 234,56"``, ``"1'000'000"``, ``"10 000"``; and a comma
before one or two digits if money, a percentage or a unit follows. ``"1.234"`` and ``"27,500"`` are English,
``"1,2,3"`` is a list, ``"1.2.3"`` a version, ``"192.168.100.200"`` an address.
"""

import re

from fastglow.text.english.currency import CODES, SIGN
from fastglow.text.english.units import UNIT_NAMES, UNIT_SPELLINGS

_START = r"(?<![\w.,'])"
_END = r"(?![\w']|[.,]\d)"
_MARKS = re.compile(r"[.' ]")

_THOUSANDS = re.compile(rf"{_START}([1-9]\d{{0,2}}(?:(?:\.\d{{3}}){{2,6}}|(?:'\d{{3}}){{2,6}})){_END}")
_WITH_DECIMALS = re.compile(
    rf"{_START}(?<!\d )([1-9]\d{{0,2}}(?:(?:\.\d{{3}}){{1,6}}|(?:'\d{{3}}){{1,6}}|(?: \d{{3}}){{1,6}}))"
    rf",(\d{{1,2}}){_END}"
)
_SWISS = re.compile(rf"{_START}([1-9]\d{{0,2}}(?:'\d{{3}}){{1,6}})(\.\d{{1,2}}){_END}")
_SPACED = re.compile(rf"{_START}(?<!\d )([1-9]\d{{0,2}}(?: \d{{3}}){{1,6}})(?= ?(?:{SIGN}|(?:{CODES})\b))")
_ROUND = re.compile(rf"{_START}(?<!\d )([1-9]\d{{0,1}} \d{{3}} 000|[1-9]\d{{0,2}} 000)(?! \d){_END}")
_NO_CENTS = re.compile(rf"({SIGN} ?\d{{1,12}}),[-–—](?![\w-])|(\d),[-–—](?= ?{SIGN})")
_BEFORE_MEASURE = re.compile(
    rf"{_START}(\d{{1,12}}),(\d{{1,2}})(?=(?:[-–]\d{{1,12}}(?:,\d{{1,2}})?)? ?"
    rf"(?:{SIGN}|[%‰]|(?:{CODES})(?!\w)|(?:{UNIT_SPELLINGS}|{UNIT_NAMES}|[mb]illion|trillion)(?![A-Za-z0-9])))"
)
_AFTER_SIGN = re.compile(rf"((?:{SIGN}|\b(?:{CODES})) ?\d{{1,12}}),(\d{{1,2}}){_END}")
# Only fuel prices have three decimals: "1.459 €/l".
_EUROS = re.compile(rf"{_START}([1-9]\d{{0,2}})\.(\d{{3}})(?= ?(?:€|EUR\b)(?! ?/| per\b))")
_VERSION = re.compile(r"(?:version|release|firmware|build|v)\.? \Z", re.IGNORECASE)


def convert_decimal_commas(text: str) -> str:
    """``"1.234,56 €"`` -> ``"1,234.56 €"``, ``"3,5 %"`` -> ``"3.5 %"``."""
    text = _WITH_DECIMALS.sub(lambda match: f"{_grouped(match[1])}.{match[2]}", text)
    text = _SWISS.sub(lambda match: _grouped(match[1]) + match[2], text)
    text = _THOUSANDS.sub(_thousands, text)
    text = _EUROS.sub(r"\1,\2", text)
    text = _ROUND.sub(lambda match: _grouped(match[1]), text)
    text = _SPACED.sub(lambda match: _grouped(match[1]), text)
    text = _NO_CENTS.sub(lambda match: match[1] or match[2], text)
    text = _BEFORE_MEASURE.sub(r"\1.\2", text)
    return _AFTER_SIGN.sub(r"\1.\2", text)


def _grouped(written: str) -> str:
    return _MARKS.sub(",", written)


def _thousands(match: re.Match) -> str:
    parts = match[1].split(".")
    is_address = len(parts) == 4 and all(int(part) < 256 for part in parts)
    if is_address or _VERSION.search(match.string[max(0, match.start() - 10) : match.start()]):
        return match[0]
    return _grouped(match[1])
