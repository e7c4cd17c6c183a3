"""Wyoming clients that err, leave or do not read, and the end of the server."""

import asyncio
import json
import os
import queue
import signal
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from threading import Thread

import pytest
from starlette.applications import Starlette
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from fastglow import FastglowError
from fastglow.serve.running import listening, run
from fastglow.serve.wyoming import wyoming_beside

from .hum import MAX_CHARACTERS, SECONDS, Hum, in_a_loop, left, pcm, ramp, until, write


@pytest.mark.parametrize(
    "events, reason",
    [
        ([Synthesize("Hi.", SynthesizeVoice(name="../x"))], "unknown voice '../x': use one of low, high"),
        ([SynthesizeStart(SynthesizeVoice(name="x"))], "unknown voice 'x'"),
        ([Synthesize("Too many.")], "64 requests are being worked on, which is the most: try again in 3 s"),
        ([Synthesize("x" * 1001)], "the input has 1001 characters, may have 1000"),
        ([Synthesize("refused")], "text='refused' must be another"),
        ([SynthesizeStart(), SynthesizeChunk("This is refused.\n\n")], "must be another"),
        ([Synthesize("broken")], "the server failed with RuntimeError: see its log"),
        ([SynthesizeChunk("Hi.")], "send synthesize-start first"),
        ([SynthesizeStop()], "send synthesize-start first"),
        ([SynthesizeStart(), SynthesizeStart()], "send synthesize-stop first"),
        ([Synthesize(5)], "text=5 must be a string"),
        ([SynthesizeStart(), SynthesizeChunk(None)], "text=None must be a string"),
        ([Synthesize("x" * 2**20)], "more than 77536 bytes"),
    ],
)
def test_an_error_is_told_and_ends_the_connection(events, reason, caplog):
    @in_a_loop
    async def test(service, server, connected, port):
        async with connected() as client:
            await write(client, *events)
            error = Error.from_event(await client.read_event())
            assert reason in error.text and error.code
            await left(client)
        async with connected() as client:
            await write(client, Ping())
            assert Pong.is_type((await client.read_event()).type)

    test()
    assert ("a fault" in caplog.text) == reason.startswith("the server failed")


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
async def test_what_is_no_event(service, server, connected, port):
    for line in LINES:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line.encode() + b"\n")
        told = await reader.readline()
        assert json.loads(told)["type"] == "error", line
        await reader.read()
        writer.close()
    assert not service.asked


@in_a_loop
async def test_other_events_are_ignored(service, server, connected, port):
    async with connected() as client:
        await write(client, AudioStart(8000, 2, 1), AudioChunk(8000, 2, 1, b"12"), AudioStop(), Ping())
        assert Pong.is_type((await client.read_event()).type)


@in_a_loop
async def test_a_client_that_leaves_stops_the_work(service, server, connected, port):
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
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b'{"type": "ping", "data_length": 20}\n{')
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    assert service.asked == [("Hello.", "low")] and service.stopped == ["Hello."]


@in_a_loop
async def test_close_finishes_what_has_begun(service, server, connected, port):
    service.may_go_on.clear()
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
async def test_abort_stops_what_goes_on(service, server, connected, port):
    service.may_go_on.clear()
    async with connected() as client:
        await write(client, Synthesize("Hello."))
        while not service.asked:
            await asyncio.sleep(0.01)
        server.abort()
        await server.wait_closed()
        assert service.stopped == ["Hello."]


@in_a_loop
async def test_a_client_that_does_not_read_is_not_spoken_to(service, server, connected, port):
    """What it does not take waits in the service, not in memory here."""
    text = "A" * 10_000 + ".\n\n"
    async with connected() as client:
        await write(client, SynthesizeStart())
        for _ in range(60):
            await write(client, SynthesizeChunk(text))
        await asyncio.sleep(0.3)
        assert 0 < len(service.asked) < 60 * len(text) / 400


@in_a_loop
async def test_a_client_that_does_not_read_is_given_up(service, server, connected, port):
    service.timeout = 0.2
    async with connected() as client:
        await write(client, *[Synthesize("x" * 1000) for _ in range(400)])
        while server._connections:
            await asyncio.sleep(0.01)
    assert service.asked and len(service.stopped) == len(service.asked) < 400


@in_a_loop
async def test_a_text_without_end_does_not_hold_up_the_end(service, server, connected, port):
    service.timeout = 0.2
    async with connected() as client:
        await write(client, SynthesizeStart(), SynthesizeChunk("One. Two "))
        await until(client, "audio-chunk")
        server.close()
        await server.wait_closed()
        assert service.asked == [("One.", "low")]


@in_a_loop
async def test_metrics(service, server, connected, port):
    for text in ("Hi.", "Ho.", "Too many.", "broken"):
        async with connected() as client:
            await write(client, Synthesize(text, SynthesizeVoice(name="high")))
            while (event := await client.read_event()) and event.type not in ("audio-stop", "error"):
                pass
    service.may_go_on.clear()
    async with connected() as client:
        await write(client, Synthesize("Bye."))
        await until(client, "audio-chunk")
    while server._connections:
        await asyncio.sleep(0.01)
    counted = [
        line for line in service.metrics.text().decode().splitlines() if line.startswith("fastglow_requests_total")
    ]
    assert sorted(counted) == [
        f'fastglow_requests_total{{format="wyoming",status="{status}",voice="{voice}"}} {n}.0'
        for status, voice, n in [(200, "high", 2), (429, "high", 1), (499, "low", 1), (500, "high", 1)]
    ]


def test_a_text_that_has_begun_is_spoken_before_the_service_ends():
    service, order, addresses = Hum(), [], queue.SimpleQueue()

    @asynccontextmanager
    async def lifespan(app):
        yield
        order.append("the service ends")

    async def speak():
        addresses.get(timeout=SECONDS)
        port = int(addresses.get(timeout=SECONDS).rpartition(":")[2])
        async with AsyncTcpClient("127.0.0.1", port, read_timeout=SECONDS) as client:
            await write(client, SynthesizeStart(), SynthesizeChunk("One. Two "))
            await until(client, "audio-chunk")
            os.kill(os.getpid(), signal.SIGTERM)
            with suppress(OSError):
                while True:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)  # uvicorn itself waits for 0.1 s
            await write(client, SynthesizeChunk("words."), SynthesizeStop())
            await until(client, "synthesize-stopped")
            order.append("all is spoken")

    def run_client():
        try:
            asyncio.run(speak())
        except BaseException:
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    client = Thread(target=run_client)
    with listening("127.0.0.1", 0) as listener:
        client.start()
        beside = partial(wyoming_beside, service, "127.0.0.1", 0, MAX_CHARACTERS)
        run(Starlette(lifespan=lifespan), listener, addresses.put, beside)
    client.join(SECONDS)
    assert order == ["all is spoken", "the service ends"]


def test_a_port_that_is_taken():
    async def run(port):
        async with wyoming_beside(Hum(), "127.0.0.1", port, MAX_CHARACTERS):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FastglowError, match=rf"cannot listen for Wyoming at 127\.0\.0\.1:{port}: .*in use"):
            asyncio.run(run(port))
