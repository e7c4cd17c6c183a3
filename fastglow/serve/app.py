"""The routes of the service."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastglow.audio.formats import STREAM_FORMATS
from fastglow.engine import Synthesizer

from .answers import SpeechAnswer, encoded, error_event, events
from .errors import ApiError, internal
from .loading import check_options, ignore_remarks, load_voices
from .metrics import CONTENT_TYPE
from .page import page
from .requests import MODELS, most_bytes, parse
from .service import Service

MOST_CHARACTERS = 4096
"""Of OpenAI's API."""


def create_app(
    voices: Sequence[str] | Mapping[str, Synthesizer] = (),
    *,
    max_batch: int | None = None,
    max_wait_ms: float = 10.0,
    max_queue: int = 64,
    max_characters: int = MOST_CHARACTERS,
    timeout: float = 60.0,
    api_keys: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Starlette:
    """The service as an ASGI application, with its voices loaded and warmed up.

    `uvicorn --factory fastglow.serve:create_app` runs it, as does any ASGI server, in one process: each has its own
    queue and batches. Warnings that quote the spoken texts are ignored from here on.

    Args:
        voices: bundled voices or folders of voices, `VOICE` or `NAME=VOICE`; or synthesizers by name. The first is the
            default. Default: the bundled one.
        max_batch: sentences that are decoded together; 1: none are. Default: 8, on a GPU 64.
        max_wait_ms: milliseconds that a sentence waits for others.
        max_queue: requests that are worked on or wait; further ones are refused with 429.
        max_characters: of an input; longer ones are refused with 413.
        timeout: seconds without speech, without the client reading any, or for its body to come, after which a request
            is given up.
        api_keys: one of them is required for /v1, but for the names of voices and models; default: none is.
        cors_origins: origins whose pages may use the API, "*" for all; default: none but its own page.
        device, dtype: as for `Synthesizer.from_voice`; of the voices that are given by name.

    Raises:
        FastglowError: a voice that cannot be loaded, or an option out of range.
    """
    check_options(max_batch, max_wait_ms, max_queue, max_characters, timeout)
    ignore_remarks()
    loaded = voices if isinstance(voices, Mapping) else load_voices(voices, device, dtype)
    service = Service(
        loaded, max_batch=max_batch, max_wait=max_wait_ms / 1000, max_queue=max_queue, timeout=timeout
    )  # fmt: skip
    routes = _Routes(service, max_characters, [_digest(key.encode()) for key in api_keys])
    cors = Middleware(
        CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"],
        expose_headers=["X-Seed", "X-Sample-Rate", "X-Request-Id", "Retry-After"],
    )  # fmt: skip
    app = Starlette(
        routes=routes.all(),
        middleware=[cors] if cors_origins else [],
        exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: _internal_error},
        lifespan=_lifespan,
    )
    app.state.service = service
    return app


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncGenerator[None, None]:
    yield
    await asyncio.to_thread(app.state.service.close)


class _Routes:
    def __init__(self, service: Service, max_characters: int, key_digests: list[bytes]):
        self.service, self._max_characters, self._key_digests = service, max_characters, key_digests
        self._started = int(time.time())

    def all(self) -> list[Route]:
        return [
            Route("/", page),
            Route("/v1/audio/speech", self.speech, methods=["POST"]),
            # Open: Open WebUI asks for them without its key.
            Route("/v1/audio/voices", self.voices),
            Route("/v1/audio/models", self.audio_models),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/models/{model}", self._guarded(self.model)),
            Route("/health", self.ready),
            Route("/health/live", self.live),
            Route("/health/ready", self.ready),
            Route("/metrics", self.metrics),
        ]

    def _guarded(self, endpoint: Callable) -> Callable:
        async def guarded(request: Request) -> Any:
            self._check_key(request)
            return await endpoint(request)

        return guarded

    def _check_key(self, request: Request) -> None:
        if not self._key_digests:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # All are compared, whole: the time tells neither which key is near nor how near it is. Digests have one length.
        digest = _digest(key.strip().encode("latin-1"))  # the bytes of the header
        matches = [hmac.compare_digest(digest, own) for own in self._key_digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401, "missing or wrong API key: send the header 'Authorization: Bearer KEY'", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    async def speech(self, request: Request) -> SpeechAnswer:
        try:
            self._check_key(request)
            return await self._speech(request)
        except ApiError as error:
            self.service.metrics.requests.labels("", "", error.status).inc()
            raise

    async def _speech(self, request: Request) -> SpeechAnswer:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be JSON: send the header 'Content-Type: application/json'")
        try:
            data = await asyncio.wait_for(_body(request, most_bytes(self._max_characters)), self.service.timeout)
        except asyncio.TimeoutError as error:
            # A body that never ends would also keep the server from ending.
            raise ApiError(
                408, f"the body has not come within {self.service.timeout:g} s: send it again", code="timeout",
                headers={"Connection": "close"},
            ) from error  # fmt: skip
        # Long texts take a while.
        speech, form = await asyncio.to_thread(parse, data, self.service.voices, self._max_characters)
        format = STREAM_FORMATS[form.format]
        encode = partial(events, form=form, request=speech) if form.events else partial(encoded, form=form)
        headers = {
            "Content-Type": "text/event-stream" if form.events else format.media_type,
            "Cache-Control": "no-store",
            # Of nginx, which would hold the stream back.
            "X-Accel-Buffering": "no",
            "X-Seed": str(speech.seed),
            "X-Sample-Rate": str(format.rate_for(self.service.voices[speech.voice].audio.sampling_rate)),
            "X-Request-Id": uuid4().hex,
        }
        started, metrics = time.monotonic(), self.service.metrics

        def done(status: int) -> None:
            metrics.requests.labels(speech.voice, form.format, status).inc()
            if status == 200:
                metrics.total.observe(time.monotonic() - started)

        parts = self.service.run(speech, encode)
        return SpeechAnswer(parts, headers, self.service.timeout, error_event if form.events else None, done)

    async def voices(self, request: Request) -> Response:
        return JSONResponse({"voices": self.service.described()})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in MODELS]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name not in MODELS:
            raise ApiError(
                404, f"unknown model {name!r}: use one of {', '.join(MODELS)}", param="model", code="model_not_found"
            )
        return JSONResponse(self._model(name))

    async def audio_models(self, request: Request) -> Response:
        """Where Open WebUI looks."""
        return JSONResponse({"models": [{"id": name, "name": name} for name in MODELS]})

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "fastglow"}

    async def live(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        closing = self.service.closing
        return JSONResponse({"status": "shutting down" if closing else "ok"}, 503 if closing else 200)

    async def metrics(self, request: Request) -> Response:
        return Response(self.service.metrics.text(), media_type=CONTENT_TYPE)


async def _body(request: Request, most: int) -> bytes:
    """The body, of which no more than `most` bytes are read."""
    too_long = ApiError(413, f"the body has more than {most} bytes: send less text", code="request_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise too_long
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise too_long
    except ClientDisconnect as error:
        raise ApiError(400, "the body is incomplete") from error
    return bytes(data)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(
        error.status_code, f"{request.method} {request.url.path}: {error.detail}", headers=dict(error.headers or {})
    ).response()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _internal_error(request: Request, error: Exception) -> Response:
    return internal(error).response()
