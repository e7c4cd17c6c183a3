"""`fastglow serve` as a process."""

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastglow import FastglowError, save_checkpoint
from fastglow.cli import main
from fastglow.commands import serve as command
from fastglow.serve.loading import load_voices

from ..engine.conftest import ENVIRONMENT, make_tacotron2
from .serving import Address

TEXT = "One text. It has two sentences."


@contextmanager
def served(*arguments):
    """(process, address) of a command that answers; the addresses that it has told are in `address.told`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastglow", "serve", "--port", "0", *map(str, arguments)],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        told = []
        while not any("http://" in line for line in told) or ("--wyoming" in arguments and "tcp://" not in told[-1]):
            told.append(process.stderr.readline())
            assert told[-1], "".join(told)
        host, port = re.search(r"http://([\d.]+):(\d+)", "".join(told)).groups()
        address = Address(host, int(port))
        address.told = told
        yield process, address
    finally:
        process.kill()
        process.communicate()


def test_sigterm_under_load_loses_no_accepted_request(voice_folder):
    with served("--voice", voice_folder, "--wyoming", "127.0.0.1:0") as (process, address):
        assert "serving tiny at http://127.0.0.1:" in address.told[-2] and "tcp://127.0.0.1:" in address.told[-1]
        alone = address.speak(input=TEXT, seed=1, response_format="wav").body
        socks = [address.raw({"input": TEXT, "seed": 1, "response_format": "wav"}) for _ in range(16)]
        while address.metric("fastglow_requests_active") < 16:
            if address.metric("fastglow_requests_total") >= 17:
                break  # all done already
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        for sock in socks:
            data = b""
            while part := sock.recv(1 << 16):
                data += part
            assert data.startswith(b"HTTP/1.1 200") and data.endswith(b"\r\n0\r\n\r\n")
            body = data.partition(b"\r\n\r\n")[2]
            pieces = []
            while size := int(body.partition(b"\r\n")[0], 16):
                body = body.partition(b"\r\n")[2]
                pieces.append(body[:size])
                body = body[size + 2 :]
            assert b"".join(pieces) == alone
            sock.close()
        assert process.wait(60) == 0
        with pytest.raises(OSError):
            address.ask("GET", "/health")
        assert process.stderr.read() == ""


@pytest.fixture(scope="module")
def quick_folder(voice_folder, tmp_path_factory):
    """The small voice, with less to say."""
    folder = tmp_path_factory.mktemp("voices") / "quick"
    shutil.copytree(voice_folder, folder)
    save_checkpoint(make_tacotron2(max_decoder_steps=4), folder / "tacotron2.safetensors")
    return folder


def test_memory_does_not_grow_with_the_requests(quick_folder):
    formats = ("mp3", "wav", "opus", "flac", "pcm", "ogg")

    def ask(i):
        events = i % 5 == 0
        values = {"stream_format": "sse", "details": True} if events else {}
        return address.speak(input=f"Text {i}.", response_format=formats[i % 6], **values).status

    def resident():
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024

    with served("--voice", quick_folder) as (process, address), ThreadPoolExecutor(8) as clients:
        assert {*clients.map(ask, range(100))} == {200}
        before = resident()
        assert {*clients.map(ask, range(100, 600))} == {200}
        # In MiB: less than the audio that 500 requests made, let alone their mels.
        assert resident() - before < 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--voice", "nobody"], "unknown voice 'nobody'"),
        (["--voice", "heart", "--voice", "heart"], "two voices are called 'heart'"),
        (["--max-batch", "0"], "max_batch=0 must be from 1"),
        (["--max-wait-ms", "nan"], "max_wait_ms=nan must be"),
        (["--max-queue", "0"], "max_queue=0 must be"),
        (["--max-characters", "0"], "max_characters=0 must be"),
        (["--timeout", "0"], "timeout=0 must be"),
        (["--api-key", ""], "an API key is empty"),
        (["--api-key-file", "/dev/null"], "/dev/null has no key"),
        (["--api-key-file", "/nowhere/keys"], "/nowhere/keys cannot be read"),
        (["--wyoming", "x:y"], "--wyoming x:y must be a port"),
        (["--host", "256.0.0.1"], "cannot listen at 256.0.0.1"),
        (["--device", "nonsense"], "device 'nonsense' is not available"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, capsys):
    assert main(["serve", "--port", "0", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fastglow: ") and message in printed and printed.count("\n") == 1


def test_a_port_in_use_is_told_before_the_voices_are_loaded(capsys, monkeypatch):
    monkeypatch.setattr("fastglow.serve.loading.load_voices", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
        assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
        # Of the other protocol's it is told once HTTP listens.
        assert main(["serve", "--port", "0", "--wyoming", f"localhost:{port}", "--voice", "nobody"]) == 2


@pytest.mark.parametrize("missing", [["uvicorn"], ["starlette", "prometheus_client"], ["wyoming"]])
def test_packages_that_are_not_installed(missing, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    assert main(["serve", "--port", "0", "--wyoming", "10200", "--voice", "nobody"]) == 2
    assert f"pip install 'fastglow[{'wyoming' if 'wyoming' in missing else 'serve'}]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "address"),
    [("10200", ("h", 10200)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:5", ("::1", 5)), (":7", ("h", 7))],
)
def test_addresses_of_wyoming(given, address):
    assert command._address(given, "h") == address


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_voices_have_names_and_one_voice_may_have_several(voice_folder, tmp_path):
    other = tmp_path / "with=sign"
    shutil.copytree(voice_folder, other)
    voices = load_voices([str(voice_folder), f"alloy={voice_folder}", f"echo={other}"], "cpu")
    assert [*voices] == ["tiny", "alloy", "echo"] and voices["tiny"] is voices["alloy"] is not voices["echo"]
    with pytest.raises(FastglowError, match="two voices are called 'tiny'"):
        load_voices([str(voice_folder), str(other)], "cpu")


def test_keys_of_a_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("one\n\n  two \n")
    assert command._keys(["zero"], str(path)) == ["zero", "one", "two"]
    path.write_text("a\tb")
    with pytest.raises(FastglowError, match="control characters"):
        command._keys([], str(path))
