"""Many clients: each gets what it would get alone; those that are slow, leave or are too many do no harm."""

import asyncio
import json
import socket
import threading
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest

from fastglow.serve.requests import SpeechRequest

from .conftest import make_app, make_voice
from .serving import running

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

N_REQUESTS, N_CLIENTS = 200, 32
TEXTS = [
    "Yes.",
    "The second text is longer, and has one sentence only.",
    "A third. It has three. They are short.",
    "Numbers: 1914, $3.50 and 5:15 pm.",
    "A sentence that goes on for so long that it is read in another shape than the others, since it has more symbols.",
]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def request(i, **values):
    return {"input": TEXTS[i % len(TEXTS)], "seed": i % 20, "response_format": ("wav", "pcm")[i % 2], **values}


def test_two_hundred_requests_at_thirty_two_at_once(tiny):
    alone = [tiny.speak(**request(i)) for i in range(20)]
    batches, sentences = tiny.metric("fastglow_batch_size_count"), tiny.metric("fastglow_batch_size_sum")
    with ThreadPoolExecutor(N_CLIENTS) as clients:
        answers = [*clients.map(lambda i: tiny.speak(**request(i)), range(N_REQUESTS))]
    assert all(answer.status == 200 for answer in answers)
    assert all(answer.body == alone[i % 20].body for i, answer in enumerate(answers))
    assert len({answer.body for answer in alone}) == 20
    # They were decoded together.
    batches = tiny.metric("fastglow_batch_size_count") - batches
    assert tiny.metric("fastglow_batch_size_sum") - sentences > batches
    assert tiny.metric("fastglow_requests_active") == tiny.metric("fastglow_sentences_waiting") == 0


def test_a_client_that_reads_slowly_gets_all_and_holds_nobody_up(tiny):
    values = {"input": " ".join(["One more sentence."] * 40), "seed": 1, "response_format": "wav"}
    expected = tiny.speak(**values).body
    sock = tiny.raw(values)
    head = sock.recv(4096)
    quick = tiny.speak(input="Quick.", seed=2)
    assert quick.status == 200
    data = bytearray(head)
    while part := sock.recv(16384):
        data += part
        time.sleep(0.001)
        if data.endswith(b"\r\n0\r\n\r\n") or data.endswith(b"0\r\n\r\n"):
            break
    sock.close()
    assert body_of(bytes(data)) == expected


def body_of(data):
    """Of a response in chunks."""
    _, _, rest = data.partition(b"\r\n\r\n")
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        n = int(size, 16)
        if not n:
            return body
        body, rest = body + rest[:n], rest[n + 2 :]


class Held:
    """A voice whose vocoder waits for `may_go_on`."""

    def __init__(self):
        self.voice = make_voice()
        self.may_go_on = threading.Event()
        self.n_calls = 0
        vocode = self.voice.vocoder.vocode

        def held(*args):
            self.n_calls += 1
            assert self.may_go_on.wait(60)
            return vocode(*args)

        self.voice.vocoder.vocode = held


@pytest.fixture
def held():
    held = Held()
    yield held
    held.may_go_on.set()


LONG = " ".join(["One more sentence."] * 500)


def test_the_work_ends_when_the_client_leaves(held):
    with running(make_app({"held": held.voice}, max_batch=2)) as address:
        sock = address.raw({"input": LONG[:4000]})
        wait_for(lambda: held.n_calls)
        sock.close()
        # It is found out while the thread still works.
        wait_for(lambda: address.metric("fastglow_requests_total", status="499") == 1)
        held.may_go_on.set()
        wait_for(lambda: address.metric("fastglow_requests_active") == 0)
        n_calls = held.n_calls
        assert address.speak(input="Hello.").status == 200
        assert n_calls <= 2 < held.n_calls + 2


def test_a_client_that_leaves_while_its_sentence_waits(held):
    with running(make_app({"held": held.voice}, max_batch=1, max_queue=2)) as address:
        socks = [address.raw({"input": "Hello."}) for _ in range(2)]
        wait_for(lambda: address.metric("fastglow_requests_active") == 2)
        for sock in socks:
            sock.close()
        wait_for(lambda: address.metric("fastglow_requests_total", status="499") == 2)
        held.may_go_on.set()
        wait_for(lambda: address.metric("fastglow_requests_active") == 0)


