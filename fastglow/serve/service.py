"""The voices of a service, and the work on its requests: in threads, bounded, given up when nobody waits for it."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from torch import Tensor

from fastglow.engine import Synthesizer
from fastglow.engine.lanes import Lanes
from fastglow.engine.recording import Recorder
from fastglow.engine.speech import Sentence
from fastglow.engine.vocoders import Context, Vocoder

from .errors import queue_is_full, shutting_down, timed_out
from .metrics import Metrics
from .requests import SpeechRequest

Part = TypeVar("Part")
_END = object()
# Requests whose times say how soon another is likely to find room.
_REMEMBERED = 32


@dataclass
class Progress:
    """Of the work on a request.

    Attributes:
        sample_rate: of the audio, in Hz.
        audio_seconds: made so far.
        compute_seconds: spent on it, waiting for the decoder included.
        first_audio: seconds from the request to the first samples.
    """

    sample_rate: int
    audio_seconds: float = 0.0
    compute_seconds: float = 0.0
    first_audio: float | None = None


Encode = Callable[[Iterator[np.ndarray | Sentence], Progress], Iterator[Part]]
"""What is done with the speech of a request, in its thread."""


class Service:
    """Speaks requests with the given voices.

    Args:
        voices: by name, the first is the default.
        max_batch: sentences that are decoded together, whose bits do not depend on it; 1: each request for itself.
            Default: the voice's `Synthesizer.batch_size`.
        max_wait: seconds that a sentence waits for others.
        max_queue: requests that are worked on or wait.
        timeout: seconds without any progress after which a request is given up.
    """

    def __init__(
        self,
        voices: Mapping[str, Synthesizer],
        *,
        max_batch: int | None = None,
        max_wait: float = 0.01,
        max_queue: int = 64,
        timeout: float = 60.0,
    ):
        self.voices, self.timeout, self.max_queue = dict(voices), timeout, max_queue
        self.metrics = Metrics(lambda: self.n_active, lambda: sum(one.n_waiting for one in self._lanes.values()))
        self.closing = False
        self.n_active = 0
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(max_queue, "fastglow: request")
        self._vocoders: dict[Synthesizer, Vocoder] = {}
        self._lanes: dict[Synthesizer, Lanes] = {}
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._vocoding = ThreadPoolExecutor(1, "fastglow: vocoder")
        for voice in self.voices.values():
            if voice in self._vocoders:
                continue
            self._vocoders[voice] = _InOneThread(voice.vocoder, self._vocoding)
            if (most := max_batch or voice.batch_size) > 1:
                lanes = Lanes(voice.acoustic, most, max_wait, self.metrics.batch_size.observe)
                lanes.rows.warm_up()
                self._lanes[voice] = lanes

    def described(self) -> list[dict[str, Any]]:
        """The voices for clients: id, name, language (as en-US), description, sample_rate in Hz."""
        return [
            {
                "id": name,
                "name": name,
                "language": one.voice.language if one.voice else "",
                "description": one.voice.description if one.voice else "",
                "sample_rate": one.audio.sampling_rate,
            }
            for name, one in self.voices.items()
        ]

    async def speak(self, request: SpeechRequest) -> AsyncGenerator[np.ndarray | Sentence, None]:
        """`Synthesizer.stream_sentences` of a request: float32 chunks and sentences. `aclose()` ends the work.

        Raises:
            ApiError: the queue is full, the service shuts down, or there was no progress for too long.
            FastglowError: as of the synthesizer.
        """
        async with aclosing(self.run(request, lambda items, progress: items)) as items:
            async for item in items:
                yield item

    async def run(self, request: SpeechRequest, encode: Encode[Part]) -> AsyncGenerator[Part, None]:
        """What `encode` makes of the speech; errors as of `speak`. One part is made ahead of the reader."""
        started = time.monotonic()
        self._enter()
        voice = self.voices[request.voice]
        view = copy.copy(voice)
        view.vocoder = self._vocoders[voice]
        seat = self._lanes[voice].seat() if voice in self._lanes else None
        if seat is not None:
            view.acoustic = seat
        parts = self._work(view, request, encode, started)
        step: Future = Future()
        try:
            # Fails if the system gives no more threads.
            step = self._pool.submit(next, parts, _END)
            while (part := await self._result(step)) is not _END:
                step = self._pool.submit(next, parts, _END)
                yield cast(Part, part)
            self._seconds.append(time.monotonic() - started)
        finally:
            if seat is not None:
                seat.close()
            # Once the thread is done with its part; a part that no thread has begun is taken back.
            step.cancel()
            step.add_done_callback(lambda _: self._leave(parts))

    def close(self) -> None:
        """Finishes what is being worked on, and refuses the rest."""
        with self._changed:
            self.closing = True
            self._changed.wait_for(lambda: not self.n_active)
        self._pool.shutdown()
        self._vocoding.shutdown()
        for lanes in self._lanes.values():
            lanes.close()

    async def _result(self, step: Future) -> object:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(step), self.timeout)
        except asyncio.TimeoutError as error:
            raise timed_out(self.timeout) from error

    def _enter(self) -> None:
        with self._changed:
            if self.closing:
                raise shutting_down()
            if self.n_active >= self.max_queue:
                raise queue_is_full(self.max_queue, self._seconds_until_room())
            self.n_active += 1

    def _leave(self, parts: Generator) -> None:
        try:
            parts.close()
        finally:
            with self._changed:
                self.n_active -= 1
                self._changed.notify_all()

    def _seconds_until_room(self) -> int:
        """A request ends every so often, if all take as long as the latest."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
        return max(1, math.ceil(mean / self.max_queue))

    def _work(
        self, view: Synthesizer, request: SpeechRequest, encode: Encode[Part], started: float
    ) -> Generator[Part, None, None]:
        progress = Progress(view.audio.sampling_rate)
        speech = view.stream_sentences(request.text, request.seed, **request.delivery)
        with closing(speech):
            yield from encode(self._measured(speech, progress, started), progress)
        self.metrics.audio.inc(progress.audio_seconds)
        if progress.audio_seconds:
            self.metrics.real_time_factor.observe(progress.compute_seconds / progress.audio_seconds)

    def _measured(
        self, speech: Generator[np.ndarray | Sentence, None, None], progress: Progress, started: float
    ) -> Iterator[np.ndarray | Sentence]:
        while True:
            began = time.monotonic()
            item = next(speech, None)
            progress.compute_seconds += time.monotonic() - began
            if item is None:
                return
            if isinstance(item, np.ndarray):
                progress.audio_seconds += len(item) / progress.sample_rate
                if progress.first_audio is None:
                    progress.first_audio = time.monotonic() - started
                    self.metrics.first_audio.observe(progress.first_audio)
            elif item.fault:
                self.metrics.faults.labels(item.fault).inc()
            yield item


class _InOneThread(Vocoder):
    """A vocoder that all requests call in one thread: a call has all cores to itself, and OpenMP, which keeps threads
    for each thread that computes, keeps them once."""

    def __init__(self, vocoder: Vocoder, thread: ThreadPoolExecutor):
        self._vocoder, self._thread = vocoder, thread

    @property
    def call(self) -> Recorder | None:
        return self._vocoder.call

    @property
    def context(self) -> Context | None:
        return self._vocoder.context

    def vocode(
        self, mels: Tensor, lengths: Sequence[int], seeds: Sequence[int], first_frame: int = 0
    ) -> list[np.ndarray]:
        return self._thread.submit(self._vocoder.vocode, mels, lengths, seeds, first_frame).result()

    def warm_up(self, mel: Tensor) -> None:
        self._vocoder.warm_up(mel)
