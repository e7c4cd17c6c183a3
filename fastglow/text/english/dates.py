"""Dates, months, weekdays and their ranges."""

import re

from fastglow.text.english.context import after, before, final_stop, last_word
from fastglow.text.numbers import ordinal, two_digits, year

_MONTHS = "january february march april may june july august september october november december".split()
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()

_MONTH = (
    r"(?:jan(?:uary|\.)?|feb(?:ruary|\.)?|mar(?:ch|\.)?|apr(?:il|\.)?|may|jun(?:e|\.)?|jul(?:y|\.)?|aug(?:ust|\.)?"
    r"|sep(?:t?\.|tember|t)?|oct(?:ober|\.)?|nov(?:ember|\.)?|dec(?:ember|\.)?)"
)
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:,? ?(?<=[, ])(\d{4})(?![\d,:.%]\d|[\w%$]))?"

_ISO = re.compile(r"(?<![\w-])(\d{4})-(\d\d)-(\d\d)(?:T(?=\d\d:)|(?![\w-]))")
_SLASHED = re.compile(r"(?<![\w/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d\d)(?![\w/-]|\.\d)")
_MONTH_DAY = re.compile(
    rf"\b({_MONTH})(?: |(?<=\.)){_DAY}(?: ?[-–] ?{_DAY})?{_YEAR}(?![\w:%]|[.,]\d| ?[ap]\.?m\b)", re.IGNORECASE
)
_DAY_MONTH = re.compile(rf"(?<![\w.,:/$-]){_DAY}(?: ?[-–] ?{_DAY})?(?: of)? ({_MONTH})(?!\w){_YEAR}", re.IGNORECASE)
_HYPHENED = re.compile(rf"(?<![\w-])(\d{{1,2}})-({_MONTH})-(\d{{4}})(?![\w-])", re.IGNORECASE)
_MONTH_YEAR = re.compile(rf"\b({_MONTH})(?:,? |-)(\d{{4}})(?![\w-]|[,.:]\d)", re.IGNORECASE)
# Between a month and the dash of a range: day and year.
_OF_MONTH = r"(?: \d{1,2}(?:st|nd|rd|th)?)?(?:,? (?:\d{4}|'\d\d))?"
_MONTH_RANGE = re.compile(rf"\b{_MONTH}(?:{_OF_MONTH} ?[-–—] ?{_MONTH}(?![\w'])){{1,11}}", re.IGNORECASE)
_MONTH_JOINT = re.compile(r" ?[-–—] ?")
_FIRST_WORD = re.compile(r"[A-Za-z]+\.?")
_DAY_OF_MONTH = rf"\d{{1,2}}(?:st|nd|rd|th)? {_MONTH}"
_DAY_RANGE = re.compile(
    rf"(?<![\w.,:/$-])({_DAY_OF_MONTH}(?:,? \d{{4}})?) ?[-–] ?(?={_DAY_OF_MONTH}(?!\w))", re.IGNORECASE
)
_MONTHS_EITHER = re.compile(rf"\b{_MONTH}(?: ?/ ?{_MONTH}){{1,11}}(?!\w)", re.IGNORECASE)
_LONE_MONTH = re.compile(r"\b(Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.(?!\w)")
_DAY_NAME = r"\b(Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)\b\.?"
_WEEKDAYS = re.compile(rf"{_DAY_NAME} ?[-–—] ?{_DAY_NAME}")
_WEEKDAY = re.compile(rf"{_DAY_NAME}(?=,? (?:(?i:{_MONTH})\b|\d))")

_SHORT_YEAR = re.compile(r"(?<![\w'])'(\d\d)(?![\w'])")


