"""`fastglow synth --json-lines`: many texts into many files."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings

from fastglow import FastglowError, Synthesizer
from fastglow.cli import main
from fastglow.commands.inputs import Line, _windows
from fastglow.commands.jobs import KEYS, Defaults, JobReader
from fastglow.commands.options import VoiceChoice
from fastglow.engine import Speech
from fastglow.engine.speech import Sentence
from fastglow.kernels.arguments import dtype_name
from fastglow.kernels.cpu import fast_dtype
from fastglow.voices import Voice

from ..engine.conftest import ENVIRONMENT, UNSTOPPED

pytestmark = pytest.mark.filterwarnings(UNSTOPPED)


def spoken(text, seed):
    """Speech of ten samples a character."""
    audio = np.full(10 * len(text), 0.25, np.float32)
    sentence = Sentence(text, np.zeros((80, 1), np.float32), np.ones((1, 1), np.float32), audio, True)
    return Speech([sentence] if text != "mute" else [], 16000, seed, 0.2, 80)


class Voices:
    """Instead of models: any name but "nobody" is a voice, which fails at "FAIL"; records loads and batches."""

    def __init__(self):
        self.loads, self.batches = [], []

    def load(self, name):
        if name == "nobody":
            raise FastglowError("unknown voice 'nobody': use another")
        return SimpleNamespace(name=name)

    def from_voice(self, voice, device, dtype, cpu_decoder):
        self.loads.append(voice.name)
        speak = partial(self.speak, voice.name)
        return SimpleNamespace(
            synthesize_batch=speak, batch_size=64, device="cpu", dtype=torch.bfloat16, cpu_decoder=cpu_decoder
        )

    def speak(self, voice, texts, seeds, **keywords):
        self.batches.append((voice, list(texts), {"seeds": list(seeds), **keywords}))
        if any("FAIL" in text for text in texts):
            raise RuntimeError("planted\nfault")
        return [spoken(text, seed) for text, seed in zip(texts, seeds, strict=True)]


@pytest.fixture
def voices(monkeypatch):
    made = Voices()
    monkeypatch.setattr(Voice, "load", made.load)
    monkeypatch.setattr("fastglow.engine.settings.with_parts", lambda voice, **parts: voice)
    monkeypatch.setattr(Synthesizer, "from_voice", made.from_voice)
    return made


@pytest.fixture
def run(voices, tmp_path, monkeypatch, capsys):
    """Speaks jobs, given as values or as bytes of a line -> (exit code, JSON reports, lines of standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(jobs, *arguments):
        lines = [job if isinstance(job, bytes) else json.dumps(job).encode() for job in jobs]
        (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        code = main(["synth", "--json-lines", "-i", "jobs.jsonl", "--json", "-v", "default", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err.splitlines()

    return run


def test_a_job_is_spoken_as_a_text_is(voice_folder, tmp_path, capsys):
    arguments = ["synth", "--voice", str(voice_folder), "--volume", "0.5"]
    assert main([*arguments, "Hello there.", "-o", str(tmp_path / "one.flac"), "--seed", "3", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    (tmp_path / "jobs.jsonl").write_text('{"text": "Hello there.", "seed": 3, "out": "deep/er/one.flac"}\n')
    folder = tmp_path / "made" / "here"
    arguments += ["--json-lines", "-i", str(tmp_path / "jobs.jsonl"), "-o", str(folder)]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (folder / "deep" / "er" / "one.flac").read_bytes() == (tmp_path / "one.flac").read_bytes()
    out = str(folder / "deep/er/one.flac")
    assert report == {"input": str(tmp_path / "jobs.jsonl"), "line": 1, "out": out, "seed": 3,
                      "device": "cpu", "dtype": dtype_name(fast_dtype()), "cpu_decoder": None,
                      "audio_seconds": alone["audio_seconds"], "sentences": alone["sentences"]}  # fmt: skip
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    (line,) = (line for line in err.splitlines() if "warning" not in line)
    assert out == "" and "jobs.jsonl: 1 spoken, 0 skipped, 0 failed; " in line and " x real time" in line
    assert main([*arguments, "-q"]) == 0
    assert not [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]


def test_only_the_culprit_of_a_batch_fails(run, voices, tmp_path):
    texts = ["One.", "Two, the FAIL.", "Three.", "mute", "Five."]
    code, reports, errors = run([{"text": text, "out": f"{i}.wav"} for i, text in enumerate(texts)])
    assert code == 1
    assert [batch for _, batch, _ in voices.batches] == [texts, *([text] for text in texts)]
    assert errors[0] == "fastglow: jobs.jsonl:2: RuntimeError: planted fault"
    assert errors[1].startswith("fastglow: jobs.jsonl:4: there is nothing to speak in 'mute'")
    assert len(errors) == 2
    assert [report["line"] for report in reports if "error" in report] == [2, 4]
    assert reports[1]["error"] == "RuntimeError: planted fault" and reports[1]["out"] == "1.wav"
    for i, text in enumerate(texts):
        assert (tmp_path / f"{i}.wav").exists() is (i not in (1, 3))
        if i not in (1, 3):
            assert soundfile.info(tmp_path / f"{i}.wav").frames == 10 * len(text)


def test_lines_of_one_voice_and_the_same_options_are_a_batch(run, voices):
    jobs = [
        {"text": "a", "out": "a.wav"},
        {"text": "b", "out": "b.wav", "voice": "other"},
        {"text": "c", "out": "c.wav", "seed": 5, "volume": 2},
        {"text": "d", "out": "d.flac", "volume": None},
        {"text": "e", "out": "e.wav", "volume": 2.0, "seed": 6, "normalize": True},
        {"text": "f", "out": "f.wav", "voice": "other", "sentence_silence": 1, "seed": 1},
        {"text": "g", "out": "g.wav", "volume": 2.0, "normalize": False},
    ]
    code, reports, errors = run(jobs, "--seed", "1", "--normalize", "--sentence-silence", "1")
    assert (code, errors) == (0, [])
    common = {"normalize": True, "sentence_silence": 1.0}
    assert voices.batches == [
        ("default", ["a", "d"], {"seeds": [1, 1], **common}),
        ("other", ["b", "f"], {"seeds": [1, 1], **common}),
        ("default", ["c", "e"], {"seeds": [5, 6], **common, "volume": 2.0}),
        ("default", ["g"], {"seeds": [1], **common, "volume": 2.0, "normalize": False}),
    ]
    assert sorted(report["line"] for report in reports) == [1, 2, 3, 4, 5, 6, 7]


def test_each_voice_is_loaded_once_and_batches_are_bounded(run, voices):
    jobs = [{"text": 900 * "a", "out": f"{i}.wav", "voice": f"v{i % 3}"} for i in range(150)]
    assert run(jobs)[0] == 0
    assert voices.loads == ["v0", "v1", "v2"]
    assert max(len("".join(texts)) for _, texts, _ in voices.batches) <= 16_000
    assert sum(len(texts) for _, texts, _ in voices.batches) == 150
    run([{"text": 17_000 * "a", "out": "long.wav"}, {"text": "a", "out": "short.wav"}])
    assert [len(texts) for _, texts, _ in voices.batches[-2:]] == [1, 1]


@pytest.mark.parametrize(
    "line, message",
    [
        (b"nonsense", "the line is not JSON: Expecting value (column 1)"),
        (b'{"text": "a", "out": "x.wav"', "the line is not JSON"),
        (b"[" * 100_000, "the line is not JSON"),
        (b'{"text": "a", "out": "x.wav", "seed": ' + b"1" * 5000 + b"}", "the line is not JSON"),
        (b'["a"]', 'the line is ["a"], must be an object'),
        (b'{"text": "caf\xe9", "out": "x.wav"}', "byte 14 of the line, 0xE9, is not UTF-8"),
        ('{"text": "a", "out": "x.wav"}'.encode("utf-16"), "is not UTF-8"),
        ({"text": "a", "out": "x.wav", "speaker": 1}, 'unknown key "speaker": use text, out, '),
        ({"out": "x.wav"}, '"text" is missing or empty'),
        ({"text": " \t", "out": "x.wav"}, '"text" is missing or empty'),
        ({"text": None, "out": "x.wav"}, '"text" is missing or empty'),
        ({"text": ["a"], "out": "x.wav"}, 'text=["a"] must be a string'),
        ({"text": "half \ud83d", "out": "x.wav"}, "text has half a surrogate pair at character 6"),
        ({"text": "a", "out": "x.wav", "seed": "1"}, 'seed="1" must be a whole number'),
        ({"text": "a", "out": "x.wav", "seed": 1.0}, "seed=1.0 must be a whole number"),
        ({"text": "a", "out": "x.wav", "seed": True}, "seed=true must be a whole number"),
        ({"text": "a", "out": "x.wav", "volume": False}, "volume=false must be a number"),
        ({"text": "a", "out": "x.wav", "volume": 10**400}, "must be a number"),
        ({"text": "a", "out": "x.wav", "normalize": 1}, "normalize=1 must be true or false"),
        ({"text": "a", "out": "x.wav", "voice": "nobody"}, "unknown voice 'nobody'"),
        ({"text": "a"}, '"out" is missing: add it, or pass -o FOLDER'),
        ({"text": "a", "out": "x.xyz"}, "x.xyz: cannot write audio as 'xyz'"),
        ({"text": "a", "out": "x.wav", "format": "aac"}, "x.wav: cannot write audio as 'aac'"),
        ({"text": "a", "out": "absent/x.wav"}, "there is no folder absent"),
        ({"text": "a", "out": "jobs.jsonl/x.wav"}, "there is no folder jobs.jsonl"),
        ({"text": "a", "out": "."}, "it is a folder"),
        ({"text": "a", "out": ""}, "it is a folder"),
        ({"text": "a", "out": "-", "format": "wav"}, "it is no regular file"),
        ({"text": "a", "out": "/dev/stdout", "format": "wav"}, "it is no regular file"),
        ({"text": "a", "out": "/dev/null", "format": "wav"}, "it is no regular file"),
        ({"text": "a", "out": "a\0.wav"}, "it is no regular file"),
        ({"text": "a", "out": 300 * "x" + ".wav"}, "File name too long"),
        ({"text": "a", "out": "good.wav"}, "good.wav is also the output of jobs.jsonl:1"),
        ({"text": "a", "out": "./link.wav"}, "link.wav is also the output of jobs.jsonl:1"),
        ({"text": "a", "out": ".fastglow-jobs.jsonl", "format": "wav"}, "is also the output of the journal"),
    ],
)
def test_a_bad_line_is_one_line_and_the_others_go_on(run, tmp_path, line, message):
    os.symlink("good.wav", tmp_path / "link.wav")
    code, reports, errors = run([{"text": "a", "out": "good.wav"}, b"  ", line, b"", {"text": "b", "out": "too.wav"}])
    assert code == 1
    (error,) = errors
    assert error.startswith("fastglow: jobs.jsonl:3: ") and message in error
    assert {report["line"]: report.get("error") for report in reports} == {1: None, 5: None, 3: error[24:]}
    made = {"jobs.jsonl", "link.wav", ".fastglow-jobs.jsonl", "good.wav", "too.wav"}
    assert set(os.listdir(tmp_path)) == made


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


VALID = st.fixed_dictionaries(
    {"text": st.text(min_size=1)},
    optional={
        "out": st.sampled_from(["a.wav", "b/c.flac"]),
        "format": st.sampled_from(["mp3", "WAV"]),
        "voice": st.text(),
        "seed": st.integers(),
        "volume": st.floats() | st.integers(-9, 9),
        "normalize": st.none() | st.booleans(),
    },
)


@settings(max_examples=200)
@given(VALID | st.binary() | st.dictionaries(st.sampled_from([*KEYS, "other"]), JSON, max_size=6) | JSON)
def test_any_line_is_a_job_or_a_one_line_error(values):
    data = values if isinstance(values, bytes) else json.dumps(values).encode()
    voice = VoiceChoice("v", None, None, None, (), (), None, None, None, "float32", None)
    reader = JobReader(Defaults(voice, None, {"seed": 3}), "/tmp", "/tmp/journal")
    try:
        job = reader.read(Line("x", 4, 5, data))
    except FastglowError as error:
        assert str(error)
        return
    wanted = {name: value for name, value in json.loads(data.decode("utf-8-sig")).items() if value is not None}
    markdown = wanted.pop("markdown", False)
    assert (markdown or job.text == wanted["text"]) and job.voice.voice == wanted.get("voice", "v")
    assert job.out.name == wanted.get("out", f"00005.{wanted.get('format', 'wav').lower()}").split("/")[-1]
    assert job.keywords == {"seed": 3, **{key: wanted[key] for key in wanted if key in list(KEYS)[4:]}}
    assert all(type(value) is KEYS[name] for name, value in job.keywords.items())


def test_markdown_is_read_as_text_where_a_line_or_the_command_says_so(run, voices, tmp_path):
    jobs = [{"text": "# *A* 🎉", "markdown": True}, {"text": "# *A* 🎉"}, {"text": "`b` [pause]", "markdown": True}]
    assert run(jobs, "-o", "out")[0] == 0
    assert [texts for _, texts, _ in voices.batches] == [["A", "# *A* 🎉", "b [pause]"]]
    assert not any("markdown" in keywords for _, _, keywords in voices.batches)
    # Another reading of the same line is another job.
    jobs[0]["markdown"] = None
    _, reports, _ = run(jobs, "-o", "out", "--resume", "--markdown")
    assert {report["line"]: report.get("skipped", False) for report in reports} == {1: True, 2: False, 3: True}


def test_outputs_are_numbered_named_and_kept_to_their_folder(run, tmp_path):
    (tmp_path / "beside").mkdir()
    jobs = [
        {"text": "a"},
        b"",
        {"text": "a", "format": "FLAC"},
        {"text": "a", "out": "deep/down/a.ogg"},
        {"text": "a", "out": "../beside/b.wav"},
        {"text": "a", "out": str(tmp_path / "out" / "absolute" / "c.wav")},
        {"text": "a", "out": "../absent/d.wav"},
        {"text": "a", "out": str(tmp_path / "absent" / "e.wav")},
    ]
    code, reports, errors = run(jobs, "-o", "out")
    assert code == 1
    assert [error.split(": ")[1] for error in errors] == ["jobs.jsonl:7", "jobs.jsonl:8"]
    assert all("there is no folder" in error for error in errors)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    made = {"out/00001.wav", "out/00003.flac", "out/deep/down/a.ogg", "beside/b.wav", "out/absolute/c.wav"}
    assert found == {"jobs.jsonl", "out/.fastglow-jobs.jsonl", *made}
    assert soundfile.info(tmp_path / "out/00003.flac").format == "FLAC"


def test_several_inputs_are_one_list(run, voices, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    run([{"text": "c"}, b"nonsense"], "-i", "a.jsonl", "-o", "out", "--format", "flac")
    code, _, errors = run([{"text": "c"}, b"nonsense"], "-i", "a.jsonl", "-o", "out", "--format", "flac")
    assert code == 1 and len(errors) == 1 and "jobs.jsonl:2: the line is not JSON" in errors[0]
    assert sorted(os.listdir(tmp_path / "out")) == [".fastglow-jobs.jsonl", "00001.flac", "00003.flac", "00005.flac"]


def test_a_folder_without_permission(run, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    access = os.access  # which lets root write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "locked" and access(path, mode))
    code, _, errors = run([{"text": "a", "out": "locked/a.wav"}, {"text": "b", "out": "b.wav"}])
    assert (code, errors) == (1, ["fastglow: jobs.jsonl:1: cannot write locked/a.wav: no permission in locked"])
    assert (tmp_path / "b.wav").exists()


@pytest.mark.parametrize("fault", ["write", "journal"])
def test_an_output_that_cannot_be_written_is_one_line(run, tmp_path, monkeypatch, fault):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    if fault == "write":
        monkeypatch.setattr("fastglow.files.os.replace", full)
    else:
        monkeypatch.setattr("fastglow.commands.journal.Journal.add", full)
    code, reports, errors = run([{"text": "a", "out": "a.wav"}, {"text": "b", "out": "b.wav"}])
    assert code == 1 and len(errors) == len(reports) == 2
    assert all("No space left on device" in error for error in errors)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["words"], "--json-lines does not go with TEXT"),
        (["--raw"], "--json-lines does not go with --raw"),
        (["--plot", "p.png"], "--json-lines does not go with --plot"),
        (["--chunk-frames", "0"], "--json-lines does not go with --chunk-frames"),
        (["-o", "-"], "cannot write many files to -"),
        (["-o", "jobs.jsonl"], "cannot make the folder jobs.jsonl: File exists"),
        (["-o", "jobs.jsonl/x"], "cannot make the folder jobs.jsonl/x: Not a directory"),
        (["-i", "absent.jsonl"], "cannot read absent.jsonl: No such file"),
        (["-i", "."], "cannot read .: Is a directory"),
        (["-i", "-", "-i", "-"], "--input - is given more than once"),
        (["-v", "nobody"], "unknown voice 'nobody'"),
    ],
)
def test_options_that_contradict_each_other(run, tmp_path, arguments, message):
    code, reports, errors = run([{"text": "a", "out": "a.wav"}], *arguments)
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert [report["line"] for report in reports] == ([1] if "." in arguments else [])


def test_the_progress_bar_knows_how_many_there_are(run, monkeypatch):
    jobs = [{"text": "a", "out": "a.wav"}, b"", b"bad", {"text": "b", "out": "b.wav"}]
    monkeypatch.setattr("fastglow.commands.batch_report.draws_progress", lambda quiet: not quiet)
    _, _, errors = run(jobs)
    assert "0/3" in "\n".join(errors)
    assert [line for line in errors if line.startswith("fastglow: jobs.jsonl:3: ")]
    assert len(run(jobs, "-q")[2]) == 1


@settings(max_examples=100)
@given(st.lists(st.sampled_from([b"", b"a", b"\n", b"\r\n", b"bc\n\nd", 70_000 * b"e"]), max_size=8), st.integers(1, 5))
def test_windows_hold_the_lines_of_a_file(pieces, most):
    data = b"".join(pieces)
    with os.fdopen(os.memfd_create("lines"), "r+b", buffering=0) as file:
        file.write(data)
        file.seek(0)
        windows = list(_windows(file.fileno(), most))
    lines = data.split(b"\n")
    assert [line for window in windows for line in window] == (lines if lines[-1] else lines[:-1])
    assert all(1 <= len(window) <= most for window in windows)


def test_windows_of_a_pipe_come_as_soon_as_a_line_does():
    reader, writer = os.pipe()
    windows = _windows(reader, 4)
    for sent, expected in ((b"a\nb\nc", [b"a", b"b"]), (b"d\n" + 5 * b"e\n", [b"cd", b"e", b"e", b"e"])):
        os.write(writer, sent)
        assert next(windows) == expected
    assert next(windows) == [b"e", b"e"]
    os.write(writer, b"last")
    os.close(writer)
    assert list(windows) == [[b"last"]]
    os.close(reader)


@pytest.fixture
def piped(voice_folder, tmp_path):
    """The command with pipes, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastglow", "synth", "--json-lines", "--json", "--voice", voice_folder, "-o", tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    with process:
        process.stdin.write(b'{"text": "Hello."}\n')
        process.stdin.flush()
        first = json.loads(process.stdout.readline())  # although the pipe goes on
        assert (first["input"], first["line"]) == ("standard input", 1)
        assert soundfile.info(first["out"]).duration == pytest.approx(first["audio_seconds"])
        yield process
        process.kill()


def errors_of(process):
    return [line for line in process.stderr.read().decode().splitlines() if "warning" not in line]


def test_a_pipe_is_worked_on_before_it_ends(piped):
    out, _ = piped.communicate(b'{"text": "And more."}', timeout=60)
    assert (json.loads(out)["line"], piped.returncode) == (2, 0)


def test_ctrl_c_ends_with_a_hint(piped):
    piped.send_signal(signal.SIGINT)
    assert piped.wait(timeout=60) == 130
    assert errors_of(piped) == ["fastglow: stopped: the same command with --resume goes on from here"]


def test_a_reader_of_the_reports_that_leaves_ends_the_run_quietly(piped, tmp_path):
    piped.stdout.close()
    piped.stdin.write(b'{"text": "And more."}\n')
    piped.stdin.flush()
    assert piped.wait(timeout=60) == 141
    assert errors_of(piped) == []
    assert not list(tmp_path.glob("*.tmp"))


def test_speed_or_its_inverse(run, voices):
    """A line's own replaces the command's, in either form; a line without a seed has a seed of its own."""
    jobs = [{"text": text, "out": f"{text}.wav", **extra} for text, extra in (
        ("a", {}), ("b", {"length_scale": 0.5}), ("c", {"speed": 2}), ("d", {"speed": 2.0, "length_scale": 0.5}),
        ("e", {"length_scale": 0}), ("f", {"trim_silence": True}),
    )]  # fmt: skip
    code, _, errors = run(jobs, "--length-scale", "0.8")
    assert code == 1
    assert errors == [
        "fastglow: jobs.jsonl:4: speed=2 and length_scale=0.5 are both given: pass one of them",
        "fastglow: jobs.jsonl:5: length_scale=0 must be a factor from 0.25 to 2; 1 keeps the speed",
    ]
    found = {tuple(texts): keywords for _, texts, keywords in voices.batches}
    assert [keywords["speed"] for keywords in found.values()] == [1.25, 2.0, 1.25]
    assert list(found) == [("a",), ("b", "c"), ("f",)]
    assert found["f",]["trim_silence"] is True
    seeds = [seed for keywords in found.values() for seed in keywords["seeds"]]
    assert len(set(seeds)) == 4


def test_files_appear_as_soon_as_a_batch_is_spoken(run, voices, tmp_path, monkeypatch):
    """So that a run which is killed again and again gets on."""
    found = []
    speak = voices.speak

    def watched(*arguments, **keywords):
        found.append(len(list(tmp_path.glob("*.wav"))))
        return speak(*arguments, **keywords)

    monkeypatch.setattr(voices, "speak", watched)
    assert run([{"text": "a", "out": f"{i}.wav"} for i in range(150)])[0] == 0
    assert found == [0, 64, 128]
    assert [len(texts) for _, texts, _ in voices.batches] == [64, 64, 22]
