"""`fastglow synth --raw`: samples without a header, as soon as they are made."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from fastglow import Synthesizer
from fastglow.cli import main

from ..engine.conftest import ENVIRONMENT, UNSTOPPED

pytestmark = pytest.mark.filterwarnings(UNSTOPPED)
TEXT = "Hello there. This is another sentence, and this is the last."
CHUNKS = [np.linspace(-1, 1, n, dtype=np.float32) for n in (7, 1, 130)]


@pytest.fixture
def streaming(monkeypatch):
    """Replaces the voice by a generator of chunks -> list of its keywords, one for each call."""

    def replace(stream):
        calls = []

        def recorded(text, **keywords):
            calls.append({"text": text, **keywords})
            return stream()

        audio = SimpleNamespace(sampling_rate=16000)
        synthesizer = SimpleNamespace(
            audio=audio, stream=recorded, device="cpu", dtype=torch.bfloat16, cpu_decoder=None
        )
        monkeypatch.setattr(Synthesizer, "from_voice", lambda *ignored: synthesizer)
        return calls

    return replace


@pytest.mark.parametrize("options", [[], ["--sentence-silence", "0.013", "--volume", "3", "--no-normalize"]])
def test_raw_samples_are_those_of_the_wav(voice_folder, tmp_path, options):
    arguments = ["synth", TEXT, "--voice", str(voice_folder), "--seed", "4", "-q", *options]
    assert main([*arguments, "-o", str(tmp_path / "a.wav")]) == 0
    assert main([*arguments, "-o", str(tmp_path / "a.pcm"), "--raw"]) == 0
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert rate == 22050
    np.testing.assert_array_equal(np.fromfile(tmp_path / "a.pcm", "<i2"), samples)


@pytest.mark.parametrize("extra", [[], ["--json"], ["-q"]])
def test_each_chunk_is_written_before_the_next_is_made(streaming, capfd, extra):
    """The sampling rate is told before the first."""
    reader, writer = os.pipe()
    seen, said = [], []

    def stream():
        for chunk in CHUNKS:
            said.append(capfd.readouterr().err)
            yield chunk
            seen.append(np.frombuffer(os.read(reader, 1 << 16), "<i2"))

    calls = streaming(stream)
    try:
        assert main(["synth", "Hello.", "--raw", "-o", f"/dev/fd/{writer}", "--volume", "2", *extra]) == 0
    finally:
        os.close(reader)
        os.close(writer)
    for chunk, samples in zip(CHUNKS, seen, strict=True):
        np.testing.assert_array_equal(samples, np.clip(np.rint(chunk.astype(np.float64) * 32768), -32768, 32767))
    assert said == ["" if "-q" in extra else "fastglow: raw: 16000 Hz, 16-bit, mono\n", "", ""]
    (call,) = calls
    assert call.keys() == {"text", "seed", "volume"} and call["volume"] == 2
    out, err = capfd.readouterr()
    if "--json" in extra:
        report = json.loads(out)
        assert (report["sample_rate"], report["seed"], report["warnings"]) == (16000, call["seed"], [])
        assert report["audio_seconds"] == sum(map(len, CHUNKS)) / 16000
        assert 0 < report["first_audio_seconds"] <= report["compute_seconds"]
    else:
        assert out == ""
        assert ("first audio after" in err and f"seed {call['seed']}" in err) is (not extra)


def test_json_goes_to_standard_error_if_standard_output_has_the_samples(voice_folder):
    done = subprocess.run(
        [sys.executable, "-m", "fastglow", "synth", TEXT, "--voice", voice_folder, "--raw", "-o", "-", "--json"],
        capture_output=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    announced, report = (line for line in done.stderr.splitlines() if not line.startswith(b"fastglow: warning"))
    assert announced == b"fastglow: raw: 22050 Hz, 16-bit, mono"
    assert json.loads(report)["audio_seconds"] == len(done.stdout) / 2 / 22050


def test_a_reader_that_leaves_ends_the_command_quietly(voice_folder):
    """As SIGPIPE ends other programs. The second chunk, with its silence, is larger than a pipe holds."""
    words = f"{sys.executable} -m fastglow synth 'One. Two. Three.' --voice {voice_folder}"
    script = f"{words} --raw -o - --sentence-silence 3 | head -c 1000 | wc -c; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    said = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert (done.returncode, done.stdout.strip(), said) == (141, "1000", ["fastglow: raw: 22050 Hz, 16-bit, mono"])


@pytest.mark.parametrize("ending", ["closed pipe", "a fault of the model", "a full disk"])
def test_the_stream_is_closed_however_it_ends(streaming, tmp_path, capsys, ending):
    closed = []
    chunk = np.full(9, np.nan if ending == "a fault of the model" else 0.5, np.float32)

    def stream():
        try:
            while True:
                yield chunk
        finally:
            closed.append(ending)

    streaming(stream)
    reader, writer = os.pipe()
    os.close(reader)
    output = {"closed pipe": f"/dev/fd/{writer}", "a full disk": "/dev/full"}.get(ending, str(tmp_path / "x.pcm"))
    code = main(["synth", "Hello.", "--raw", "-q", "-o", output])
    os.close(writer)
    assert closed == [ending]
    assert code == (141 if ending == "closed pipe" else 2)
    assert capsys.readouterr().err.count("\n") == (ending != "closed pipe")
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_whole_or_not_at_all(streaming, tmp_path, capsys):
    out = tmp_path / "out.pcm"
    out.write_bytes(b"precious")

    def stream():
        yield CHUNKS[2]
        assert out.read_bytes() == b"precious"
        raise OSError(5, "Input/output error")

    streaming(stream)
    assert main(["synth", "Hello.", "--raw", "-o", str(out)]) == 2
    assert "Input/output error" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    streaming(lambda: (chunk for chunk in CHUNKS[1:]))
    assert main(["synth", "Hello.", "--raw", "-o", str(out)]) == 0
    assert out.stat().st_size == 2 * 131
    assert os.listdir(tmp_path) == ["out.pcm"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["Hello.", "--plot", "{tmp}/p.png"], "--raw does not go with --plot"),
        (["Hello.", "--format", "wav"], "--raw does not go with --format"),
        (["Hello.", "--resume"], "--resume is for --json-lines"),
        ([" \n"], "the text is empty"),
        (["\u200b\u200b"], "nothing to speak"),
        (["Hello.", "--voice", "nobody"], "unknown voice 'nobody'"),
        (["Hello.", "-o", "{tmp}/x.WAV"], "--raw writes no header, which {tmp}/x.WAV needs: name it .pcm"),
        # Before the voice is loaded.
        (["Hello.", "--voice", "nobody", "--speed", "nan"], "speed=nan must be"),
        (["Hello.", "--voice", "nobody", "--length-scale", "9"], "length_scale=9 must be a factor from 0.25 to 2"),
        (["Hello.", "--voice", "nobody", "--length-scale", "1", "--speed", "1"], "are both given: pass one of them"),
        (["Hello.", "--voice", "nobody", "--chunk-frames", "0"], "--chunk-frames 0 must be at least 1"),
        (["Hello.", "--voice", "nobody", "--seed", str(2**63)], "does not fit in 64 bits"),
        (["Hello.", "--voice", "nobody", "--volume", "-1"], "volume=-1.0 must be"),
        (["Hello.", "--voice", "nobody", "--sentence-silence", "61"], "sentence_silence=61.0 must be"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(voice_folder, tmp_path, capsys, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    voice = [] if "--voice" in arguments else ["--voice", str(voice_folder)]
    assert main(["synth", "--raw", "-o", str(tmp_path / "x.pcm"), *arguments, *voice]) == 2
    said = capsys.readouterr().err.splitlines()
    (line,) = (line for line in said if "warning" not in line and "raw: 22050 Hz" not in line)
    assert line.startswith("fastglow: ") and message.format(tmp=tmp_path) in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_ends_the_command_leaves_nothing(voice_folder, tmp_path, number):
    command = [sys.executable, "-m", "fastglow", "synth", "--voice", str(voice_folder), "--raw", "-o", "x.pcm"]
    process = subprocess.Popen(
        [*command, "One, two. Three! " * 3000], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while not os.listdir(tmp_path):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    error = process.communicate()[1]
    assert process.returncode == {signal.SIGINT: 130}.get(number, 128 + number)
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == []
