"""OpenAI's own client against the service."""

import base64
import io
import json

import numpy as np
import openai
import pytest
import soundfile

from fastglow.audio import read_audio

from .conftest import make_app, make_voice
from .serving import running, wav_samples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TEXT = "The first sentence. And a second one, which is longer."
RATES = {"mp3": 22050, "opus": 24000, "flac": 22050, "wav": 22050, "ogg": 22050, "pcm": 24000}


@pytest.fixture(scope="module")
def client(tiny):
    with openai.OpenAI(api_key="none", base_url=f"{tiny.url}/v1", max_retries=0) as client:
        yield client


def create(client, **values):
    values = {"model": "tts-1", "voice": "tiny", "input": TEXT, **values}
    extra = {name: values.pop(name) for name in ("seed", "markdown", "timestamps", "details") if name in values}
    return client.audio.speech.create(**values, extra_body=extra)


@pytest.fixture(scope="module")
def wav(client):
    return create(client, response_format="wav", seed=5).read()


def decoded(data, format, folder):
    if format == "pcm":
        return np.frombuffer(data, "<i2") / np.float32(32768), RATES["pcm"]
    path = folder / f"speech.{format}"
    path.write_bytes(data)
    return read_audio(path)


def test_every_format_has_the_same_speech(heart, tmp_path):
    with openai.OpenAI(api_key="none", base_url=f"{heart.url}/v1", max_retries=0) as client:
        found = {
            format: create(client, voice="heart", input="Every format, the same.", response_format=format, seed=5)
            for format in RATES
        }
    expected = wav_samples(found["wav"].read()) / np.float32(32768)
    for format, answer in found.items():
        audio, rate = decoded(answer.read(), format, tmp_path)
        assert rate == RATES[format] == int(answer.response.headers["x-sample-rate"])
        # MP3 and Opus add a codec's delay and padding.
        assert -1e-3 <= len(audio) / rate - len(expected) / 22050 <= 0.15, format
        energy = np.sum(audio**2) / rate
        # MP3 at its lowest rates leaves out the highest frequencies.
        assert energy == pytest.approx(np.sum(expected**2) / 22050, rel=0.2), format
        if format in ("wav", "flac"):
            np.testing.assert_array_equal(audio, expected)


def test_the_default_is_mp3_of_the_first_voice(tiny):
    answer = tiny.speak(input="Hello.")
    assert answer.status == 200 and answer.headers["content-type"] == "audio/mpeg"
    assert soundfile.info(io.BytesIO(answer.body)).format == "MP3"
    assert answer.headers["x-seed"].isdecimal() and answer.headers["transfer-encoding"] == "chunked"


def test_a_seed_gives_the_same_bytes_and_the_header_tells_it(client, wav):
    assert create(client, response_format="wav", seed=5).read() == wav
    first = create(client, response_format="wav")
    again = create(client, response_format="wav", seed=int(first.response.headers["x-seed"]))
    assert first.read() == again.read() != wav


@pytest.mark.parametrize("vocoder", ["waveglow", "griffin-lim"])
def test_without_batching_it_is_what_the_engine_streams(vocoder):
    voice = make_voice(vocoder)
    with running(make_app({"tiny": voice}, max_batch=1)) as address:
        body = address.speak(input=TEXT, seed=5, response_format="wav", speed=1.2).body
    expected = np.concatenate([*voice.stream(TEXT, seed=5, speed=1.2)])
    np.testing.assert_array_equal(wav_samples(body), np.rint(expected * 32768).clip(-32768, 32767))


def test_streaming(client, wav):
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="tiny", input=TEXT, response_format="wav", extra_body={"seed": 5}
    ) as answer:
        parts = [*answer.iter_bytes()]
    assert len(parts) > 2 and b"".join(parts) == wav


def test_server_sent_events(client, tiny, wav):
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="tiny", input=TEXT, response_format="wav", stream_format="sse", extra_body={"seed": 5}
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"} and len(deltas) > 2
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == wav
    assert done["type"] == "speech.audio.done" and done["seed"] == 5
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"] > 0
    assert done["audio_seconds"] == pytest.approx(len(wav_samples(wav)) / 22050)


def test_events_are_lines_for_those_who_split_at_any_line_separator(tiny):
    text = "One\u2028line. Another\x85one."
    answer = tiny.speak(input=text, stream_format="sse", timestamps=True)
    lines = answer.body.decode().splitlines()
    assert all(not line or line.startswith("data: {") for line in lines)
    spoken = [event["text"] for event in answer.events if event["type"] == "fastglow.sentence"]
    assert " ".join(spoken) == text


def test_the_dated_model_of_the_client_is_known(client):
    assert create(client, model="gpt-4o-mini-tts-2025-12-15", response_format="wav").read()


def test_models_and_voices(client, tiny):
    names = [model.id for model in client.models.list()]
    assert "tts-1" in names and client.models.retrieve("tts-1").id == "tts-1"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.models.retrieve("gpt-9")
    voices = json.loads(tiny.ask("GET", "/v1/audio/voices").body)["voices"]
    assert [voice["id"] for voice in voices] == ["tiny", "other"] and voices[0]["sample_rate"] == 22050
    assert {model["id"] for model in json.loads(tiny.ask("GET", "/v1/audio/models").body)["models"]} == {*names}


def test_speed_and_other_options(client, wav):
    fast = create(client, response_format="wav", seed=5, speed=2.0).read()
    silence = round(0.2 * 22050)
    assert len(wav_samples(fast)) - silence == pytest.approx((len(wav_samples(wav)) - silence) / 2, rel=0.02)
    loud = client.audio.speech.create(
        model="tts-1", voice="tiny", input=TEXT, response_format="wav",
        extra_body={"seed": 5, "volume": 0.5, "sentence_silence": 1, "normalize": False, "trim_silence": True},
    ).read()  # fmt: skip
    assert loud != wav


def test_markdown_and_emoji_are_left_out_unless_told(client):
    marked = create(client, input="# The **first** [sentence](http://x.example). 😀", response_format="wav", seed=1)
    plain = create(client, input="The first sentence.", response_format="wav", seed=1).read()
    assert marked.read() == plain
    link = "[sentence](http://x.example)"
    told = create(client, input=link, response_format="wav", seed=1, markdown=False).read()
    assert told != create(client, input=link, response_format="wav", seed=1).read()


@pytest.mark.parametrize(
    ("values", "error", "param"),
    [
        ({"voice": "alloy"}, openai.BadRequestError, "voice"),
        ({"voice": "../../etc/passwd"}, openai.BadRequestError, "voice"),
        ({"model": "gpt-9"}, openai.NotFoundError, "model"),
        ({"input": ""}, openai.BadRequestError, "input"),
        ({"input": "**😀**"}, openai.BadRequestError, "input"),
        ({"input": "..."}, openai.BadRequestError, "input"),
        ({"input": "x" * 4097}, openai.APIStatusError, "input"),
        ({"speed": 0.25}, openai.BadRequestError, "speed"),
        ({"response_format": "aac"}, openai.BadRequestError, "response_format"),
        ({"stream_format": "websocket"}, openai.BadRequestError, "stream_format"),
        ({"seed": 2**63}, openai.BadRequestError, "seed"),
        ({"timestamps": True}, openai.BadRequestError, "stream_format"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:30],
)
def test_errors_are_the_clients_own(client, values, error, param):
    with pytest.raises(error) as caught:
        create(client, **values)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error" and "\n" not in caught.value.message
    assert caught.value.status_code == {"model": 404}.get(param, 413 if "x" * 99 in str(values) else 400)
