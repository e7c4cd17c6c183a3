"""Pause marks: ``[pause:1.5s]``, ``[pause 500ms]``, ``[pause]``, and what SSML's ``<break>`` is as such a mark."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from fastglow.errors import FastglowError
from fastglow.text.arpabet import arpabet_spans

# Seconds of a pause: at most, and of a mark that does not say.
MAX_PAUSE, DEFAULT_PAUSE = 60.0, 0.75
# Of SSML's strengths, as Azure documents them; "none" forbids a pause that a synthesizer would make inside a phrase.
_STRENGTHS = {"x-weak": 0.25, "weak": 0.5, "medium": 0.75, "strong": 1.0, "x-strong": 1.25}

# A value after a space alone must begin as a number: "[pause for applause]" is text.
_MARK = re.compile(
    r"\[\s{0,9}pause(?:\s{0,9}[:=](?P<value>[^\[\]{}]{0,99})|\s{1,9}(?P<number>[0-9.,+-][^\[\]{}]{0,99})|\s{0,9})\]",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\+?([0-9]{1,60}(?:[.,][0-9]{0,60})?|[.,][0-9]{1,60})\s*"
    r"(?:(?P<milli>ms|msecs?|milliseconds?)|(?P<minutes>mins?|minutes?)|s|secs?|seconds?)?",
    re.IGNORECASE,
)
_ATTRIBUTE = re.compile(r"\s(time|strength)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'/>]+))", re.IGNORECASE)


class PauseMarkWarning(UserWarning):
    """The length of a pause mark cannot be read; `DEFAULT_PAUSE` is used."""


@dataclass(frozen=True)
class Pause:
    """Silence that a mark asks for.

    Attributes:
        seconds: 0 to `MAX_PAUSE`.
    """

    seconds: float


def split_pauses(text: str) -> list[str | Pause]:
    """Cuts a text at its pause marks: ``"One. [pause:2s] Two."`` -> ``["One. ", Pause(2), " Two."]``.

    A mark is ``[pause:1.5s]``, with ``:``, ``=`` or a space; a number without a unit is in seconds, ``ms`` and ``min``
    are other units; ``[pause]`` has `DEFAULT_PAUSE`. Marks inside ``{ARPAbet}`` groups are not looked for.

    Raises:
        FastglowError: a pause is longer than `MAX_PAUSE`.

    Warns:
        PauseMarkWarning: the length of a mark cannot be read.
    """
    parts: list[str | Pause] = []
    position = 0
    for match in _marks(text):
        parts += [text[position : match.start()], Pause(_seconds(match[0], match["value"] or match["number"]))]
        position = match.end()
    return [part for part in (*parts, text[position:]) if part]


def mark_spans(text: str) -> list[tuple[int, int]]:
    """``(start, end)`` of the pause marks, in order."""
    return [match.span() for match in _marks(text)]


def _marks(text: str) -> Iterator[re.Match[str]]:
    position = 0
    for start, end in [*arpabet_spans(text), (len(text), len(text))] if "[" in text else []:
        yield from _MARK.finditer(text, position, start)
        position = end


def mark_of_break(tag: str) -> str:
    """The pause mark of a ``<break>`` tag; empty if it asks for no pause.

    ``time`` counts before ``strength``.
    """
    values = {name.lower(): "".join(value).strip() for name, *value in _ATTRIBUTE.findall(tag)}
    if "time" in values:
        time = values["time"]
        return f"[pause:{time}]" if _TIME.fullmatch(time) else f"[pause:{_seconds(tag, time):g}s]"
    strength = values.get("strength", "medium").lower()
    if strength == "none":
        return ""
    return f"[pause:{_STRENGTHS[strength] if strength in _STRENGTHS else _seconds(tag, strength):g}s]"


def _seconds(mark: str, written: str | None) -> float:
    if written is None or not written.strip():
        return DEFAULT_PAUSE
    time = _TIME.fullmatch(written.strip())
    if time is None:
        warnings.warn(
            f"the length of {mark!r} cannot be read: {DEFAULT_PAUSE:g} s are used; write [pause:1.5s] or [pause:500ms]",
            PauseMarkWarning,
            stacklevel=2,
        )
        return DEFAULT_PAUSE
    number = float(time[1].replace(",", "."))
    seconds = number / 1000 if time["milli"] else number * 60 if time["minutes"] else number
    if seconds > MAX_PAUSE:
        raise FastglowError(
            f"pause={written.strip()} must be at most {MAX_PAUSE:g} seconds: write several in a row for a longer one"
        )
    return seconds
