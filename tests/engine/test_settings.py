"""Settings that a synthesis takes from its checkpoints, and those that override them."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from fastglow import FastglowError, Synthesizer, load_checkpoint, save_checkpoint
from fastglow.audio import MelConfig
from fastglow.checkpoint import LexiconFile, TrainedWith, convert_checkpoint
from fastglow.cli import main
from fastglow.engine.frontend import AssumedSymbolsWarning
from fastglow.engine.settings import OtherwiseTrainedWarning
from fastglow.text import Lexicon, text_to_sequence
from fastglow.train.prepare import prepare
from fastglow.voices import Voice

from .conftest import UNSTOPPED, make_tacotron2, make_waveglow

LOW = MelConfig(16000, mel_fmax=7600.0)


def tacotron2(path, n_symbols=148, **facts):
    model = make_tacotron2(n_symbols=n_symbols)
    model.trained_with = TrainedWith(**facts)
    save_checkpoint(model, path)
    return path


def waveglow(path, **facts):
    model = make_waveglow()
    model.trained_with = TrainedWith(**facts)
    save_checkpoint(model, path)
    return path


def synth(tmp_path, *arguments):
    """Sample rate and bytes of what the command writes."""
    out = tmp_path / "out.wav"
    assert main(["synth", "Hello there.", "-o", str(out), "--seed", "1", "-q", *map(str, arguments)]) == 0
    return soundfile.info(out).samplerate, out.read_bytes()


@pytest.mark.filterwarnings(UNSTOPPED)
@pytest.mark.parametrize(
    "audio", [LOW, MelConfig(44100, 2048, 512, 2048, 80, 0.0, None), MelConfig(8000, mel_fmax=4000.0)]
)
def test_speech_has_the_sampling_rate_of_the_training(tmp_path, audio, capsys):
    path = tacotron2(tmp_path / "t.safetensors", audio=audio, text_cleaners=("english_cleaners",))
    convert_checkpoint(path, tmp_path / "t.pt")
    rate, content = synth(tmp_path, "--tacotron2", path)
    assert rate == audio.sampling_rate
    assert synth(tmp_path, "--tacotron2", tmp_path / "t.pt") == (rate, content)
    assert "warning: the audio" not in capsys.readouterr().err
    for synthesizer in (
        Synthesizer(load_checkpoint(path), "griffin-lim", device="cpu"),
        Synthesizer.from_voice(Voice(path), device="cpu"),
    ):
        assert synthesizer.audio == audio
        assert synthesizer.synthesize("Hello there.", seed=1).sample_rate == audio.sampling_rate


def test_a_checkpoint_without_settings_uses_the_published_parameters(tmp_path):
    synthesizer = Synthesizer.from_voice(Voice(tacotron2(tmp_path / "t.safetensors")), device="cpu")
    assert synthesizer.audio == MelConfig()
    assert synthesizer.frontend.text_cleaners == ("english_cleaners",)
    assert synthesizer.frontend.lexicon is None


def test_cleaners_and_lexicon_of_the_training(tmp_path, lexicon_file):
    lexicon = LexiconFile(str(lexicon_file), Lexicon(lexicon_file).digest)
    path = tacotron2(tmp_path / "t.safetensors", text_cleaners=("english_speech_cleaners",), lexicon=lexicon)
    front_end = Synthesizer.from_voice(Voice(path), device="cpu").frontend
    assert front_end.text_cleaners == ("english_speech_cleaners",)
    assert front_end.encode("Hello.").symbols == text_to_sequence("{Y EH1 L OW0}.", [])


@pytest.mark.parametrize(
    ("asked", "warning"),
    [
        ({"audio": MelConfig()}, "sampling_rate 22050 and 16000, mel_fmax 8000 and 7600"),
        ({"audio": replace(LOW, hop_length=128)}, "hop_length 128 and 256"),
        ({"text_cleaners": ("english_cleaners",)}, r"\(english_cleaners\) .* \(english_speech_cleaners\)"),
        ({"text_cleaners": ("english_speech_cleaners", "english_cleaners")}, "differ from those that the Tacotron 2"),
        ({"lexicon": None}, "is used without one"),
    ],
)
def test_given_settings_are_used_and_a_contradiction_warns(tmp_path, lexicon_file, asked, warning):
    lexicon = LexiconFile(str(lexicon_file))
    facts = {"audio": LOW, "text_cleaners": ("english_speech_cleaners",), "lexicon": lexicon}
    path = tacotron2(tmp_path / "t.safetensors", **facts)
    with pytest.warns(OtherwiseTrainedWarning, match=warning):
        synthesizer = Synthesizer.from_voice(Voice(path, **asked), device="cpu")
    assert synthesizer.audio == asked.get("audio", LOW)
    assert synthesizer.frontend.text_cleaners == asked.get("text_cleaners", facts["text_cleaners"])
    assert (synthesizer.frontend.lexicon is None) is ("lexicon" in asked)


def test_agreement_gives_no_warning(tmp_path, lexicon_file):
    facts = {"audio": LOW, "text_cleaners": ("english_cleaners",), "lexicon": LexiconFile(str(lexicon_file))}
    path = tacotron2(tmp_path / "t.safetensors", **facts)
    asked = {"audio": MelConfig(16000, mel_fmax=7600), "text_cleaners": ["english_cleaners"], "lexicon": lexicon_file}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Synthesizer.from_voice(Voice(path, **asked), device="cpu")
        Synthesizer(load_checkpoint(path), "griffin-lim", device="cpu", **asked)


@pytest.mark.filterwarnings(UNSTOPPED)
@pytest.mark.parametrize(
    ("audio", "warning"),
    [
        (MelConfig(), "sampling_rate 16000 and 22050, mel_fmax 7600 and 8000"),
        (MelConfig(16000, win_length=800, mel_fmax=7600.0), "win_length 1024 and 800"),
        (MelConfig(16000, mel_fmin=40.0, mel_fmax=7600.0), "mel_fmin 0 and 40"),
        (LOW, None),
        (None, None),
    ],
)
def test_a_waveglow_of_other_audio_warns(tmp_path, audio, warning, capsys):
    acoustic = tacotron2(tmp_path / "t.safetensors", audio=LOW)
    vocoder = waveglow(tmp_path / "w.safetensors", audio=audio)
    rate, _ = synth(tmp_path, "--tacotron2", acoustic, "--waveglow", vocoder)
    assert rate == 16000
    lines = [line for line in capsys.readouterr().err.splitlines() if "WaveGlow was trained with" in line]
    assert len(lines) == (warning is not None)
    assert warning is None or lines[0].endswith(warning)
    # An unused vocoder gives no warning.
    synth(tmp_path, "--tacotron2", acoustic, "--waveglow", vocoder, "--vocoder", "griffin-lim")
    assert "WaveGlow was" not in capsys.readouterr().err


@pytest.mark.filterwarnings(UNSTOPPED)
def test_the_vocoders_audio_is_used_if_the_acoustic_model_has_none(tmp_path, capsys):
    acoustic, vocoder = tacotron2(tmp_path / "t.safetensors"), waveglow(tmp_path / "w.safetensors", audio=LOW)
    assert synth(tmp_path, "--tacotron2", acoustic, "--waveglow", vocoder)[0] == 16000
    assert "audio parameters" not in capsys.readouterr().err


@pytest.mark.filterwarnings(UNSTOPPED)
def test_another_acoustic_model_in_a_voice_brings_its_own_settings(tmp_path, voice_folder, lexicon_file, capsys):
    voice = tmp_path / "voice"
    shutil.copytree(voice_folder, voice)
    shutil.copy(lexicon_file, voice / "own.txt")
    values = json.loads((voice / "voice.json").read_text())
    (voice / "voice.json").write_text(json.dumps({**values, "lexicon": "own.txt", "level": -50.0}))
    knowing = tacotron2(tmp_path / "t.safetensors", audio=LOW, text_cleaners=("english_cleaners",))
    silent = tacotron2(tmp_path / "s.safetensors")
    assert synth(tmp_path, "--voice", voice, "--tacotron2", knowing) == synth(tmp_path, "--tacotron2", knowing)
    synthesizer = Synthesizer.from_voice(voice, device="cpu", tacotron2=knowing)
    assert (synthesizer.audio, synthesizer.frontend.lexicon) == (LOW, None)
    in_voice = synth(tmp_path, "--voice", voice, "--tacotron2", silent)
    cleaners = ("--cleaners", "english_speech_cleaners")
    assert in_voice == synth(tmp_path, "--tacotron2", silent, "--lexicon", lexicon_file, *cleaners)
    assert in_voice[0] == 22050
    assert "trained with" not in capsys.readouterr().err


def test_a_voice_that_contradicts_its_model_warns(tmp_path, voice_folder):
    voice = tmp_path / "voice"
    shutil.copytree(voice_folder, voice)
    tacotron2(voice / "tacotron2.safetensors", audio=LOW)
    with pytest.warns(OtherwiseTrainedWarning, match="sampling_rate 22050 and 16000"):
        assert Synthesizer.from_voice(voice, device="cpu").audio == MelConfig()


@pytest.mark.filterwarnings(UNSTOPPED)
def test_the_lexicon_of_the_training_is_missing_moved_or_changed(tmp_path, lexicon_file, capsys):
    kept, other = tmp_path / "kept.txt", tmp_path / "other.txt"
    shutil.copy(lexicon_file, kept)
    other.write_text("there DH EH1 R\n")
    lexicon = LexiconFile(str(kept), Lexicon(kept).digest)
    (tmp_path / "run").mkdir()
    path = tacotron2(tmp_path / "run" / "t.safetensors", lexicon=lexicon)
    bare = tacotron2(tmp_path / "bare.safetensors")
    expected = synth(tmp_path, "--tacotron2", path)
    assert expected == synth(tmp_path, "--tacotron2", bare, "--lexicon", lexicon_file)
    # Given lexicons precede the training's.
    both = synth(tmp_path, "--tacotron2", path, "--lexicon", other)
    assert both == synth(tmp_path, "--tacotron2", bare, "--lexicon", other, "--lexicon", lexicon_file)
    assert "lexicon" not in capsys.readouterr().err

    kept.write_text(kept.read_text() + "more M AO1 R\n")
    assert synth(tmp_path, "--tacotron2", path) == expected
    assert f"warning: the lexicon {kept} has changed since" in capsys.readouterr().err

    kept.unlink()
    out = tmp_path / "none.wav"
    assert main(["synth", "Hello there.", "-o", str(out), "--seed", "1", "-q", "--tacotron2", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(kept) in line and "pass --lexicon FILE" in line
    assert not out.exists()
    with pytest.raises(FastglowError, match="which is missing"):
        Synthesizer.from_voice(Voice(path), device="cpu")
    assert synth(tmp_path, "--tacotron2", path, "--lexicon", lexicon_file) == expected
    letters = synth(tmp_path, "--tacotron2", bare)
    assert synth(tmp_path, "--tacotron2", path, "--lexicon", "/dev/null") == letters != expected

    shutil.copy(lexicon_file, path.parent / "kept.txt")
    assert synth(tmp_path, "--tacotron2", path) == expected
    assert "lexicon" not in capsys.readouterr().err


@pytest.mark.parametrize("n_symbols", [64, 100, 200])
def test_a_run_with_another_n_symbols_has_the_first_of_nvidias(tmp_path, n_symbols):
    path = tacotron2(tmp_path / "t.safetensors", n_symbols, symbols="nvidia")
    assert Synthesizer.from_voice(Voice(path), device="cpu").frontend.encode("Abz.").symbols == text_to_sequence(
        "abz.", []
    )


def test_a_foreign_table_of_a_known_size_warns(tmp_path):
    for n_symbols in (38, 96, 148):
        path = tacotron2(tmp_path / "t.safetensors", n_symbols, symbols="foreign")
        with pytest.warns(AssumedSymbolsWarning, match=f"table of the model.s {n_symbols} symbols is unknown"):
            Synthesizer.from_voice(Voice(path), device="cpu")
    path = tacotron2(tmp_path / "t.safetensors", 129, symbols="foreign")
    with pytest.raises(FastglowError, match="no known symbol table has 129 symbols"):
        Synthesizer.from_voice(Voice(path), device="cpu")


@pytest.mark.filterwarnings(UNSTOPPED, "ignore:resampling audio")
def test_from_training_to_speech(tmp_path, capsys):
    """A run at 16 kHz with its own cleaners and lexicon: its checkpoint and conversions of it speak alike."""
    clips = Path(__file__).parents[1] / "data" / "clips"
    prepare(clips, tmp_path / "data", MelConfig(16000, mel_fmax=7600.0), progress=False, workers=1)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("hello Y EH1 L OW0\n")
    small = ["--symbols-embedding-dim", "16", "--encoder-embedding-dim", "16", "--attention-rnn-dim", "16",
             "--decoder-rnn-dim", "16", "--prenet-dim", "8", "--postnet-embedding-dim", "8", "--attention-dim", "8",
             "--max-decoder-steps", "20", "--n-frames-per-step", "2"]  # fmt: skip
    arguments = ["--text-cleaners", "english_speech_cleaners", "--lexicon", str(lexicon), "--max-iterations", "1",
                 "--device", "cpu", "--num-workers", "0", "--no-tensorboard", "--quiet"]  # fmt: skip
    folders = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main(["train", "tacotron2", *folders, *small, *arguments]) == 0
    path = tmp_path / "run" / "checkpoint_1.pt"
    speech = synth(tmp_path, "--tacotron2", path)
    assert speech[0] == 16000
    for source, target in ((path, "a.safetensors"), ("a.safetensors", "b.pth"), ("b.pth", "c.safetensors")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 0
        assert synth(tmp_path, "--tacotron2", tmp_path / target) == speech
    torch.load(tmp_path / "b.pth", weights_only=True)
    captured = capsys.readouterr()
    assert "warning: the audio" not in captured.err
    assert main(["inspect", str(tmp_path / "c.safetensors")]) == 0
    printed = capsys.readouterr().out
    for row in ("audio.sampling_rate", "16000", "english_speech_cleaners", str(lexicon)):
        assert row in printed
    synthesizer = Synthesizer.from_voice(Voice(path), device="cpu")
    assert synthesizer.frontend.encode("Hello 5.").symbols == text_to_sequence("{Y EH1 L OW0} five.", [])
