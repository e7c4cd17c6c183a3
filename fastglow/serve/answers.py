"""Speech as the body of a response: encoded audio, or server-sent events."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import numpy as np
from starlette.types import Message, Receive, Scope, Send

from fastglow.audio.encoder import StreamEncoder
from fastglow.engine.speech import Sentence
from fastglow.errors import FastglowError

from .errors import INVALID, ApiError, internal
from .requests import AnswerForm, SpeechRequest
from .service import Progress

Items = Iterator[np.ndarray | Sentence]
LEFT = 499
"""Status of a request whose client has left, as nginx counts it."""


class ClientLeft(Exception):
    """Nobody waits for the response any more."""


def encoded(items: Items, progress: Progress, form: AnswerForm) -> Iterator[bytes]:
    """The audio in a format, in pieces.

    Raises:
        FastglowError: there is none.
    """
    encoder = StreamEncoder(form.format, progress.sample_rate)
    for item in items:
        if isinstance(item, np.ndarray) and (data := encoder.push(item)):
            yield data
    _require_speech(progress)
    yield encoder.finish()


def events(items: Items, progress: Progress, form: AnswerForm, request: SpeechRequest) -> Iterator[bytes]:
    """Server-sent events: OpenAI's with the audio, and after each sentence one with its words, if asked for."""
    encoder = StreamEncoder(form.format, progress.sample_rate)
    n_samples = 0
    for item in items:
        if isinstance(item, np.ndarray):
            n_samples += len(item)
            yield from _delta(encoder.push(item))
        elif form.timestamps or form.details:
            yield _event(_sentence(item, n_samples, progress.sample_rate, form.details))
    _require_speech(progress)
    yield from _delta(encoder.finish())
    n_tokens = len(request.text.split())
    yield _event(
        {
            "type": "speech.audio.done",
            # Of words: there are no tokens.
            "usage": {"input_tokens": n_tokens, "output_tokens": 0, "total_tokens": n_tokens},
            "seed": request.seed,
            "audio_seconds": progress.audio_seconds,
            "compute_seconds": progress.compute_seconds,
        }
    )


def error_event(error: ApiError) -> bytes:
    return _event({"type": "error", **error.body})


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an exception."""
    if isinstance(error, ApiError):
        return error
    return ApiError(400, str(error)) if isinstance(error, FastglowError) else internal(error)


def _require_speech(progress: Progress) -> None:
    if not progress.audio_seconds:
        raise ApiError(400, "the input gave no speech: add some words", type=INVALID, param="input")


def _delta(data: bytes) -> Iterator[bytes]:
    if data:
        yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


def _sentence(sentence: Sentence, end: int, rate: int, details: bool) -> dict[str, Any]:
    """An event; `end`: in samples of the whole audio."""
    start = (end - len(sentence.audio)) / rate
    words = [{"word": word.text, "start": start + word.start, "end": start + word.end} for word in sentence.words]
    event = {"type": "fastglow.sentence", "text": sentence.text, "start": start, "end": end / rate, "words": words}
    if not details:
        return event
    return {**event, "alignment": _picture(sentence.alignment), "mel": _picture(_spread(sentence.mel))}


def _spread(mel: np.ndarray) -> np.ndarray:
    """From 0, the lowest value, to 1, the highest."""
    if not mel.size:
        return mel
    lowest = mel.min()
    return (mel - lowest) / max(mel.max() - lowest, 1e-9)


def _picture(values: np.ndarray) -> dict[str, Any]:
    """[0, 1] as bytes."""
    data = np.rint(values * 255).clip(0, 255).astype(np.uint8)
    return {"shape": list(values.shape), "data": base64.b64encode(data.tobytes()).decode()}


def _event(value: dict[str, Any]) -> bytes:
    # In ASCII: many clients take U+2028 and its like for ends of lines.
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class SpeechAnswer:
    """A response whose body is made while it is sent.

    An error before the first part is a response of its own. A later one is an event, or ends the connection in the
    middle of the body, so that over HTTP/1.1 no client takes a part for the whole.

    Args:
        parts: of the body.
        headers: of the response.
        timeout: seconds that a client may leave a part unread.
        on_error: makes an event of an error; None: the body is audio.
        done: told the status in the end.
    """

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        timeout: float,
        on_error: Callable[[ApiError], bytes] | None,
        done: Callable[[int], None],
    ):
        self._parts, self._headers, self._timeout = parts, headers, timeout
        self._on_error, self._done = on_error, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        status = LEFT
        try:
            first = await self._next(gone)
        except ClientLeft:
            pass
        except Exception as error:
            told = as_api_error(error)
            status = told.status
            await told.response()(scope, receive, send)
            if status == 500:
                raise
        else:
            status = await self._stream(first, gone, send)
        finally:
            gone.cancel()
            await self._parts.aclose()
            self._done(status)

    async def _stream(self, part: bytes | None, gone: asyncio.Future, send: Send) -> int:
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in self._headers.items()]
        try:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": headers})
            while part is not None:
                await self._send(send, {"type": "http.response.body", "body": part, "more_body": True})
                part = await self._next(gone)
        except ClientLeft:
            return LEFT
        except Exception as error:
            told = as_api_error(error)
            if self._on_error is None:
                self._done(told.status)
                self._done = lambda status: None
                raise
            await self._send(send, {"type": "http.response.body", "body": self._on_error(told), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return told.status
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return 200

    async def _send(self, send: Send, message: Message) -> None:
        """Raises ClientLeft if the client does not read."""
        try:
            await asyncio.wait_for(send(message), self._timeout)
        except (OSError, asyncio.TimeoutError) as error:
            raise ClientLeft from error

    async def _next(self, gone: asyncio.Future) -> bytes | None:
        """The next part; None after the last.

        Raises:
            ClientLeft: before it was made.
        """
        made = asyncio.ensure_future(anext(self._parts, None))
        try:
            await asyncio.wait({made, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if left := not made.done():
                # Also if this task is cancelled, as some servers do when the client leaves.
                made.cancel()
                await asyncio.gather(made, return_exceptions=True)
        if left:
            raise ClientLeft
        return made.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
