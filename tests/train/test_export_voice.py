"""`fastglow export-voice`: trained models become a folder that `fastglow synth --voice` speaks with."""

import json
import logging
import os
import re
import shutil
import warnings

import numpy as np
import pytest
import soundfile
import torch

from fastglow import Synthesizer, load_checkpoint
from fastglow.audio import MelConfig
from fastglow.checkpoint import LexiconFile, inspect_checkpoint, read_trained_with, save_nvidia_checkpoint
from fastglow.cli import main
from fastglow.engine import speaking
from fastglow.engine.settings import OtherwiseTrainedWarning
from fastglow.errors import FastglowError
from fastglow.text import Lexicon
from fastglow.train import export
from fastglow.train.export import VoiceOptions, export_voice, load_run
from fastglow.train.loop import train
from fastglow.voices import Voice

from .conftest import LEXICON, configs, files_of_at_most, run

pytestmark = pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")

TEXT = "How old are 5 zebras?"
TRAINING = {"iters_per_checkpoint": 1, "max_iterations": 2}


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A folder with the runs `tacotron2`, which reads lexicon.txt, and `waveglow`: two iterations, two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "lexicon.txt").write_text(LEXICON)
    run("tacotron2", prepared, folder / "tacotron2", lexicon=str(folder / "lexicon.txt"), **TRAINING)
    run("waveglow", prepared, folder / "waveglow", **TRAINING)
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the runs, whose lexicon is the copy."""
    shutil.copytree(trained, tmp_path / "runs")
    for path in (tmp_path / "runs" / "tacotron2").glob("*.pt"):
        change(path, lambda content: content["trained_with"]["lexicon"].update(path=str(tmp_path / "runs/lexicon.txt")))
    return tmp_path / "runs"


def change(path, how):
    content = torch.load(path, weights_only=True)
    how(content)
    torch.save(content, path)


def spoken(voice, tmp_path, *options):
    """The audio of the command."""
    out = tmp_path / "out.wav"
    arguments = ["synth", TEXT, "-o", str(out), "--voice", str(voice), "--seed", "3", "--device", "cpu", "-q"]
    arguments += ["--dtype", "float32"]  # as the models are
    assert main([*arguments, *options]) == 0
    return soundfile.read(out, dtype="int16")[0]


def expected(runs, iteration, vocoder, lexicon=True, **options):
    """The same from the runs' models, with the settings of their training."""
    speech = Synthesizer(
        load_checkpoint(runs / "tacotron2" / f"checkpoint_{iteration}.pt"),
        vocoder,
        load_checkpoint(runs / "waveglow" / f"checkpoint_{iteration}.pt"),
        audio=MelConfig(),
        text_cleaners=["english_cleaners"],
        lexicon=Lexicon(runs / "lexicon.txt") if lexicon else None,
        device="cpu",
        **options,
    ).synthesize(TEXT, seed=3)
    assert speech.mel.shape[1] > 20
    return speech.audio


def same(audio, reference):
    np.testing.assert_allclose(audio / 32767, reference.clip(-1, 1), atol=2 / 32767)
    return True


def files(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def error(*arguments, **options):
    with pytest.raises(FastglowError) as raised:
        export_voice(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_voice_speaks_as_the_models_do(runs, tmp_path, capsys):
    reference = {name: expected(runs, 2, name) for name in ("waveglow", "griffin-lim")}
    out = tmp_path / "voices" / "mine"
    assert main(["export-voice", str(runs / "tacotron2"), str(runs / "waveglow"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{runs}/tacotron2/checkpoint_2.pt + {runs}/waveglow/checkpoint_2.pt -> {out}\n"
    assert {path.name for path in out.iterdir()} == {
        "voice.json",
        "tacotron2.safetensors",
        "waveglow.safetensors",
        "lexicon.txt",
    }
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    # Nothing in it leads back to the run.
    shutil.rmtree(runs)
    assert not [name for name, data in files(out).items() if str(tmp_path).encode() in data]
    moved = tmp_path / "moved"
    out.rename(moved)
    assert same(spoken(moved, tmp_path), reference["waveglow"])
    assert same(spoken(moved, tmp_path, "--vocoder", "griffin-lim"), reference["griffin-lim"])
    voice = Voice.load(moved)
    assert voice.level == pytest.approx(Synthesizer.from_voice(moved, "cpu", torch.float32, level=None).level, abs=1e-4)
    assert voice == Voice(
        tacotron2=moved / "tacotron2.safetensors",
        waveglow=moved / "waveglow.safetensors",
        vocoder="waveglow",
        text_cleaners=("english_cleaners",),
        lexicon=moved / "lexicon.txt",
        audio=MelConfig(),
        level=voice.level,
        name="mine",
        language="en-US",
        description="Tacotron 2 after 2 iterations, WaveGlow after 2 iterations",
    )


def test_the_acoustic_model_of_a_voice_also_speaks_alone(runs, tmp_path, monkeypatch):
    """Its record names the lexicon beside it, whatever the working directory holds."""
    export_voice(runs / "tacotron2", None, tmp_path / "voice")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "lexicon.txt").write_text("how Z\n")
    digest = Lexicon(runs / "lexicon.txt").digest
    known = read_trained_with(tmp_path / "voice" / "tacotron2.safetensors").lexicon
    assert known == LexiconFile(str(tmp_path / "voice" / "lexicon.txt"), digest)
    assert same(spoken(tmp_path / "voice", tmp_path), expected(runs, 2, "griffin-lim"))
    assert Voice.load(tmp_path / "voice").waveglow is None


def test_options(runs, tmp_path):
    out = tmp_path / "voice"
    out.mkdir()
    identity = out.stat().st_ino
    options = ["--name", "Zoë", "--language", "de", "--description", "Größe", "--vocoder", "griffin-lim", "--sigma"]
    options += ["0.5", "--denoise", "0.01", "--dtype", "float16", "--best", "-o", str(out)]
    for model in ("tacotron2", "waveglow"):
        (runs / model / "checkpoint_1.pt").rename(runs / model / "checkpoint_best.pt")
    assert main(["export-voice", str(runs / "tacotron2"), str(runs / "waveglow"), *options]) == 0
    voice = Voice.load(out)
    assert (voice.name, voice.language, voice.description) == ("Zoë", "de", "Größe")
    assert (voice.vocoder, voice.sigma, voice.denoise) == ("griffin-lim", 0.5, 0.01)
    assert "Größe" in (out / "voice.json").read_text(encoding="utf-8")
    for model in ("tacotron2", "waveglow"):
        assert inspect_checkpoint(out / f"{model}.safetensors").dtypes.keys() == {"float16"}
        best = load_checkpoint(runs / model / "checkpoint_best.pt").half().state_dict()
        for name, tensor in load_checkpoint(out / f"{model}.safetensors", dtype=None).state_dict().items():
            assert torch.equal(tensor, best[name])
    # An empty folder is filled and stays the same folder.
    assert out.stat().st_ino == identity and len(list(out.iterdir())) == 4


def test_the_same_models_give_the_same_bytes(runs, tmp_path):
    for name in ("a/voice", "b/voice"):
        export_voice(runs / "tacotron2", runs / "waveglow", tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_newest_undamaged_checkpoint(runs, tmp_path, caplog):
    shutil.copy(runs / "tacotron2" / "checkpoint_1.pt", runs / "tacotron2" / "checkpoint_10.pt")
    assert load_run(runs / "tacotron2").file.name == "checkpoint_10.pt"  # 10 is more than 2
    assert not caplog.records
    size = (runs / "tacotron2" / "checkpoint_10.pt").stat().st_size
    os.truncate(runs / "tacotron2" / "checkpoint_10.pt", size // 2)
    (runs / "tacotron2" / "checkpoint_3.pt").touch()
    assert load_run(runs / "tacotron2").file.name == "checkpoint_2.pt"
    assert [re.search(r"skipping .*(checkpoint_\d+)\.pt", line)[1] for line in caplog.messages] == [
        "checkpoint_10",
        "checkpoint_3",
    ]
    read = export_voice(runs / "tacotron2", runs / "waveglow" / "checkpoint_1.pt", tmp_path / "voice")
    assert [path.name for path in read] == ["checkpoint_2.pt", "checkpoint_1.pt"]
    for number in (1, 2):
        os.truncate(runs / "tacotron2" / f"checkpoint_{number}.pt", 100)
    assert "every checkpoint in" in error(runs / "tacotron2", None, tmp_path / "other")


@pytest.mark.parametrize("n_symbols", [70, 200])
def test_any_number_of_symbols(prepared, tmp_path, n_symbols):
    config, model_config = configs("tacotron2", prepared, tmp_path / "run", max_iterations=1)
    model_config.n_symbols = n_symbols
    path = train("tacotron2", config, model_config, progress=False)
    export_voice(path, None, tmp_path / "voice", VoiceOptions(dtype=torch.float32))
    assert "lexicon" in json.loads((tmp_path / "voice" / "voice.json").read_text())
    assert Voice.load(tmp_path / "voice").lexicon is None
    model = load_checkpoint(path)
    reference = Synthesizer(model, "griffin-lim", text_cleaners=["english_cleaners"], device="cpu")
    assert same(spoken(tmp_path / "voice", tmp_path), reference.synthesize(TEXT, seed=3).audio)


def test_models_of_published_formats(runs, tmp_path, caplog):
    """They say nothing about their training: the settings of the other model, or the usual ones, count."""
    model = load_checkpoint(runs / "tacotron2" / "checkpoint_2.pt")
    del model.trained_with
    save_nvidia_checkpoint(model, tmp_path / "published.pt")
    change(runs / "waveglow" / "checkpoint_2.pt", lambda content: content["trained_with"]["audio"].update(mel_fmax=7e3))
    export_voice(tmp_path / "published.pt", runs / "waveglow", tmp_path / "voice")
    voice = Voice.load(tmp_path / "voice")
    assert voice.audio == MelConfig(mel_fmax=7000.0)
    assert voice.text_cleaners == ("english_cleaners",) and voice.lexicon is None
    assert voice.description == "Tacotron 2, WaveGlow after 2 iterations"
    export_voice(tmp_path / "published.pt", None, tmp_path / "alone")
    assert Voice.load(tmp_path / "alone").audio == MelConfig()
    said = f"{tmp_path}/published.pt does not say its audio parameters: those of the"
    assert caplog.messages == [f"{said} other model are used", f"{said} published models are used"]


def test_a_voice_next_to_silent_has_no_level(runs, tmp_path):
    def silenced(content):
        content["state_dict"]["postnet.convolutions.4.1.bias"].fill_(-60.0)

    change(runs / "tacotron2" / "checkpoint_2.pt", silenced)
    export_voice(runs / "tacotron2", None, tmp_path / "voice")
    assert Voice.load(tmp_path / "voice").level is None


def test_a_voice_that_cannot_read_the_measured_sentence_has_no_level(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(speaking, "LEVEL_TEXT", "\u2603")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the sentence is not the user's
        export_voice(runs / "tacotron2", None, tmp_path / "voice")
    assert Voice.load(tmp_path / "voice").level is None


def test_other_lexicons(runs, tmp_path, caplog):
    lexicon, other = runs / "lexicon.txt", tmp_path / "other.txt"
    original = Lexicon(lexicon).digest
    other.write_text("how Z\n")
    export_voice(runs / "tacotron2", None, tmp_path / "a", VoiceOptions(lexicon=other))
    assert caplog.messages == [f"the pronunciations of {other} are not those that the Tacotron 2 was trained with"]
    assert Lexicon(Voice.load(tmp_path / "a").lexicon)("how") == "Z"
    assert read_trained_with(tmp_path / "a" / "tacotron2.safetensors").lexicon.digest == original
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the voice names its lexicon: speaking with it is no surprise
        Synthesizer.from_voice(tmp_path / "a", device="cpu")
    # Missing: named with the remedies, each of which works.
    lexicon.rename(tmp_path / "lexicon.txt")
    message = error(runs / "tacotron2", None, tmp_path / "b")
    assert f"was trained with the lexicon {lexicon}, which is missing: put lexicon.txt beside" in message
    assert "or pass --lexicon FILE" in message and not (tmp_path / "b").exists()
    caplog.clear()
    export_voice(runs / "tacotron2", None, tmp_path / "b", VoiceOptions(lexicon=tmp_path / "lexicon.txt"))
    shutil.copy(tmp_path / "lexicon.txt", runs / "tacotron2")
    export_voice(runs / "tacotron2", None, tmp_path / "c")
    assert [Lexicon(Voice.load(tmp_path / name).lexicon).digest for name in "bc"] == [original] * 2
    assert not caplog.messages
    # Changed: used, with a warning.
    (runs / "tacotron2" / "lexicon.txt").write_text("how Z\n")
    with pytest.warns(OtherwiseTrainedWarning, match="lexicon.txt has changed since the Tacotron 2 was trained"):
        export_voice(runs / "tacotron2", None, tmp_path / "d")
    assert "cannot read the lexicon" in error(runs / "tacotron2", None, tmp_path / "e", VoiceOptions(lexicon="absent"))
    export_voice(runs / "tacotron2", None, tmp_path / "f", VoiceOptions(lexicon="/dev/null"))
    assert same(spoken(tmp_path / "f", tmp_path), expected_of_letters(runs))


def expected_of_letters(runs):
    model = load_checkpoint(runs / "tacotron2" / "checkpoint_2.pt")
    del model.trained_with
    letters = Synthesizer(model, "griffin-lim", text_cleaners=["english_cleaners"], device="cpu")
    return letters.synthesize(TEXT, seed=3).audio


MISTAKES = [
    ("{w} {t}", "{w} is a WaveGlow and {t} a Tacotron 2: swap them"),
    ("{w}", "{w} is a WaveGlow: pass a Tacotron 2 before it"),
    ("{t} {t}", "{t} is a Tacotron 2, must be a WaveGlow: a voice has one of each"),
    ("{w} {w}", "{w} is a WaveGlow, must be a Tacotron 2"),
    ("{runs}/none {w}", "{runs}/none does not exist: pass the output folder of a `fastglow train`, or a checkpoint"),
    ("{runs}", "{runs} holds no checkpoint_*.pt: pass the output folder"),
    ("{t} {w} --best", "{t} holds no checkpoint_best.pt: leave out --best"),
    ("{t}/checkpoint_2.pt --best", "--best chooses a checkpoint of a run's folder"),
    ("{runs}/lexicon.txt", "{runs}/lexicon.txt: "),
    ("{t} --vocoder waveglow", "vocoder=waveglow needs a WaveGlow: pass its run after the Tacotron 2's"),
    ("{t} --language English!", "language='English!' must be a BCP 47 tag"),
    ("{t} --sigma -1", "sigma=-1.0 must be finite and not negative"),
    ("{t} {w} --denoise nan", "denoise=nan must be finite and not negative"),
    ("{t} --name \n", "name='\\n' must be one line of text"),
    ("", "Missing argument 'RUN_TACOTRON2'."),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(trained, tmp_path, capsys, arguments, message):
    names = {"runs": trained, "t": trained / "tacotron2", "w": trained / "waveglow"}
    words = [word.format(**names) for word in arguments.split(" ") if word]
    assert main(["export-voice", *words, "--out", str(tmp_path / "new" / "voice")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fastglow: {message.format(**names)}".replace("\n", " "))
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_fit_each_other(runs, tmp_path):
    tacotron2, waveglow = runs / "tacotron2", runs / "waveglow"
    for path in waveglow.glob("*.pt"):
        change(path, lambda content: content["trained_with"]["audio"].update(sampling_rate=16000, mel_fmax=7600.0))
    assert error(tacotron2, waveglow, tmp_path / "voice").startswith(
        f"{tacotron2} and {waveglow} were trained with different audio parameters "
        "(sampling_rate 22050 and 16000, mel_fmax 8000 and 7600): "
    )
    for path in waveglow.glob("*.pt"):
        change(path, lambda content: (content.pop("trained_with"), content["config"].update(upsample_stride=128)))
    options = VoiceOptions(vocoder="griffin-lim")  # not the default vocoder, but it must fit
    message = error(tacotron2, waveglow, tmp_path / "voice", options)
    assert "makes 128 samples per frame, but the voice's hop_length is 256" in message
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_weights_that_are_not_finite(runs, tmp_path):
    path = runs / "tacotron2" / "checkpoint_2.pt"
    change(path, lambda content: content["state_dict"]["embedding.weight"][3, 3].fill_(1e6))
    message = error(path, None, tmp_path / "voice", VoiceOptions(dtype=torch.float16))
    assert message.startswith(f"{path} has weights that are not finite in float16 (embedding.weight): take an earlier")
    assert message.endswith("or --dtype float32")
    export_voice(path, None, tmp_path / "voice")
    change(path, lambda content: content["state_dict"]["embedding.weight"][3, 3].fill_(float("nan")))
    message = error(path, None, tmp_path / "other")
    assert message == (
        f"{path} has weights that are not finite in float32 (embedding.weight): take an earlier checkpoint"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "voice"]


def test_only_an_empty_folder_is_filled(trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    before = files(tmp_path)
    for out in (tmp_path / "full", tmp_path / "full" / "mine"):
        assert error(trained / "tacotron2", None, out) == (
            f"{out} exists and is not an empty folder: pass another --out, or remove it"
        )
    assert files(tmp_path) == before
    message = error(trained / "tacotron2", None, tmp_path / "full" / "mine" / "voice")
    assert message.endswith("cannot be written: Not a directory")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("room", [10, 300, 20_000])
def test_a_full_disk_leaves_nothing(trained, tmp_path, exists, room):
    """Room for no file, for the lexicon, and for all but the models."""
    if exists:
        (tmp_path / "voice").mkdir()
    before = files(tmp_path)
    with files_of_at_most(room):
        message = error(trained / "tacotron2", trained / "waveglow", tmp_path / "voice")
    assert "cannot be written: " in message
    assert files(tmp_path) == before


@pytest.mark.parametrize(("exists", "call"), [(False, 0), (False, 2), (False, 3), (True, 1), (True, 3), (True, 5)])
def test_an_interruption_leaves_nothing(trained, tmp_path, monkeypatch, exists, call):
    """Before the first and the second model (calls 0 and 1), before voice.json (2), while files are placed (3 on)."""
    if exists:
        (tmp_path / "voice").mkdir()
    before = files(tmp_path)
    calls = []

    def interrupting(real):
        def run(*arguments, **options):
            calls.append(arguments)
            if len(calls) == call + 1:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return run

    monkeypatch.setattr(export, "save_checkpoint", interrupting(export.save_checkpoint))
    monkeypatch.setattr(export.json, "dumps", lambda *arguments, real=json.dumps, **options: (
        interrupting(real)(*arguments, **options) if "indent" in options else real(*arguments, **options)
    ))  # fmt: skip
    monkeypatch.setattr(os, "rename", interrupting(os.rename))
    with pytest.raises(KeyboardInterrupt):
        export_voice(trained / "tacotron2", trained / "waveglow", tmp_path / "voice")
    monkeypatch.undo()
    assert len(calls) == call + 1
    assert files(tmp_path) == before
    # An existing folder may be a mount point, which nothing outside it can become by a rename.
    assert calls[0][1].parent.parent == (tmp_path / "voice" if exists else tmp_path)


def test_the_log_says_nothing_without_a_reason(runs, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        export_voice(runs / "tacotron2", runs / "waveglow", tmp_path / "voice")
    assert not caplog.records
