"""The command's input and output: encodings, several texts, descriptors, formats, terminals."""

import io
import json
import os
import pty
import subprocess
import sys

import pytest
import soundfile

from fastglow import FastglowError, Synthesizer
from fastglow.cli import main
from fastglow.outputs import draws_progress

from ..engine.conftest import ENVIRONMENT, UNSTOPPED

pytestmark = pytest.mark.filterwarnings(UNSTOPPED)


@pytest.fixture
def synth(voice_folder, tmp_path, capsys):
    """Runs the command in this process -> (exit code, report or None, standard error)."""

    def run(*arguments):
        code = main(["synth", *map(str, arguments), "--voice", str(voice_folder), "--seed", "1", "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, captured.err

    return run


def shell(command, voice_folder, **streams):
    """Runs a line of bash with the command as `synth`."""
    synth = f"{sys.executable} -m fastglow synth --voice {voice_folder} --seed 1"
    code = f'set -o pipefail; synth() {{ {synth} "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", code], env=ENVIRONMENT, timeout=300, **({"capture_output": True} | streams))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_files_of_every_encoding_are_spoken_alike(synth, tmp_path, encoding):
    text = "“Zoë’s café”."
    (tmp_path / "text.txt").write_bytes(text.encode(encoding))
    code, report, error = synth("-i", tmp_path / "text.txt", "-o", tmp_path / "a.wav")
    assert code == 0
    assert [sentence["text"] for sentence in report["sentences"]] == [text]
    warned = [warning for warning in report["warnings"] if "Windows-1252" in warning]
    assert len(warned) == error.count("Windows-1252") == (encoding == "cp1252")


@pytest.mark.parametrize("data", ["Hello.".encode("utf-16-be"), b"\xff\xfeH\x00e", b"\x81\x8d"])
def test_files_that_are_not_text_give_a_one_line_error(synth, tmp_path, data):
    (tmp_path / "text.txt").write_bytes(data)
    code, _, error = synth("-i", tmp_path / "text.txt", "-o", tmp_path / "a.wav")
    assert code == 2
    assert error.count("\n") == 1 and "text.txt" in error and "save it as UTF-8" in error
    assert os.listdir(tmp_path) == ["text.txt"]


def test_standard_input_and_arguments_of_other_encodings(voice_folder, tmp_path):
    for command in (
        "printf 'caf\\xe9.' | synth -o x.wav --json",
        "printf '\\xff\\xfec\\0a\\0f\\0\\xe9\\0.\\0' | synth -i - -o x.wav --json",
        "synth $'caf\\xe9.' -o x.wav --json",
    ):
        done = shell(f"cd {tmp_path}; {command}", voice_folder)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert [sentence["text"] for sentence in report["sentences"]] == ["café."]


def test_several_inputs_are_spoken_one_after_the_other(synth, tmp_path):
    for name, text in (("a", "One"), ("b", "two and three\n"), ("c", "“Four.”"), ("d", "")):
        (tmp_path / name).write_text(text)
    inputs = [argument for name in "abcda" for argument in ("-i", tmp_path / name)]
    code, report, _ = synth(*inputs, "-o", tmp_path / "x.wav")
    assert code == 0
    said = [sentence["text"].rstrip(".") for sentence in report["sentences"]]
    assert said == ["One", "two and three", "“Four.”", "One"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-i", "-", "-i", "-"], "--input - is given more than once"),
        (["-i", "{tmp}/a", "-i", "{tmp}/absent"], "cannot read"),
        (["Words.", "-i", "{tmp}/a", "-i", "{tmp}/a"], "pass one of them"),
    ],
)
def test_inputs_that_contradict_each_other(synth, tmp_path, arguments, message):
    (tmp_path / "a").write_text("One.")
    code, _, error = synth(*(argument.format(tmp=tmp_path) for argument in arguments), "-o", tmp_path / "x.wav")
    assert code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "name, options, container, rate",
    [
        ("a.mp3", [], "MP3", 22050),
        ("a.OGG", [], "OGG", 22050),
        ("a.Opus", [], "OGG", 24000),
        ("a.flac", ["--format", "WAV"], "WAV", 22050),
        ("no-suffix", ["--format", "flac"], "FLAC", 22050),
    ],
)
def test_formats_of_files(synth, tmp_path, name, options, container, rate):
    code, report, error = synth("Hello.", "-o", tmp_path / name, *options)
    assert code == 0, error
    info = soundfile.info(tmp_path / name)
    assert info.format == container
    assert report["sample_rate"] == rate
    assert info.duration == pytest.approx(report["audio_seconds"], abs=0.1)