def test_more_requests_than_the_queue_holds_are_told_when_to_try_again(held):
    with running(make_app({"held": held.voice}, max_queue=2)) as address:
        socks = [address.raw({"input": "Hello."}) for _ in range(2)]
        wait_for(lambda: address.metric("fastglow_requests_active") == 2)
        answer = address.speak(input="Hello.")
        assert answer.status == 429 and answer.error["code"] == "rate_limit_exceeded"
        assert int(answer.headers["retry-after"]) >= 1
        assert address.ask("GET", "/health/ready").status == 200
        held.may_go_on.set()
        for sock in socks:
            assert sock.recv(15).startswith(b"HTTP/1.1 200")
            sock.close()
        wait_for(lambda: address.metric("fastglow_requests_active") == 0)
        assert address.speak(input="Hello.").status == 200
        assert address.metric("fastglow_requests_total", status="429") == 1


def test_a_request_without_progress_is_given_up(held):
    with running(make_app({"held": held.voice}, timeout=0.05)) as address:
        answer = address.speak(input="Hello.")
        assert answer.status == 504 and answer.error["code"] == "timeout"
        held.may_go_on.set()
        wait_for(lambda: address.metric("fastglow_requests_active") == 0)


def test_a_client_that_never_reads_is_given_up():
    app = make_app({"tiny": make_voice()}, timeout=0.3, max_characters=10**6)
    with running(app) as address:
        # The kernel would hold all 26 MB for the client.
        small = {socket.SO_RCVBUF: 1 << 16}
        sock = address.raw({"input": "Yes." + "[pause:60s]" * 10 + "No.", "response_format": "wav"}, small)
        wait_for(lambda: address.metric("fastglow_requests_total", status="499") == 1)
        wait_for(lambda: address.metric("fastglow_requests_active") == 0)
        sock.close()


