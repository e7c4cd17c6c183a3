"""Numbers in words. ``inflect`` spells them; it is imported on first use because that is slow."""

import functools
import threading
from typing import Any

# Longer numbers, and numbers with a leading zero, are read digit by digit.
_MAX_CARDINAL_DIGITS = 15
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_DENOMINATORS = frozenset([*range(2, 11), 12, 16, 20, 32, 64, 100, 1000])

# An integer, grouped or not, or a decimal; patterns that use it check the text before it themselves.
NUMBER = r"(?:\d{1,3}(?:,\d{2,3}){0,8},\d{3}(?!,?\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"

# "3/4", or "2 1/2".
FRACTION = r"(?:\d{1,4}[ -])?\d{1,3}/\d{1,3}(?![/\d])"

# inflect's engine is not thread-safe.
_engine_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _engine() -> Any:
    import inflect

    return inflect.engine()


@functools.lru_cache(maxsize=4096)
def number_to_words(number: int | str, **options: str | int) -> str:
    """``inflect``'s ``number_to_words`` with one shared engine, thread-safe; at most 36 digits."""
    with _engine_lock:
        return _engine().number_to_words(number, **options)


def spell_digits(digits: str) -> str:
    """``"407"`` -> ``"four zero seven"``; anything that is not an ASCII digit is skipped."""
    return " ".join(_DIGITS[int(digit)] for digit in digits if digit in "0123456789")


def cardinal(digits: str | int) -> str:
    """``"1234"`` or ``"1,234"`` -> ``"one thousand two hundred thirty-four"``; ``"007"`` digit by digit."""
    digits = str(digits).replace(",", "")
    if len(digits) > _MAX_CARDINAL_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return spell_digits(digits)
    return number_to_words(int(digits), andword="", comma="")


def ordinal(digits: str | int) -> str:
    """``"21"`` -> ``"twenty-first"``; a long number is read digit by digit, the last one as an ordinal."""
    words = cardinal(str(digits).replace(",", "").lstrip("0") or "0")
    with _engine_lock:
        return _engine().ordinal(words)


def number(text: str) -> str:
    """A number that ``NUMBER`` matches: ``"3.14"`` -> ``"three point one four"``, ``"1,000"``, ``".5"``."""
    whole, point, fraction = text.partition(".")
    if not point:
        return cardinal(whole)
    return f"{cardinal(whole)} point {spell_digits(fraction)}" if whole else f"point {spell_digits(fraction)}"


def fraction(numerator: int, denominator: int) -> str | None:
    """``3, 4`` -> ``"three quarters"``; ``None`` if the pair is not read as a fraction (9/11, 24/7, 8/10)."""
    if not 0 < numerator < denominator or denominator not in _DENOMINATORS:
        return None
    if numerator > 1 and denominator in (10, 100):
        return None
    part = {2: "half", 4: "quarter"}.get(denominator) or ordinal(denominator)
    return f"{cardinal(numerator)} {part if numerator == 1 else part + 's'}"


def fraction_of(whole: str, numerator: str, denominator: str) -> str:
    """A fraction with a written ending and any denominator: ``3/4ths`` -> ``"three fourths"``."""
    part = "half" if denominator == "2" else ordinal(denominator)
    if int(numerator) != 1:
        part = "halves" if part == "half" else part.removeprefix("one ") + "s"
    spoken = f"{cardinal(numerator)} {part}"
    return f"{cardinal(whole)} and {spoken}" if whole else spoken


def slash_word(denominator: str) -> str:
    """``8/10`` is a score, eight out of ten; ``120/80`` is one hundred twenty over eighty."""
    return "out of" if denominator in ("10", "100") else "over"


def quantity(text: str) -> str:
    """A ``NUMBER``, a fraction or both: ``"2 1/2"`` -> ``"two and a half"``, ``"5/17"``."""
    numerator, slash, denominator = text.partition("/")
    if not slash:
        return number(text)
    whole, _, numerator = numerator.replace("-", " ").rpartition(" ")
    part = fraction(int(numerator), int(denominator))
    if not part:
        part = f"{cardinal(numerator)} {slash_word(denominator)} {cardinal(denominator)}"
        return f"{cardinal(whole)} {part}" if whole else part
    if whole and numerator == "1" and denominator in ("2", "4"):
        part = part.replace("one", "a")
    return f"{cardinal(whole)} and {part}" if whole else part


def year(value: int) -> str:
    """A year from 1 to 9999 in words: 1984, 1900, 1905, 2000, 2005, 2021."""
    century, rest = divmod(value, 100)
    if value < 1000 or value % 1000 == 0 or 2000 < value < 2010:
        return cardinal(value)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {two_digits(rest)}"


def looks_like_year(written: str) -> bool:
    """Whether the text is a year from 1000 to 2099."""
    return len(written) == 4 and written.isdigit() and "1000" <= written < "2100"


def two_digits(value: int) -> str:
    """Minutes, or the second half of a year: 5 -> ``"oh five"``, 21 -> ``"twenty-one"``."""
    return f"oh {cardinal(value)}" if value < 10 else cardinal(value)


def plural(words: str) -> str:
    """The plural of a number in words: ``"nineteen nineties"``, ``"two thousands"``, ``"forty-sixes"``."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")
