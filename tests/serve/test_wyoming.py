"""Wyoming as Home Assistant and the package's own client speak it."""

import asyncio

import numpy as np
from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from fastglow import Synthesizer
from fastglow.serve.service import Service
from fastglow.serve.wyoming import wyoming_beside

from .hum import MAX_CHARACTERS, PAUSE, SECONDS, Hum, in_a_loop, pcm, ramp, until, write


@in_a_loop
async def test_describe_and_ping(service, server, connected, port):
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
async def test_synthesize(service, server, connected, port):
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
async def test_voices(service, server, connected, port):
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
async def test_stream_as_home_assistant_sends_it(service, server, connected, port):
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
async def test_one_that_is_silent_brings_no_pause(service, server, connected, port):
    async with connected() as client:
        await write(client, SynthesizeStart(), SynthesizeChunk("...\n\nA.\n\n...\n\nB."), SynthesizeStop())
        _, audio, _ = await until(client, "synthesize-stopped")
        assert audio == pcm(np.concatenate((ramp("A."), np.zeros(round(PAUSE * 8000)), ramp("B."))))


@in_a_loop
async def test_clients_side_by_side(service, server, connected, port):
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
async def test_markdown(service, server, connected, port):
    text = "**One.** Two 👋.\n\n```sh\nls. It.\n```\n\n👋\n\n`Three`."
    async with connected() as client:
        await write(client, Synthesize(text), SynthesizeStart(), SynthesizeChunk(text), SynthesizeStop())
        await until(client, "synthesize-stopped")
        await write(client, Synthesize("👋"))
        assert (await until(client, "audio-stop"))[0] == ["audio-start", "audio-stop"]
    assert [text for text, _ in service.asked] == ["One. Two.\n\nThree.", "One.", "Two.", "Three."]


def test_beside_another_server():
    async def run():
        service = Hum()
        async with wyoming_beside(service, "127.0.0.1", 0, MAX_CHARACTERS) as address:
            async with AsyncTcpClient("127.0.0.1", int(address.rpartition(":")[2]), read_timeout=SECONDS) as client:
                await write(client, Synthesize("Hello."))
                assert (await until(client, "audio-stop"))[1] == pcm(ramp("Hello."))
                await write(client, Synthesize("Bye."))
                await until(client, "audio-chunk")
                return asyncio.create_task(until(client, "audio-stop"))

    asyncio.run(run())


def test_a_voice(monkeypatch):
    """With the service itself: the engine's own bits."""
    monkeypatch.setattr("fastglow.serve.requests.random_seed", lambda: 5)
    voice = Synthesizer.from_voice("heart")
    service = Service({"heart": voice}, max_batch=1)

    async def run():
        async with wyoming_beside(service, "127.0.0.1", 0, MAX_CHARACTERS) as address:
            async with AsyncTcpClient("127.0.0.1", int(address.rpartition(":")[2]), read_timeout=SECONDS) as client:
                await write(client, Describe(), Synthesize("Yes. No."))
                [told] = Info.from_event(await client.read_event()).tts[0].voices
                assert (told.name, told.languages) == ("heart", ["en-US"]) and told.description
                _, whole, formats = await until(client, "audio-stop")
                assert formats == {(voice.audio.sampling_rate, 2, 1)}
                await write(
                    client, SynthesizeStart(), SynthesizeChunk("Yes. N"), SynthesizeChunk("o."), SynthesizeStop()
                )
                return whole, (await until(client, "synthesize-stopped"))[1]

    whole, streamed = asyncio.run(run())
    service.close()
    yes, no, both = (np.concatenate(list(voice.stream(text, 5))) for text in ("Yes.", "No.", "Yes. No."))
    silence = np.zeros(round(PAUSE * voice.audio.sampling_rate), np.float32)
    assert whole == pcm(both)
    assert streamed == pcm(np.concatenate((yes, silence, no)))
