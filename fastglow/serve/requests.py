"""Reads the JSON of `POST /v1/audio/speech`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastglow.audio.formats import STREAM_FORMATS
from fastglow.engine.delivery import Delivery
from fastglow.engine.seeds import check_seed, random_seed
from fastglow.errors import FastglowError
from fastglow.json_values import checked, read_object, shown
from fastglow.text.markdown import without_markdown
from fastglow.text.markup import without_tags
from fastglow.text.pauses import Pause, split_pauses
from fastglow.text.sentences import split_sentences

from .errors import ApiError

Value = TypeVar("Value")

MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15", "fastglow")
"""Names that clients send: all mean the voice's own model."""

MOST_SILENCE = 600.0
"""Seconds, between sentences and in pauses, that a text may ask for."""

_DELIVERY: dict[str, type] = {
    "speed": float, "volume": float, "normalize": bool, "sentence_silence": float, "trim_silence": bool,
}  # fmt: skip
_TYPES: dict[str, type] = {
    **{"model": str, "input": str, "voice": str, "response_format": str, "stream_format": str, "seed": int},
    **{"markdown": bool, "timestamps": bool, "details": bool},
    **_DELIVERY,
}
# An escaped character outside of the Basic Multilingual Plane.
_BYTES_PER_CHARACTER, _OTHER_BYTES = 12, 1 << 16


@dataclass(frozen=True)
class SpeechRequest:
    """A text to speak.

    Attributes:
        text: without Markdown and emoji.
        voice: a name that the service has.
        seed: of the speech.
        delivery: keywords of `Synthesizer.stream_sentences`.
    """

    text: str
    voice: str
    seed: int
    delivery: Mapping[str, Any]


@dataclass(frozen=True)
class AnswerForm:
    """How the speech is to be sent.

    Attributes:
        format: a key of `STREAM_FORMATS`.
        events: as server-sent events, instead of the audio alone.
        timestamps, details: events for sentences with their words; with alignment and mel, too.
    """

    format: str
    events: bool
    timestamps: bool
    details: bool


def most_bytes(most_characters: int) -> int:
    """Of the body of a request for a text of so many characters."""
    return _BYTES_PER_CHARACTER * most_characters + _OTHER_BYTES


def parse(data: bytes, voices: Collection[str], most_characters: int) -> tuple[SpeechRequest, AnswerForm]:
    """The request of a body of JSON.

    Args:
        data: of at most `most_bytes`.
        voices: names, the first is the default.
        most_characters: of the input.

    Raises:
        ApiError: no JSON object, values of other types or out of range, an unknown model, voice or format, an input
            that is too long, blank, or almost all silence.
    """
    values = _given(data)
    if values.get("model", MODELS[0]) not in MODELS:
        raise ApiError(
            404, f"unknown model {shown(values['model'])}: use one of {', '.join(MODELS)}", param="model",
            code="model_not_found",
        )  # fmt: skip
    format = _choice("response_format", values.get("response_format", "mp3"), STREAM_FORMATS)
    events = _choice("stream_format", values.get("stream_format", "audio"), ("audio", "sse")) == "sse"
    form = AnswerForm(format, events, *(values.get(name, False) for name in ("timestamps", "details")))
    if (form.timestamps or form.details) and not events:
        raise ApiError(400, 'timestamps and details are events: add "stream_format": "sse"', param="stream_format")
    text = values.get("input")
    if text is None:
        raise ApiError(400, '"input" is missing: add the text to speak', param="input")
    delivery = {name: values[name] for name in _DELIVERY if name in values}
    request = speech_request(
        text, values.get("voice"), voices, most_characters, values.get("seed"), delivery, values.get("markdown", True)
    )
    return request, form


def speech_request(
    text: str,
    voice: str | None,
    voices: Collection[str],
    most_characters: int,
    seed: int | None = None,
    delivery: Mapping[str, Any] | None = None,
    markdown: bool = True,
) -> SpeechRequest:
    """A request whose values are checked.

    Args:
        text: as sent.
        voice: None: the first of `voices`.
        most_characters: of the text.
        seed: None: a random one.
        delivery: keywords of `Synthesizer.stream_sentences`.
        markdown: leave out Markdown's marks and emoji.

    Raises:
        ApiError: as `parse`.
    """
    if len(text) > most_characters:
        raise ApiError(
            413,
            f"the input has {len(text)} characters, may have {most_characters}: send it in parts",
            param="input",
            code="string_above_max_length",
        )
    spoken = without_markdown(text) if markdown else text
    if not spoken.strip():
        raise ApiError(400, "the input has nothing to speak: add some words", param="input")
    voice = next(iter(voices)) if voice is None else _choice("voice", voice, voices)
    delivery = dict(delivery or {})
    for name, value in delivery.items():
        _check(name, partial(Delivery, **{name: value}))
    _check("input", partial(_check_silence, spoken, delivery.get("sentence_silence", 0.0)))
    seed = random_seed() if seed is None else seed
    _check("seed", partial(check_seed, seed))
    return SpeechRequest(spoken, voice, seed, delivery)


def _check_silence(text: str, sentence_silence: float) -> None:
    """A few characters could ask for hours of it."""
    parts = split_pauses(without_tags(text))
    seconds = math.fsum(part.seconds for part in parts if isinstance(part, Pause))
    if sentence_silence > Delivery.sentence_silence:
        seconds += sentence_silence * sum(len(split_sentences(part)) for part in parts if isinstance(part, str))
    if seconds > MOST_SILENCE:
        raise FastglowError(
            f"the input has {seconds:g} s of pauses, may have {MOST_SILENCE:g} s in all: use fewer, or shorter ones"
        )


def _check(name: str | None, check: Callable[[], Value]) -> Value:
    """What the check returns; raises ApiError, about the parameter `name`, where it raises FastglowError."""
    try:
        return check()
    except FastglowError as error:
        raise ApiError(400, str(error), param=name) from error


def _given(data: bytes) -> dict[str, Any]:
    """The values of known names that are not null; unknown names are of no interest."""
    values = _check(None, partial(read_object, data, "the body", '{"input": "Hello."}', "send JSON in UTF-8"))
    if isinstance(values.get("voice"), dict):
        values["voice"] = values["voice"].get("id", "")
    known = {name: value for name, value in values.items() if name in _TYPES and value is not None}
    return {name: _check(name, partial(checked, name, value, _TYPES[name])) for name, value in known.items()}


def _choice(name: str, value: str, choices: Collection[str]) -> str:
    if value not in choices:
        raise ApiError(400, f"{name}={shown(value)} is unknown: use one of {', '.join(choices)}", param=name)
    return value
