"""A service that hums, served over Wyoming, and what the tests do with clients of it."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncTcpClient

from fastglow import FastglowError
from fastglow.serve.errors import queue_is_full
from fastglow.serve.metrics import Metrics
from fastglow.serve.wyoming import WyomingServer

SECONDS = 60  # only a fault takes so long
PAUSE = 0.2
N = 50  # samples a character
MAX_CHARACTERS = 1000


class Hum:
    """A service whose audio says what it was asked: a ramp as long as the text, in two chunks."""

    def __init__(self):
        self.voices = {
            name: SimpleNamespace(audio=SimpleNamespace(sampling_rate=rate))
            for name, rate in (("low", 8000), ("high", 22050))
        }
        self.asked, self.stopped = [], []
        self.timeout = SECONDS
        self.metrics = Metrics(lambda: 0, lambda: 0)
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    def described(self):
        return [
            {"id": "low", "name": "low", "language": "en-US", "description": "Low voice", "sample_rate": 8000},
            {"id": "high", "name": "high", "language": "de-DE", "description": "", "sample_rate": 22050},
        ]

    async def speak(self, request):
        text = request.text
        assert request.voice in self.voices and not request.delivery
        self.asked.append((text, request.voice))
        if "refused" in text:
            raise FastglowError(f"text={text!r} must be another")
        if "many" in text:
            raise queue_is_full(64, 3)
        if "broken" in text:
            raise RuntimeError("a fault")
        try:
            audio = ramp(text)
            for chunk in np.array_split(audio, 2):
                yield chunk
                yield SimpleNamespace(text=text)
                await self.may_go_on.wait()
        finally:
            self.stopped.append(text)


def ramp(text):
    return np.linspace(-1, 0.9, N * len(text), dtype=np.float32) if text.strip(".") else np.zeros(0, np.float32)


def pcm(audio):
    return np.rint(audio * np.float64(32768)).astype("<i2").tobytes()


def in_a_loop(test):
    """A test as a coroutine with a service, its server and a function that connects clients."""

    async def run():
        service = Hum()
        server = WyomingServer(service, MAX_CHARACTERS)
        await server.start("127.0.0.1", 0)
        port = int(server.address.removeprefix("tcp://127.0.0.1:"))

        @asynccontextmanager
        async def connected():
            async with AsyncTcpClient("127.0.0.1", port, read_timeout=SECONDS) as client:
                yield client

        try:
            await asyncio.wait_for(test(service, server, connected, port), SECONDS)
        finally:
            server.abort()
            await server.wait_closed()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others

    def wrapper():
        asyncio.run(run())

    wrapper.__name__ = test.__name__
    return wrapper


async def write(client, *events):
    for event in events:
        await client.write_event(event.event())


async def until(client, last):
    """The types of the events up to the last one, and the audio in them, which have one format."""
    types, audio, formats = [], b"", set()
    while True:
        event = await client.read_event()
        assert event is not None, types
        types += [event.type] if event.type not in types[-1:] else []
        if AudioChunk.is_type(event.type) or AudioStart.is_type(event.type):
            formats.add((event.data["rate"], event.data["width"], event.data["channels"]))
            audio += event.payload or b""
        if event.type == last:
            assert len(formats) <= 1
            return types, audio, formats


async def left(client):
    assert await client.read_event() is None