@pytest.mark.parametrize(
    "where, container",
    [
        ("-o - > out", "WAV"),
        ("-o - --format ogg | cat > out", "OGG"),
        ("-o /dev/stdout > out", "WAV"),
        ("-o /dev/stdout --format mp3 | cat > out", "MP3"),
        ("-o /dev/fd/1 --format opus | cat > out", "OGG"),
        ("-o /proc/self/fd/3 3> out", "WAV"),
        ("-o >(cat > out); wait $!", "WAV"),
        ("-o out.fifo & timeout 60 cat out.fifo > out; wait $!", "WAV"),
        ("-o out.fifo --format flac & timeout 60 cat out.fifo > out; wait $!", "FLAC"),
    ],
)
def test_streams(voice_folder, tmp_path, where, container):
    os.mkfifo(tmp_path / "out.fifo")
    done = shell(f"cd {tmp_path}; synth Hello. -q {where}", voice_folder)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(tmp_path / "out").format == container
    assert sorted(os.listdir(tmp_path)) == ["out", "out.fifo"]


def test_standard_output_is_appended_to_and_carries_no_report(voice_folder, tmp_path):
    (tmp_path / "out").write_bytes(b"before")
    done = shell(f"cd {tmp_path}; synth Hello. --json -o /dev/stdout >> out", voice_folder)
    data = (tmp_path / "out").read_bytes()
    assert data.startswith(b"before")
    assert soundfile.info(io.BytesIO(data[6:])).format == "WAV"
    assert json.loads(done.stderr.splitlines()[-1])["output"] == "/dev/stdout"


@pytest.mark.parametrize("output", ["-", "/dev/stdout", "/proc/self/fd/1", "/dev/tty", "{tty}"])
def test_audio_is_not_written_to_a_terminal(voice_folder, output):
    ours, theirs = pty.openpty()
    try:
        done = shell(f"synth Hello. -o {output.format(tty=os.ttyname(theirs))}",
                     voice_folder, capture_output=False, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
                     start_new_session=True)  # fmt: skip
        os.write(theirs, b"|")
        assert os.read(ours, 1000) == b"|", "something was written to the terminal"
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    if output != "/dev/tty":  # a process without a controlling terminal cannot open it
        assert b"audio is not written to a terminal" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_other_outputs_that_cannot_be_written(synth, tmp_path):
    for output, message in (("/dev/fd/987", "descriptor 987 is not open"), ("/dev/full", "No space left on device"),
                            (tmp_path / "x.aac", "use one of .wav")):  # fmt: skip
        code, _, error = synth("Hello.", "-o", output)
        assert code == 2 and message in error.splitlines()[-1]
    code, report, _ = synth("Hello.", "-o", "/dev/null")
    assert code == 0 and report["output"] == "/dev/null"


@pytest.mark.parametrize("terminal, quiet, drawn", [(True, False, True), (True, True, False), (False, False, False)])
def test_progress_is_drawn_on_a_terminal_only(monkeypatch, terminal, quiet, drawn):
    ours, theirs = pty.openpty() if terminal else os.pipe()[::-1]
    with open(theirs if terminal else ours, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert draws_progress(quiet) is drawn
    os.close(ours if terminal else theirs)
    monkeypatch.setattr(sys, "stderr", None)
    assert not draws_progress(quiet)


@pytest.mark.parametrize("text", ["One. Two. Three.", "A first line.\n\nA second.", "Yes? No! Maybe."])
def test_a_file_of_errors_holds_no_progress_bar(synth, tmp_path, text):
    code, _, error = synth(text, "-o", tmp_path / "x.wav")
    assert code == 0
    assert "\r" not in error and "sentence/s" not in error


@pytest.mark.parametrize(
    "options, given",
    [
        ([], {}),
        (["--no-normalize"], {"normalize": False}),
        (["--normalize", "--volume", "0.5"], {"normalize": True, "volume": 0.5}),
        (["--volume", "0"], {"volume": 0.0}),
        (["--volume", "3", "--no-normalize"], {"normalize": False, "volume": 3.0}),
    ],
)
def test_loudness_has_the_librarys_defaults(synth, tmp_path, monkeypatch, options, given):
    seen = []

    def synthesize(self, text, *, seed, progress, **loudness):
        seen.append(loudness)
        raise FastglowError("seen")

    monkeypatch.setattr(Synthesizer, "synthesize", synthesize)
    code, _, error = synth("Hello.", "-o", tmp_path / "x.wav", *options)
    assert (code, error) == (2, "fastglow: seen\n")
    assert seen == [given]


def test_a_volume_that_is_not_a_number(synth, tmp_path):
    for volume in ("loud", "", "50%"):
        code, _, error = synth("Hello.", "-o", tmp_path / "x.wav", "--volume", volume)
        assert code == 2 and "--volume" in error
