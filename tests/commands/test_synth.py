"""The command as a user calls it, in a subprocess where real streams are needed."""

import io
import json
import shutil
import subprocess
import sys

import click
import numpy as np
import pytest
import soundfile

from fastglow import FastglowError, Synthesizer, save_checkpoint
from fastglow.cli import _COMMANDS, cli, main
from fastglow.engine.seeds import attempt_seed, sentence_seed
from fastglow.voices import BUNDLED, DEFAULT_VOICE

from ..engine.conftest import ENVIRONMENT, UNSTOPPED, make_tacotron2, make_waveglow
from ..engine.scripted import ScriptedTacotron2, reading


def run(*arguments, stdin=b""):
    return subprocess.run(
        [sys.executable, "-m", "fastglow", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=ENVIRONMENT,
    )


@pytest.mark.filterwarnings(UNSTOPPED)
def test_text_to_file(voice_folder, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert main(["synth", "Hello there.", "-o", str(out), "--voice", str(voice_folder), "--seed", "3"]) == 0
    audio, rate = soundfile.read(out, dtype="int16")
    assert rate == 22050
    assert soundfile.info(out).subtype == "PCM_16"
    expected = Synthesizer.from_voice(voice_folder).synthesize("Hello there.", seed=3).audio
    np.testing.assert_allclose(audio / 32767, expected.clip(-1, 1), atol=2 / 32767)
    captured = capsys.readouterr()
    assert captured.out == ""
    report = captured.err.splitlines()[-1]
    for part in (f"{len(expected) / 22050:.2f} s of audio", "x real time", "mel frames", "seed 3"):
        assert part in report


@pytest.mark.filterwarnings(UNSTOPPED)
def test_json_report_and_plot(voice_folder, tmp_path, capsys):
    out, plot = tmp_path / "out.flac", tmp_path / "plot.png"
    arguments = [
        "Hello. It fell from $5 (3%) to $4.",
        "-o",
        str(out),
        "--voice",
        str(voice_folder),
        "--json",
        "--plot",
        str(plot),
    ]
    assert main(["synth", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["audio_seconds"] == pytest.approx(soundfile.info(out).duration, abs=1e-4)
    assert [sentence["text"] for sentence in report["sentences"]] == ["Hello.", "It fell from $5 (3%) to $4."]
    assert report["mel_frames"] == sum(sentence["mel_frames"] for sentence in report["sentences"])
    assert report["times_real_time"] == pytest.approx(report["audio_seconds"] / report["compute_seconds"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.flac", "plot.png"]


def test_standard_input_to_standard_output(voice_folder):
    result = run("synth", "-o", "-", "--voice", voice_folder, "--seed", "5", "--json", stdin="Héllo.".encode())
    assert result.returncode == 0, result.stderr
    audio, rate = soundfile.read(io.BytesIO(result.stdout))
    assert rate == 22050
    report = json.loads(result.stderr.splitlines()[-1])
    assert report["audio_seconds"] == pytest.approx(len(audio) / rate)


@pytest.mark.parametrize("output", ["closed", "/dev/full", "a reader that left"])
def test_standard_output_that_cannot_be_written(voice_folder, output):
    redirection = {"closed": ">&-", "/dev/full": "> /dev/full", "a reader that left": "| true; exit ${PIPESTATUS[0]}"}
    command = f"{sys.executable} -m fastglow synth Hello. -o - -q --seed 1 --voice {voice_folder} {redirection[output]}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert "standard output" in lines[0]


def test_a_decoder_that_never_stops_is_reported(voice_folder, tmp_path, capsys):
    model = make_tacotron2(max_decoder_steps=3)
    model.decoder.gate_layer.linear_layer.bias.data.fill_(-1e4)
    save_checkpoint(model, tmp_path / "endless.safetensors")
    arguments = ["synth", "Hello.", "-o", str(tmp_path / "o.wav"), "--tacotron2", str(tmp_path / "endless.safetensors")]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["mel_frames"] == 6
    assert report["sentences"][0]["stopped"] is False
    assert (report["sentences"][0]["attempts"], report["sentences"][0]["cut"]) == (1, False)
    assert "max_decoder_steps=3, which cut the speech of 'Hello.'" in report["warnings"][0]
    assert captured.err.startswith("fastglow: warning: the stop gate")
    assert captured.err.count("\n") == 1


def test_the_report_has_attempts_and_cuts(voice_folder, tmp_path, capsys, monkeypatch):
    """Sentences of three, four and five letters: correct in the first, the third, and no attempt."""

    def script(symbols, seed):
        n = len(symbols)
        first = [attempt_seed(sentence_seed(1, 1), attempt) for attempt in (0, 1)]
        return [*reading(n), None] if n == 6 or (n == 5 and seed in first) else reading(n)

    monkeypatch.setattr(
        Synthesizer,
        "from_voice",
        lambda *ignored: Synthesizer(ScriptedTacotron2(script), "griffin-lim", text_cleaners=["basic_cleaners"]),
    )
    arguments = ["Yes. Well. Never.", "-o", str(tmp_path / "o.wav"), "--voice", str(voice_folder), "--seed", "1"]
    assert main(["synth", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    outcomes = [(s["text"], s["attempts"], s["cut"], s["stopped"]) for s in report["sentences"]]
    assert outcomes == [("Yes.", 1, False, True), ("Well.", 3, False, True), ("Never.", 4, True, False)]
    # Two steps of three frames a letter.
    seconds = 3 * 256 / 22050
    assert [s["words"] for s in report["sentences"]] == [
        [{"word": s["text"], "start": 0.0, "end": round(2 * (len(s["text"]) - 1) * seconds, 3)}]
        for s in report["sentences"]
    ]
    (warning,) = report["warnings"]
    assert warning == "the speech of 'Never.' goes on past its end in each of 4 attempts; it was cut there"
    assert f"fastglow: warning: {warning}\n" in captured.err
    assert report["sentences"][2]["mel_frames"] < 100


@pytest.mark.filterwarnings(UNSTOPPED)
def test_anyones_checkpoints(tmp_path, voice_folder, capsys):
    save_checkpoint(make_tacotron2(), tmp_path / "t.safetensors")
    save_checkpoint(make_waveglow(), tmp_path / "w.safetensors")
    out = tmp_path / "o.wav"
    own = ["--tacotron2", str(tmp_path / "t.safetensors"), "--waveglow", str(tmp_path / "w.safetensors")]
    assert main(["synth", "Hello.", "-o", str(out), "--seed", "1", "--sigma", "0.5", *own, "--json"]) == 0
    with_own = soundfile.read(out)[0]
    voice = ["--voice", str(voice_folder), "--vocoder", "waveglow", "--cleaners", "english_cleaners"]
    assert main(["synth", "Hello.", "-o", str(out), "--seed", "1", *voice, "--json"]) == 0
    np.testing.assert_array_equal(with_own, soundfile.read(out)[0])
    swapped = ["--voice", str(voice_folder), "--waveglow", str(tmp_path / "w.safetensors"), "--sigma", "0.5"]
    assert main(["synth", "Hello.", "-o", str(out), "--seed", "1", *swapped, "-q"]) == 0
    np.testing.assert_array_equal(with_own, soundfile.read(out)[0])


@pytest.mark.filterwarnings(UNSTOPPED)
def test_input_file(voice_folder, tmp_path):
    source = tmp_path / "text.txt"
    source.write_bytes("\ufeffHello there.\n".encode())
    outputs = []
    for name, arguments in (("a", ["-i", str(source)]), ("b", ["Hello", "there."])):
        outputs.append(tmp_path / f"{name}.wav")
        assert (
            main(["synth", *arguments, "-o", str(outputs[-1]), "--voice", str(voice_folder), "--seed", "1", "-q"]) == 0
        )
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.filterwarnings(UNSTOPPED)
def test_given_lexicons_precede_the_voices_in_order(voice_folder, tmp_path, lexicon_file):
    """A lexicon gives the same audio as its phones in braces."""
    voice = tmp_path / "voice"
    shutil.copytree(voice_folder, voice)
    (voice / "own").write_text("hello HH AH0 L OW1\nthere DH EH1 R\n")
    values = json.loads((voice / "voice.json").read_text())
    (voice / "voice.json").write_text(json.dumps({**values, "lexicon": "own"}))
    other = tmp_path / "other.txt"
    other.write_text("hello HH EH1\nnow N AW1\n")
    save_checkpoint(make_tacotron2(), tmp_path / "t.safetensors")

    def audio(text, *arguments):
        out = tmp_path / "out.wav"
        assert main(["synth", text, "-o", str(out), "--seed", "3", "-q", *map(str, arguments)]) == 0
        return out.read_bytes()

    text, bare = "Hello there, now.", ("--tacotron2", tmp_path / "t.safetensors")
    both = ("--lexicon", lexicon_file, "--lexicon", other)
    for arguments, phones in (
        (("--voice", voice), "{HH AH0 L OW1} {DH EH1 R}, now."),
        (("--voice", voice, *both), "{Y EH1 L OW0} {DH EH1 R}, {N AW1}."),
        ((*bare,), "hello there, now."),
        ((*bare, *both), "{Y EH1 L OW0} there, {N AW1}."),
        ((*bare, "--lexicon", other), "{HH EH1} there, {N AW1}."),
    ):
        assert audio(text, *arguments) == audio(phones, *bare)


@pytest.mark.filterwarnings(UNSTOPPED)
def test_torchaudios_phones_with_a_lexicon(tmp_path, capsys):
    save_checkpoint(make_tacotron2(n_symbols=96), tmp_path / "phones.safetensors")
    arguments = ["--tacotron2", str(tmp_path / "phones.safetensors"), "-o", str(tmp_path / "o.wav"), "--json"]
    lexicon = BUNDLED / DEFAULT_VOICE / "lexicon.txt.gz"
    assert main(["synth", "English words.", *arguments, "--lexicon", str(lexicon)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["audio_seconds"] > 0
    assert not any("cannot be spoken" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["Hello.", "-o", "{tmp}/x.wav", "--lexicon", "{tmp}/absent.txt"], "absent.txt: No such file"),
        (["Hello.", "-o", "{tmp}/x.wav", "--lexicon", "{tmp}/garbage.pt"], "line 1: unknown phone 'checkpoint'"),
        (["", "-o", "{tmp}/x.wav"], "the text is empty"),
        (["  \n", "-o", "{tmp}/x.wav"], "the text is empty"),
        (["\u200b\u200b", "-o", "{tmp}/x.wav"], "nothing to speak"),
        (["Hello."], "no output given"),
        (["Hello.", "-o", "{tmp}/x.wav", "--voice", "nobody"], "unknown voice 'nobody'"),
        (["Hello.", "-o", "{tmp}/x.wav", "--tacotron2", "{tmp}/no.pt"], "no.pt"),
        (["Hello.", "-o", "{tmp}/x.wav", "--waveglow", "{tmp}/garbage.pt"], "garbage.pt"),
        (
            ["Hello.", "-o", "{tmp}/x.wav", "--tacotron2", "{voice}/waveglow.safetensors"],
            "a WaveGlow checkpoint, must be a Tacotron 2 checkpoint",
        ),
        (["Hello.", "-o", "{tmp}/absent/x.wav"], "there is no folder"),
        (["Hello.", "-o", "{tmp}"], "it is a folder"),
        (["Hello.", "-o", "{tmp}/x.xyz"], "use one of .wav, .flac"),
        (["Hello.", "-o", "{tmp}/x.xyz", "--plot", "{tmp}/p.png"], "use one of .wav, .flac"),
        (["Hello.", "-o", "{tmp}/" + 300 * "x" + ".wav"], "File name too long"),
        (["Hello.", "-o", "{tmp}/x.wav", "--voice", 300 * "x"], "File name too long"),
        (["Hello.", "-o", "{tmp}/x.wav", "--device", "meta"], "'meta' is not available"),
        (["Hello.", "-o", "{tmp}/x.wav", "--plot", "{tmp}/absent/p.png"], "there is no folder"),
        (["Hello.", "-o", "{tmp}/x.wav", "--device", "cuda:99"], "'cuda:99' is not available"),
        (["Hello.", "-o", "{tmp}/x.wav", "--device", "abacus"], "'abacus' is not available"),
        (["Hello.", "-o", "{tmp}/x.wav", "--vocoder", "wavenet"], "'wavenet' is not one of"),
        (["Hello.", "-o", "{tmp}/x.wav", "--cleaners", "dutch"], "unknown cleaner 'dutch'"),
        (["Hello.", "-o", "{tmp}/x.wav", "--seed", str(2**70)], "does not fit in 64 bits"),
        (["Hello.", "-o", "{tmp}/x.wav", "--sentence-silence", "-1"], "sentence_silence=-1"),
        (["Hello.", "-i", "{tmp}/garbage.pt", "-o", "{tmp}/x.wav"], "pass one of them"),
        (["-i", "{tmp}/absent.txt", "-o", "{tmp}/x.wav"], "cannot read"),
        (["Hello.", "--no-such-option"], "--no-such-option"),
    ],
)
def test_mistakes_are_one_line_exit_2_and_leave_nothing(voice_folder, tmp_path, capsys, arguments, pattern):
    (tmp_path / "garbage.pt").write_bytes(b"no checkpoint at all")
    arguments = [argument.format(tmp=tmp_path, voice=voice_folder) for argument in arguments]
    if not {"--voice", "--tacotron2", "--waveglow"} & set(arguments):
        arguments += ["--voice", str(voice_folder)]
    assert main(["synth", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = (line for line in captured.err.splitlines() if "warning" not in line)
    assert line.startswith("fastglow: ")
    assert pattern in line
    assert [path.name for path in tmp_path.iterdir()] == ["garbage.pt"]


def test_a_failing_write_leaves_the_old_file(voice_folder, tmp_path, monkeypatch):
    out = tmp_path / "o.wav"
    out.write_bytes(b"precious")

    def fail(*arguments, **keywords):
        raise FastglowError("the disk is full")

    monkeypatch.setattr("fastglow.audio.io.write_audio", fail)
    assert main(["synth", "Hello.", "-o", str(out), "--voice", str(voice_folder), "-q"]) == 2
    assert out.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [out]


def test_voices_convert_and_inspect(voice_folder, tmp_path, capsys):
    assert main(["synth", "--list-voices"]) == 0
    assert f"{DEFAULT_VOICE}\ten-US" in capsys.readouterr().out
    target = tmp_path / "nvidia.pt"
    assert main(["convert", str(voice_folder / "tacotron2.safetensors"), str(target), "--to", "nvidia"]) == 0
    assert main(["inspect", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "DeepLearningExamples" in printed
    assert "Tacotron 2" in printed
    assert main(["inspect", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tacotron2"
    assert main(["inspect", str(tmp_path / "absent.pt")]) == 2
    assert main(["convert", str(target), str(tmp_path / "no" / "x.safetensors")]) == 2
    assert main(["inspect"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    for command in ("synth", "train", "prepare", "convert", "inspect", "plot", "export-voice"):
        assert command in output


def test_the_list_of_commands_loads_none_of_them():
    code = """
import sys
from fastglow.cli import main
assert main(["--help"]) == 0
assert not {"torch", "numpy", "soundfile", "fastglow.commands.synth"} & set(sys.modules)
assert main(["synth", "--help"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--sentence-silence" in done.stdout


def test_the_list_of_commands_says_what_they_say_themselves():
    for name, entry in _COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert " ".join(command.help.split("\n\n")[0].split()) == entry.help
    assert cli.get_command(click.Context(cli), "sing") is None


def test_speaking_loads_no_compiler_no_plots_and_no_numbers(voice_folder, tmp_path):
    """Each takes as long to load as a short sentence takes to speak."""
    (tmp_path / "jobs.jsonl").write_text('{"text": "Hello."}\n')
    random_weights = ["--voice", str(voice_folder)]
    commands = [
        ["Hello.", "-o", "a.wav"],  # the bundled voice, which reads ARPAbet
        ["Hello.", "-o", "b.wav", *random_weights],
        ["Hello.", "-o", "c.wav", "--vocoder", "waveglow", "--denoise", "0.1", *random_weights],
        ["Hello.", "--raw", "-o", "a.pcm", *random_weights],
        ["--json-lines", "-i", "jobs.jsonl", "-o", "made", *random_weights],
    ]
    code = f"""
import sys
from fastglow.cli import main
heavy = {{
    "sympy", "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes",
    "matplotlib", "scipy", "inflect", "typeguard", "fastglow.plotting", "fastglow.train",
}}
for arguments in {commands!r}:
    assert main(["synth", *arguments, "-q", "--seed", "1", "--device", "cpu"]) == 0, arguments
    assert not heavy & set(sys.modules), (arguments, heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