def read_dates(text: str) -> str:
    """Read dates: ``"Jan. 5, 2021"``, ``"5 January"``, ``"2021-01-05"``, ``"1/5/2021"`` (month first), ``"Jan-Mar"``.

    A month that is also a word (``may``, ``march`` ...) must be capitalised. What is not a date stays as it is.
    """
    text = _ISO.sub(_iso, text)
    text = _SLASHED.sub(_slashed, text)
    text = _HYPHENED.sub(r"\1 \2 \3", text)
    text = _WEEKDAYS.sub(lambda match: f"{_weekday(match[1])} to {_weekday(match[2])}", text)
    text = _WEEKDAY.sub(lambda match: _weekday(match[1]), text)
    text = _DAY_RANGE.sub(r"\1 to ", text)
    text = _MONTH_RANGE.sub(_month_range, text)
    text = _MONTHS_EITHER.sub(_months_either, text)
    text = _DAY_MONTH.sub(_day_month, text)
    text = _MONTH_DAY.sub(_month_day, text)
    text = _MONTH_YEAR.sub(_month_year, text)
    text = _LONE_MONTH.sub(lambda match: _month_name(match[1]) + final_stop(match), text)
    return _SHORT_YEAR.sub(lambda match: two_digits(int(match[1])), text)


def _iso(match: re.Match) -> str:
    spoken = _date(int(match[2]), int(match[3]), match[1])
    return match[0] if spoken is None else spoken + " " * match[0].endswith("T")


def _slashed(match: re.Match) -> str:
    first, second = int(match[1]), int(match[3])
    # With dots the day comes first; a first number above 12 cannot be a month.
    month, day = (second, first) if match[2] == "." or first > 12 else (first, second)
    if match[2] != "/" and len(match[4]) == 2:
        return match[0]
    return _date(month, day, match[4]) or match[0]


def _date(month: int, day: int, written_year: str) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    spoken_year = year(int(written_year)) if len(written_year) == 4 else two_digits(int(written_year))
    return f"{_MONTHS[month - 1]} {ordinal(day)}, {spoken_year}"


def _month_day(match: re.Match) -> str:
    month, first, last, written_year = match.groups()
    if not _is_month(month) or not _are_days(first, last):
        return match[0]
    days = ordinal(first) + (f" to {ordinal(last)}" if last else "")
    return f"{_month_name(month)} {days}{_spoken_year(written_year)}"


def _day_month(match: re.Match) -> str:
    first, last, month, written_year = match.groups()
    if not _is_month(month) or not _are_days(first, last):
        return match[0]
    article = "" if last_word(before(match)).lower() == "the" else "the "
    days = article + ordinal(first) + (f" to the {ordinal(last)}" if last else "")
    stop = "" if written_year else final_stop(match)
    return f"{days} of {_month_name(month)}{_spoken_year(written_year)}{stop}"


def _month_year(match: re.Match) -> str:
    if not _is_month(match[1]):
        return match[0]
    return f"{_month_name(match[1])} {year(int(match[2]))}"


def _month_range(match: re.Match) -> str:
    parts = _MONTH_JOINT.split(match[0])
    is_verb = match[0].endswith(("- May", "– May", "— May")) and re.match(
        r" (?:I|we|you|s?he|it|they|the)\b", after(match)
    )
    months = [word[0] for part in parts if (word := _FIRST_WORD.match(part))]
    if is_verb or not all(map(_is_month, months)):
        return match[0]
    spoken = [_month_name(month).title() + part[len(month) :] for month, part in zip(months, parts, strict=True)]
    return " to ".join(spoken) + final_stop(match)


def _months_either(match: re.Match) -> str:
    months = [month.strip() for month in match[0].split("/")]
    if not all(map(_is_month, months)):
        return match[0]
    return " ".join(_month_name(month).title() for month in months) + final_stop(match)


def _weekday(written: str) -> str:
    return next(day for day in _DAYS if day.startswith(written.lower()[:3]))


def _is_month(written: str) -> bool:
    name = written.lower().rstrip(".")
    return written[0].isupper() or (name in _MONTHS and name not in ("may", "march"))


def _month_name(written: str) -> str:
    return next(month for month in _MONTHS if month.startswith(written.lower()[:3]))


def _are_days(first: str, last: str | None) -> bool:
    return all(1 <= int(day) <= 31 for day in (first, last or first))


def _spoken_year(written: str | None) -> str:
    return f", {year(int(written))}" if written else ""
