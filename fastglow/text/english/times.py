"""Times of day, durations of several parts, and the ratios and scores that look like them."""

import re

from fastglow.text.english.context import final_stop
from fastglow.text.english.letters import spell
from fastglow.text.numbers import cardinal, number, two_digits

_HALF = r"([ap])(?:\. ?m\b\.?|m\b)"
_CLOCK = re.compile(rf"(?<![\w:.])(\d{{1,2}}):([0-5]\d)(?::([0-5]\d))?(?: ?{_HALF})?(?!\w|[:.]\d)", re.IGNORECASE)
_PM = r" ?[ap]\.?m"
_RANGE = re.compile(
    rf"(?<![\w:.])(\d{{1,2}}(?::[0-5]\d(?:{_PM}\.?)?|{_PM}\.?)) ?[-–] ?(?=\d{{1,2}}(?::[0-5]\d(?!\d)|{_PM}\b))",
    re.IGNORECASE,
)
_HOUR = re.compile(rf"(?<![\w:.,$-])(\d{{1,2}})(?: ?[-–] ?(\d{{1,2}}))? ?{_HALF}(?!\w)", re.IGNORECASE)
_DURATION = re.compile(
    r"(?<![\w:.,])(?:(\d{1,4})h ?(?:(\d{1,2})m(?:in)? ?)?|(\d{1,4})m ?)"
    r"(?:(\d{1,2}(?:\.\d{1,9})?)s(?:ec)?)?(?!\w|[:.,]\d)"
)
_RATIO = re.compile(r"(?<![\w:.,])(\d{1,4}):(\d{1,4})(?!\w|[:.,]\d)")


def read_times(text: str) -> str:
    """``"3:05 pm"`` -> ``"three oh five pee em"``, ``"9:00"``, ``"2m30s"``, and ``"3:1"`` -> ``"three to one"``."""
    text = _DURATION.sub(_duration, text)
    text = _RANGE.sub(r"\1 to ", text)
    text = _CLOCK.sub(_clock, text)
    text = _HOUR.sub(_hour, text)
    return _RATIO.sub(lambda match: f"{cardinal(match[1])} to {cardinal(match[2])}", text)


def _clock(match: re.Match) -> str:
    hour, minute = int(match[1]), int(match[2])
    if hour > 24:
        return match[0]
    spoken = [cardinal(hour)]
    if minute:
        spoken.append(two_digits(minute))
    elif not match[4] and not match[3]:
        if hour in (0, 24):
            return "midnight"
        spoken.append("o'clock" if hour <= 12 else "hundred")
    if match[3]:
        seconds = int(match[3])
        spoken.append(f"and {cardinal(seconds)} second{'s' * (seconds != 1)}")
    if match[4]:
        spoken.append(_half(match[4]))
    return " ".join(spoken) + final_stop(match)


def _duration(match: re.Match) -> str:
    hours, minutes, only_minutes, seconds = match.groups()
    units = {"hour": hours, "minute": minutes or only_minutes, "second": seconds}
    parts = [f"{number(value)} {name}{'s' * (value != '1')}" for name, value in units.items() if value]
    return " ".join(parts) if len(parts) > 1 else match[0]


def _hour(match: re.Match) -> str:
    if not 1 <= int(match[1]) <= 24:
        return match[0]
    hours = cardinal(int(match[1])) + (f" to {cardinal(int(match[2]))}" if match[2] else "")
    return f"{hours} {_half(match[3])}{final_stop(match)}"


def _half(letter: str) -> str:
    return spell(letter + "m")
