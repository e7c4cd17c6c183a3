"""What is refused, and how: whatever a client sends, it gets JSON that says what is wrong."""

import json

import pytest

from fastglow.serve.errors import ApiError
from fastglow.serve.requests import speech_request

from .conftest import make_app, make_voice
from .serving import JSON, running

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is not JSON"),
        (b'{"input": "Hello."', "is not JSON"),
        (b"\xff\xfe", "byte 1 of the body, 0xFF, is not UTF-8"),
        (b"[1, 2]", "must be an object"),
        (b'"Hello."', "must be an object"),
        (b"[" * 20_000, "is not JSON"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b"{}", '"input" is missing'),
        (b'{"input": null}', '"input" is missing'),
        (b'{"input": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_malformed_bodies(tiny, body, message):
    answer = tiny.ask("POST", "/v1/audio/speech", body, JSON)
    assert answer.status == 400 and message in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input", 5), ("input", ["Hello."]), ("voice", 3), ("voice", {"id": 3}), ("model", {}), ("response_format", 1),
        ("speed", "fast"), ("speed", True), ("speed", None.__class__.__name__), ("seed", 1.5), ("seed", "1"),
        ("stream_format", False), ("markdown", "yes"), ("timestamps", 1), ("details", "no"), ("volume", "loud"),
        ("normalize", 1), ("sentence_silence", {}), ("trim_silence", 0), ("volume", -1), ("sentence_silence", 61),
        ("speed", 4.1), ("speed", 1e999), ("seed", -(2**63) - 1),
    ],
)  # fmt: skip
def test_values_of_other_types_or_out_of_range(tiny, name, value):
    answer = tiny.speak(**{"input": "Hello.", name: value})
    assert answer.status == 400 and answer.error["param"] == name
    assert name in answer.error["message"] and len(answer.error["message"]) < 300


def test_null_is_the_default_and_unknown_names_are_of_no_interest(tiny):
    values = {"instructions": "Whisper.", "speed": None, "voice": {"id": "other"}, "own": {"x": [1]}, "seed": 1}
    answer = tiny.speak(input="Hello.", response_format="wav", **values)
    assert answer.status == 200
    assert answer.body == tiny.speak(input="Hello.", response_format="wav", voice="tiny", seed=1).body


def test_ten_megabytes_are_refused_without_being_read(tiny):
    connection = tiny.connect()
    connection.putrequest("POST", "/v1/audio/speech")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10 << 20))
    connection.endheaders()
    # Of the body nothing was sent.
    answer = connection.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error"]["code"] == "request_too_large"
    connection.close()


def test_ten_megabytes_of_unknown_length(tiny):
    def parts():
        yield b'{"input": "'
        for _ in range(10 << 4):
            yield b"x" * (1 << 16)

    connection = tiny.connect()
    try:
        connection.request("POST", "/v1/audio/speech", parts(), JSON, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        pass  # answered and closed before the end
    else:
        assert connection.getresponse().status == 413
    connection.close()
    assert tiny.speak(input="Hello.").status == 200


def test_a_long_text_whose_json_is_within_bounds(tiny):
    answer = tiny.speak(input="é" * 4097)
    assert answer.status == 413 and answer.error["code"] == "string_above_max_length"
    assert "4097" in answer.error["message"] and "4096" in answer.error["message"]


@pytest.mark.parametrize(
    ("values", "ok"),
    [
        ({"input": "Yes." + "[pause:60s]" * 10}, True),
        ({"input": "Yes." + "[pause:60s]" * 10 + "[pause:1ms]"}, False),
        ({"input": "Yes." + "<break time='60s'/>" * 11}, False),
        ({"input": "Yes.[pause:61s]"}, False),
        ({"input": "Yes. " * 11, "sentence_silence": 60}, False),
        ({"input": "Yes. " * 9, "sentence_silence": 60}, True),
        ({"input": "A. " * 1300, "sentence_silence": 0.2}, True),
    ],
)
def test_a_text_cannot_ask_for_hours_of_silence(values, ok):
    def ask():
        text, silence = values["input"], values.get("sentence_silence")
        return speech_request(text, None, ["v"], 4096, 1, {"sentence_silence": silence} if silence else {})

    if ok:
        assert ask().text
    else:
        with pytest.raises(ApiError, match="pause") as caught:
            ask()
        assert caught.value.status == 400 and caught.value.error["param"] == "input"


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_other_content_types(tiny, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    answer = tiny.ask("POST", "/v1/audio/speech", b'{"input": "Hello."}', headers)
    assert answer.status == 415 and "Content-Type" in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/audio/speech", 405), ("POST", "/v1/models", 405), ("GET", "/v1/nothing", 404), ("GET", "/x", 404),
     ("GET", "/../../etc/passwd", 404), ("GET", "/v1/models/..%2f..%2fetc", 404), ("DELETE", "/", 405)],
)  # fmt: skip
def test_other_routes(tiny, method, path, status):
    answer = tiny.ask(method, path)
    assert answer.status == status and {*answer.error} == {"message", "type", "param", "code"}


def test_refused_requests_are_counted(tiny, locked):
    for address, status, values in ((tiny, 400, {"input": ""}), (locked, 401, {"input": "Hello."})):
        before = address.metric("fastglow_requests_total", status=status)
        assert address.speak(**values).status == status
        assert address.metric("fastglow_requests_total", status=status) == before + 1


def test_health(tiny):
    for path in ("/health", "/health/live", "/health/ready"):
        answer = tiny.ask("GET", path)
        assert answer.status == 200 and json.loads(answer.body) == {"status": "ok"}


@pytest.fixture(scope="module")
def locked():
    app = make_app(
        {"tiny": make_voice()}, max_batch=1, api_keys=["secret", "né"], cors_origins=["https://page.example"]
    )
    with running(app) as address:
        yield address


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", "Bearer", "secret", "Basic secret", "Bearer secretsecret"]
)
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/models", "/v1/models/tts-1"])
def test_a_key_is_required(locked, header, path):
    method = "POST" if path.endswith("speech") else "GET"
    headers = {**JSON, **({"Authorization": header} if header else {})}
    answer = locked.ask(method, path, b'{"input": "Hello."}' if method == "POST" else None, headers)
    assert answer.status == 401 and answer.error["code"] == "invalid_api_key"
    assert "secret" not in answer.error["message"]


def test_a_key_opens(locked):
    for key in ("secret", "né"):
        headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
        assert locked.ask("GET", "/v1/models", headers=headers).status == 200
        assert locked.speak(headers, input="Hello.").status == 200
    for path in ("/health", "/metrics", "/", "/v1/audio/voices", "/v1/audio/models"):
        assert locked.ask("GET", path).status == 200


def test_other_origins(locked, tiny):
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    answer = locked.ask("OPTIONS", "/v1/audio/speech", headers=headers)
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://page.example"
    for address, origin in ((locked, "https://evil.example"), (tiny, "https://page.example")):
        answer = address.ask("OPTIONS", "/v1/audio/speech", headers={**headers, "Origin": origin})
        assert "access-control-allow-origin" not in answer.headers
