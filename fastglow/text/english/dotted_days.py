"""Days of the month with a full stop: ``"on 12. Dec. 2019"``, ``"the 3. of May"``."""

import re

from fastglow.text.english.abbreviations import BEFORE_NUMBER

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\b"
)
_BEFORE = (
    r"\b(?:on|On|the|The|since|Since|until|Until|till|from|From|by|By|dated|of|before|after|between"
    r"|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day,?|(?:Mon|Tue|Tues|Wed|Thu|Thur|Thurs|Fri|Sat|Sun)[.,]{0,2})\s{1,9}"
)
# Before an unambiguous month, more words may precede the day, and a clause may begin with it.
_SURE_MONTH = (
    r"(?:Jan(?:uary|\.)|Feb(?:ruary|\.)|Mar\.|Apr(?:il|\.)|June|July|Jun\.|Jul\.|Aug(?:ust|\.)|Sept?\.|September"
    r"|Oct(?:ober|\.)|Nov(?:ember|\.)|Dec(?:ember|\.))(?!\w)"
)
# "See no. 5. June came."
_NO_LABEL = "".join(rf"(?<!\b{label})(?<!\b{label.title()})" for label in BEFORE_NUMBER)
_LEADING = (
    r"\b(?:[Tt]hen|(?<!\d\s)(?:to|and)|[Tt]ill|[Tt]hru|[Tt]hrough|[Ff]or|[Ii]n|[Aa]round|[Ee]very|[Tt]his|[Nn]ext"
    r"|[Ll]ast|[Bb]orn|[Dd]ied|[Dd]ue|[Dd]eadline:?|[Dd]ate:?|[Ss]tarting|[Ee]nding|[Bb]eginning|[Uu]ntil)\s{1,9}"
    r"|[a-z][,;(]\s{0,9}"
    rf"|[a-z]{_NO_LABEL}[.!?]\s{{1,9}}"
)
# A number may end its sentence before "May": a date needs a word before it, or a year.
_DAY = re.compile(
    rf"(?:{_BEFORE}|\A\s{{0,9}})(?P<a>\d{{1,2}})\.(?=\s{{1,9}}(?:of\s{{1,9}})?{_MONTH})"
    rf"|(?:{_LEADING})(?P<c>\d{{1,2}})\.(?=\s{{1,9}}{_SURE_MONTH})"
    rf"|(?<![\w.,:/$-])(?P<b>\d{{1,2}})\.(?=\s{{1,9}}{_MONTH}\.?,?\s{{1,9}}\d{{4}}(?!\d))"
)


def dotted_day_stops(text: str) -> list[int]:
    """Positions after the full stops that belong to a day of the month."""
    return [match.end() for match in _DAY.finditer(text) if _is_day(match)]


def read_dotted_days(text: str) -> str:
    """``"on 12. Dec. 2019"`` -> ``"on 12 Dec. 2019"``."""
    return _DAY.sub(lambda match: match[0][:-1] if _is_day(match) else match[0], text) if "." in text else text


def _is_day(match: re.Match) -> bool:
    return 1 <= int(match["a"] or match["b"] or match["c"]) <= 31