def test_a_client_that_never_sends_its_whole_body_is_given_up_and_keeps_nothing_from_ending():
    with running(make_app({"tiny": make_voice()}, timeout=0.3)) as address:
        head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
        socks = [socket.create_connection((address.host, address.port), timeout=60) for _ in range(2)]
        for sock in socks:
            sock.sendall(head + b"\r\n{")
        answer = b"".join(iter(lambda: socks[0].recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408") and b'"code":"timeout"' in answer
        late = socket.create_connection((address.host, address.port), timeout=60)
        late.sendall(head + b"\r\n{")
    for sock in (*socks, late):
        sock.close()


def test_a_server_that_cancels_the_answer_ends_the_work(held):
    """As some do when the client leaves, instead of a message."""
    app = make_app({"held": held.voice}, max_batch=1)
    scope = {"type": "http", "method": "POST", "path": "/v1/audio/speech", "query_string": b"",
             "headers": [(b"content-type", b"application/json")]}  # fmt: skip

    async def cancel():
        messages = iter([{"type": "http.request", "body": b'{"input": "Hello."}'}])

        async def receive():
            if message := next(messages, None):
                return message
            await asyncio.Event().wait()

        async def send(message):
            raise AssertionError(message)

        task = asyncio.create_task(app(scope, receive, send))
        while not held.n_calls:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    service = app.state.service
    assert b'fastglow_requests_total{format="mp3",status="499",voice="held"} 1.0' in service.metrics.text()
    held.may_go_on.set()
    service.close()
    assert service.n_active == 0


def test_a_request_that_gets_no_thread_leaves_room_for_the_next(monkeypatch):
    with running(make_app({"tiny": make_voice()}, max_queue=1)) as address:

        def submit(*args):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(address.service._pool, "submit", submit)
            assert address.speak(input="Hello.").status == 500
        assert address.metric("fastglow_requests_active") == 0
        assert address.speak(input="Hello.").status == 200


def failing_voice(fails):
    """A voice whose vocoder fails in its i-th call if `fails(i)`."""
    voice, calls = make_voice(), count()
    vocode = voice.vocoder.vocode

    def failing(*args):
        if fails(next(calls)):
            raise RuntimeError("CUDA out of memory")
        return vocode(*args)

    voice.vocoder.vocode = failing
    return voice


TWO = "The first sentence. The second sentence."


def test_a_fault_before_the_first_sound_is_an_error():
    with running(make_app({"x": failing_voice(lambda i: True)})) as address:
        answer = address.speak(input=TWO)
        assert answer.status == 500 and answer.error["type"] == "server_error"
        assert "memory" not in answer.error["message"] and "RuntimeError" in answer.error["message"]
        assert address.metric("fastglow_requests_total", status="500") == 1


def test_a_fault_after_the_first_sound_never_looks_like_the_end():
    with running(make_app({"x": failing_voice(lambda i: i % 2)})) as address:
        with pytest.raises(Exception, match="IncompleteRead"):
            address.speak(input=TWO, response_format="wav")
        *deltas, error = address.speak(input=TWO, response_format="wav", stream_format="sse").events
        assert deltas and {event["type"] for event in deltas} == {"speech.audio.delta"}
        assert error["type"] == "error" and error["error"]["type"] == "server_error"
        assert address.metric("fastglow_requests_total", status="500") == 2
        assert address.metric("fastglow_requests_active") == 0


def test_sentences_with_words_and_pictures(heart):
    values = {"input": "Dr. Smith paid $3.50. [pause:1s] Then he left.", "seed": 3, "response_format": "pcm"}
    events = heart.speak(**values, stream_format="sse", details=True).events
    sentences = [event for event in events if event["type"] == "fastglow.sentence"]
    assert [sentence["text"] for sentence in sentences] == ["Dr. Smith paid $3.50.", "Then he left."]
    assert [word["word"] for word in sentences[0]["words"]] == ["Dr.", "Smith", "paid", "$3.50."]
    times = [time for sentence in sentences for word in sentence["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times) and sentences[1]["start"] - sentences[0]["end"] == pytest.approx(1, abs=1e-3)
    assert times[-1] <= sentences[1]["end"] == pytest.approx(events[-1]["audio_seconds"])
    for sentence in sentences:
        for picture in (sentence["alignment"], sentence["mel"]):
            values_of = np.frombuffer(b64decode(picture["data"]), np.uint8)
            assert len(values_of) == np.prod(picture["shape"]) and values_of.max() > 100
    plain = heart.speak(**values, stream_format="sse", timestamps=True).events
    assert [event for event in plain if "words" in event and "mel" not in event]
    assert not [e for e in heart.speak(**values, stream_format="sse").events if e["type"] == "fastglow.sentence"]


def test_the_speech_does_not_depend_on_how_it_is_asked_for(heart):
    values = {"input": "One way. And another.", "seed": 3, "response_format": "pcm"}
    events = heart.speak(**values, stream_format="sse").events
    joined = b"".join(b64decode(event["audio"]) for event in events if event["type"] == "speech.audio.delta")
    assert joined == heart.speak(**values).body


def test_speaking_without_http(tiny):
    """As the Wyoming server does."""

    async def speak():
        async for item in tiny.service.speak(SpeechRequest("One. Two.", "tiny", 4, {})):
            if isinstance(item, np.ndarray):
                found.append(item)

    found = []
    asyncio.run(speak())
    wav = tiny.speak(input="One. Two.", seed=4, response_format="wav").body
    samples = np.frombuffer(wav[44:], "<i2")
    np.testing.assert_array_equal(np.rint(np.concatenate(found) * 32768).clip(-32768, 32767), samples)


def test_metrics_are_what_prometheus_reads(tiny):
    from prometheus_client.parser import text_string_to_metric_families

    tiny.speak(input="Hello.")
    text = tiny.ask("GET", "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    names = (
        "requests", "requests_active", "sentences_waiting", "batch_size", "first_audio_seconds", "request_seconds",
        "real_time_factor", "audio_seconds",
    )  # fmt: skip
    for name in names:
        assert families[f"fastglow_{name}"].samples
    assert json.dumps([*families])
