"""Wyoming: the protocol as Home Assistant and the package's own client speak it, against a service that hums."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeVoice,
)

from fastglow import FastglowError
from fastglow.serve.wyoming import serve_wyoming

SECONDS = 60  # only a fault takes so long
PAUSE = 0.2
N = 50  # samples a character


class Hum:
    """A service whose audio says what it was asked: a ramp as long as the text, in two chunks."""

    def __init__(self):
        self.voices = {
            name: SimpleNamespace(audio=SimpleNamespace(sampling_rate=rate))
            for name, rate in (("low", 8000), ("high", 22050))
        }
        self.asked, self.stopped = [], []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    def described(self):
        return [
            {"id": "low", "name": "low", "language": "en-US", "description": "Low voice", "sample_rate": 8000},
            {"id": "high", "name": "high", "language": "de-DE", "description": "", "sample_rate": 22050},
        ]

    async def speak(self, request):
        text, voice = request
        self.asked.append((text, voice))
        if "refused" in text:
            raise FastglowError(f"text={text!r} must be another")
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
        server = await serve_wyoming(service, "127.0.0.1", 0)

        @asynccontextmanager
        async def connected():
            async with AsyncTcpClient("127.0.0.1", server.port, read_timeout=SECONDS) as client:
                yield client

        try:
            await asyncio.wait_for(test(service, server, connected), SECONDS)
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


@in_a_loop
async def test_describe_and_ping(service, server, connected):
    async with connected() as client:
        await write(client, Describe(), Ping("are you there"))
        info = Info.from_event(await client.read_event())
        assert Pong.from_event(await client.read_event()).text == "are you there"
    [program] = info.tts
    assert program.installed and program.supports_synthesize_streaming
    low, high = program.voices
    assert (low.name, low.languages, low.description, low.installed) == ("low", ["en-US"], "Low voice", True)
    assert (high.name, high.languages, high.description) == ("high", ["de-DE"], None)
    assert not (info.asr or info.wake or info.handle or info.intent)


@in_a_loop
async def test_synthesize(service, server, connected):
    async with connected() as client:
        for text in ("Hello. You there.", "Again."):
            await write(client, Synthesize(text, SynthesizeVoice(name="high")))
            types, audio, formats = await until(client, "audio-stop")
            assert types == ["audio-start", "audio-chunk", "audio-stop"]
            assert audio == pcm(ramp(text)) and formats == {(22050, 2, 1)}
        await write(client, Synthesize("..."))
        assert await until(client, "audio-stop") == (["audio-start", "audio-stop"], b"", {(8000, 2, 1)})
    assert service.asked == [("Hello. You there.", "high"), ("Again.", "high"), ("...", "low")]


@in_a_loop
async def test_voices(service, server, connected):
    for voice, spoken in [
        (None, "low"),
        (SynthesizeVoice(name="low", speaker="5"), "low"),
        (SynthesizeVoice(language="de"), "high"),
        (SynthesizeVoice(language="de_AT"), "high"),
        (SynthesizeVoice(language="en"), "low"),
        (SynthesizeVoice(language="fr"), "low"),
    ]:
        async with connected() as client:
            await write(client, Synthesize("Hi.", voice))
            await until(client, "audio-stop")
            assert service.asked.pop() == ("Hi.", spoken)


@in_a_loop
async def test_stream_as_home_assistant_sends_it(service, server, connected):
    voice = SynthesizeVoice(name="high")
    async with connected() as client:
        await write(client, SynthesizeStart(voice), SynthesizeChunk("First one. Sec"))
        await write(client, SynthesizeChunk("ond one"))
        # The first sentence is spoken while the second one is not complete.
        while True:
            event = await client.read_event()
            if AudioChunk.is_type(event.type):
                first = event.payload
                break
            assert AudioStart.is_type(event.type)
        assert service.asked == [("First one.", "high")]
        text = "First one. Second one."
        await write(client, SynthesizeChunk("."), Synthesize(text, voice), SynthesizeStop())
        types, audio, formats = await until(client, "synthesize-stopped")
        assert types == ["audio-chunk", "audio-stop", "synthesize-stopped"]
        assert formats == {(22050, 2, 1)}
        silence = np.zeros(round(PAUSE * 22050))
        assert first + audio == pcm(np.concatenate((ramp("First one."), silence, ramp("Second one."))))
        assert service.asked == [("First one.", "high"), ("Second one.", "high")]

        await write(client, SynthesizeStart(), SynthesizeStop(), SynthesizeStart(), SynthesizeChunk("... Hi."))
        assert (await until(client, "synthesize-stopped"))[0] == ["audio-start", "audio-stop", "synthesize-stopped"]
        await write(client, SynthesizeStop())
        assert (await until(client, "synthesize-stopped"))[1] == pcm(ramp("Hi."))


@in_a_loop
async def test_one_that_is_silent_brings_no_pause(service, server, connected):
    async with connected() as client:
        await write(client, SynthesizeStart(), SynthesizeChunk("...\n\nA.\n\n...\n\nB."), SynthesizeStop())
        _, audio, _ = await until(client, "synthesize-stopped")
        assert audio == pcm(np.concatenate((ramp("A."), np.zeros(round(PAUSE * 8000)), ramp("B."))))


@pytest.mark.parametrize(
    "events, reason",
    [
        ([Synthesize("Hi.", SynthesizeVoice(name="../x"))], "unknown voice '../x': use one of low, high"),
        ([SynthesizeStart(SynthesizeVoice(name="x"))], "unknown voice 'x'"),
        ([Synthesize("refused")], "text='refused' must be another"),
        ([SynthesizeStart(), SynthesizeChunk("This is refused.\n\n")], "must be another"),
        ([Synthesize("broken")], "the server failed"),
        ([SynthesizeChunk("Hi.")], "send synthesize-start first"),
        ([SynthesizeStop()], "send synthesize-start first"),
        ([SynthesizeStart(), SynthesizeStart()], "send synthesize-stop first"),
        ([Synthesize(5)], "text=5 must be a string"),
        ([SynthesizeStart(), SynthesizeChunk(None)], "text=None must be a string"),
        ([Synthesize("x" * 2**20)], "more than 1048576 bytes"),
    ],
)
def test_an_error_is_told_and_ends_the_connection(events, reason, caplog):
    @in_a_loop
    async def test(service, server, connected):
        async with connected() as client:
            await write(client, *events)
            error = Error.from_event(await client.read_event())
            assert reason in error.text and error.code
            await left(client)
        async with connected() as client:
            await write(client, Ping())
            assert Pong.is_type((await client.read_event()).type)

    test()
    assert ("a fault" in caplog.text) == (reason == "the server failed")


LINES = [
    "no JSON",
    "[]",
    "7",
    "{}",
    '{"type": 5}',
    '{"type": "ping", "data": []}',
    '{"type": "ping", "data": [], "data_length": 2}\n{}',
    '{"type": "ping", "data_length": "2"}',
    '{"type": "ping", "data_length": 99999999999}',
    '{"type": "audio-chunk", "payload_length": 99999999999}',
    '{"type": "synthesize", "data": {"text": "Hi.", "voice": 5}}',
    '{"type": "synthesize", "data": {"text": "Hi.", "voice": {"name": ["low"]}}}',
    "[" * 50_000,
    "x" * 200_000,
]


@in_a_loop
async def test_what_is_no_event(service, server, connected):
    for line in LINES:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(line.encode() + b"\n")
        told = await reader.readline()
        assert json.loads(told)["type"] == "error", line
        await reader.read()
        writer.close()
    assert not service.asked


@in_a_loop
async def test_other_events_are_ignored(service, server, connected):
    async with connected() as client:
        await write(client, AudioStart(8000, 2, 1), AudioChunk(8000, 2, 1, b"12"), AudioStop(), Ping())
        assert Pong.is_type((await client.read_event()).type)


@in_a_loop
async def test_a_client_that_leaves_stops_the_work(service, server, connected):
    service.may_go_on.clear()
    async with connected() as client:
        await write(client, Synthesize("Hello."), Synthesize("Never."))
        while not AudioChunk.is_type((await client.read_event()).type):
            pass
        await write(client, Ping())  # answered while it speaks
        assert Pong.is_type((await client.read_event()).type)
        assert not service.stopped
    while not service.stopped:
        await asyncio.sleep(0.01)
    # In the middle of an event.
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b'{"type": "ping", "data_length": 20}\n{')
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    assert service.asked == [("Hello.", "low")] and service.stopped == ["Hello."]


@in_a_loop
async def test_clients_side_by_side(service, server, connected):
    service.may_go_on.clear()

    async def one(i):
        text = f"Client {i}" + "." * i
        async with connected() as client:
            await write(client, Synthesize(text))
            return text, (await until(client, "audio-stop"))[1]

    async def release():
        while len(service.asked) < 20:
            await asyncio.sleep(0.01)
        service.may_go_on.set()

    *results, _ = await asyncio.gather(*map(one, range(20)), release())
    assert all(audio == pcm(ramp(text)) for text, audio in results)


@in_a_loop
async def test_close_finishes_what_has_begun(service, server, connected):
    service.may_go_on.clear()
    port = server.port
    async with connected() as idle, connected() as busy, connected() as writing:
        await write(idle, Ping())
        await idle.read_event()
        await write(busy, Synthesize("Hello."))
        await write(writing, SynthesizeStart(), SynthesizeChunk("One. Two "))
        while len(service.asked) < 2:
            await asyncio.sleep(0.01)
        server.close()
        await left(idle)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        await write(writing, SynthesizeChunk("words."), SynthesizeStop())
        service.may_go_on.set()
        assert (await until(busy, "audio-stop"))[1] == pcm(ramp("Hello."))
        assert (await until(writing, "synthesize-stopped"))[0][-1] == "synthesize-stopped"
        await left(busy)
        await left(writing)
        await server.wait_closed()
    assert [text for text, _ in service.asked] == ["Hello.", "One.", "Two words."]


@in_a_loop
async def test_abort_stops_what_goes_on(service, server, connected):
    service.may_go_on.clear()
    async with connected() as client:
        await write(client, Synthesize("Hello."))
        while not service.asked:
            await asyncio.sleep(0.01)
        server.abort()
        await server.wait_closed()
        assert service.stopped == ["Hello."]


@in_a_loop
async def test_a_client_that_does_not_read_is_not_spoken_to(service, server, connected):
    """What it does not take waits in the service, not in memory here."""
    text = "A" * 10_000 + ".\n\n"
    async with connected() as client:
        await write(client, SynthesizeStart())
        for _ in range(60):
            await write(client, SynthesizeChunk(text))
        await asyncio.sleep(0.3)
        assert 0 < len(service.asked) < 60 * len(text) / 400


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FastglowError, match=rf"cannot listen for Wyoming at 127\.0\.0\.1:{port}: .*in use"):
            asyncio.run(serve_wyoming(Hum(), "127.0.0.1", port))
