"""What a checkpoint says about its model's training is read from every format and kept by every writer."""

import json
import logging
import pickle
import re
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open

from fastglow import FastglowError, load_checkpoint, save_checkpoint
from fastglow.audio import MelConfig
from fastglow.checkpoint import (
    LexiconFile,
    TrainedWith,
    convert_checkpoint,
    inspect_checkpoint,
    read_trained_with,
    save_nvidia_checkpoint,
    trained_with,
)
from fastglow.checkpoint.io import TORCH_SUFFIXES

LOW = {"sampling_rate": 16000, "hop_length": 200, "win_length": 800, "mel_fmax": 7600.0}
FACTS = [
    TrainedWith(MelConfig(**LOW), ("english_speech_cleaners",), None, "nvidia"),
    TrainedWith(MelConfig(44100, 2048, 512, 2048, 128, 20.0, None), ("a", "b"), LexiconFile("/some/where.txt", "ab12")),
    TrainedWith(MelConfig(24000), (), LexiconFile("/some/where.txt")),
    TrainedWith(text_cleaners=("basic_cleaners",), symbols="foreign"),
    TrainedWith(),
]


def training_checkpoint(path, model, **content):
    """The entries that identify a checkpoint of `fastglow train`, and `content`."""
    name = type(model).__name__.lower()
    config = asdict(model.config)
    known = {"model": name, "config": config, "state_dict": model.state_dict(), "random_state": {}, "training": {}}
    torch.save({**known, **content}, path)
    return path


@pytest.mark.parametrize("facts", FACTS)
def test_repeated_conversions_keep_it(build, tmp_path, facts):
    path = training_checkpoint(tmp_path / "run.pt", build.tacotron2(), trained_with=facts.as_dict())
    assert read_trained_with(path) == facts
    for i, name in enumerate(["a.safetensors", "b.pt", "c.ckpt", "d.safetensors", "e"]):
        convert_checkpoint(path, tmp_path / name, dtype=torch.float16 if i == 2 else None)
        path = tmp_path / name
        assert read_trained_with(path) == trained_with(load_checkpoint(path)) == facts
        assert inspect_checkpoint(path).trained_with == facts


def test_both_layouts_hold_plain_containers(build, tmp_path):
    model = build.waveglow(upsample_kernel_size=1024, upsample_stride=256)
    for facts in FACTS:
        model.trained_with = facts
        save_checkpoint(model, tmp_path / "m.safetensors")
        save_nvidia_checkpoint(model, tmp_path / "m.pt")
        with safe_open(tmp_path / "m.safetensors", "pt") as file:
            in_json = json.loads(file.metadata()["fastglow"]).get("trained_with", {})
        content = torch.load(tmp_path / "m.pt", weights_only=True)
        assert in_json == content.get("trained_with", {}) == facts.as_dict()
        assert ("trained_with" in content) is (facts != TrainedWith())
    assert facts.as_dict() == {}


def test_a_whole_pickled_model_keeps_it(build, tmp_path):
    for facts in FACTS:
        model = build.tacotron2()
        model.trained_with = facts
        torch.save(model, tmp_path / "m.pt")
        assert read_trained_with(tmp_path / "m.pt") == facts
    assert pickle.loads(pickle.dumps(FACTS[1])) == FACTS[1]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"text_cleaners": ["basic_cleaners"], "lexicon": "", "p_arpabet": 1.0}, (("basic_cleaners",), None)),
        ({"text_cleaners": ["a"], "lexicon": "lex.txt", "p_arpabet": 0.5}, (("a",), LexiconFile("lex.txt"))),
        ({"text_cleaners": ["a"], "lexicon": "lex.txt", "p_arpabet": 0.0}, (("a",), None)),
        ({"text_cleaners": ["a"], "lexicon": "lex.txt"}, (("a",), LexiconFile("lex.txt"))),
    ],
)
def test_older_training_checkpoints_have_it_among_their_options(build, tmp_path, training, expected):
    audio = MelConfig(**LOW).as_dict()
    path = training_checkpoint(tmp_path / "run.pt", build.tacotron2(), audio=audio, training=training)
    assert read_trained_with(path) == TrainedWith(MelConfig(**LOW), *expected, "nvidia")


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ({"sample_rate": 16000, "fft_size": 800, "hop_length": 200, "win_length": 800, "mel_fmin": 50.0,
          "mel_fmax": 7600.0, "num_mels": 80}, MelConfig(16000, 800, 200, 800, 80, 50.0, 7600.0)),
        ({"sample_rate": 24000, "num_freq": 1025, "hop_length": None, "win_length": None, "frame_shift_ms": 12.5,
          "frame_length_ms": 50.0, "num_mels": 80, "mel_fmin": 0, "mel_fmax": None},
         MelConfig(24000, 2048, 300, 1200, 80, 0.0, None)),
        ({"sample_rate": 44100, "fft_size": 2048, "hop_length": 512, "win_length": 2048},
         MelConfig(44100, 2048, 512, 2048, 80, 0.0, None)),
        ({}, MelConfig(mel_fmax=None)),
        (None, None),
        ("loud", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["file", "config.json"])
def test_audio_parameters_come_from_coquis_configuration(build, tmp_path, audio, expected, where):
    state = build.coqui_names(build.tacotron2().state_dict(), generator=torch.Generator().manual_seed(1))
    config = {"attention_norm": "softmax", "audio": audio}
    torch.save({"model": state, **({"config": config} if where == "file" else {})}, tmp_path / "m.pth")
    if where == "config.json":
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_trained_with(tmp_path / "m.pth") == TrainedWith(audio=expected, symbols="foreign")
    convert_checkpoint(tmp_path / "m.pth", tmp_path / "new.safetensors")
    (tmp_path / "config.json").unlink(missing_ok=True)
    assert read_trained_with(tmp_path / "new.safetensors").audio == expected


def test_published_checkpoints_without_it(build, tmp_path):
    model = build.tacotron2()
    torch.save(build.torchaudio_names(model.state_dict()), tmp_path / "torchaudio.pt")
    torch.save({"state_dict": model.state_dict(), "config": asdict(model.config)}, tmp_path / "nvidia.pt")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    for name in ("torchaudio.pt", "nvidia.pt", "bare.pt"):
        assert read_trained_with(tmp_path / name) == TrainedWith()
    assert trained_with(model) == TrainedWith()


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ({"audio": {"sampling_rate": -1}}, "audio parameters are unusable"),
        ({"audio": {"sampling_rate": 10**30}}, "audio parameters are unusable"),
        ({"audio": {"filter_length": 2**40, "win_length": 2**40}}, "audio parameters are unusable"),
        ({"audio": {"mel_fmin": [1]}}, "audio parameters are unusable"),
        ({"audio": {"hop": 3}}, "audio parameters are unusable"),
        ({"text_cleaners": "english_cleaners"}, "text cleaners are unusable"),
        ({"text_cleaners": ["english\ncleaners"]}, "text cleaners are unusable"),
        ({"text_cleaners": [3] * 3}, "text cleaners are unusable"),
        ({"text_cleaners": ["a"] * 10_000}, "text cleaners are unusable"),
        ({"lexicon": {"path": 3}}, "lexicon's name is unusable"),
        ({"lexicon": {"path": "a\0b"}}, "lexicon's name is unusable"),
        ({"lexicon": {"digest": "ab"}}, "lexicon's name is unusable"),
        ({"lexicon": {"path": "a", "digest": ["b"]}}, "lexicon's name is unusable"),
        ({"symbols": ["a"]}, "symbol table .* is unknown"),
        ({"symbols": "klingon"}, "symbol table klingon is unknown"),
        ([1, 2], None),
        ("text", None),
    ],
)
def test_unusable_values_are_noted_and_left_out(build, tmp_path, caplog, facts, note):
    path = training_checkpoint(tmp_path / "run.pt", build.tacotron2(), trained_with=facts)
    with caplog.at_level(logging.WARNING):
        known = trained_with(load_checkpoint(path))
    assert known in (TrainedWith(), TrainedWith(symbols="foreign"))
    assert (known.symbols is not None) is ("symbols" in facts)
    assert len(caplog.text.splitlines()) == (note is not None)
    if note is not None:
        assert re.search(note, caplog.text)
        assert re.search(note, "\n".join(inspect_checkpoint(path).notes))


def test_a_missing_lexicon_is_found_beside_the_checkpoint(build, tmp_path):
    original, folder = tmp_path / "lexicon.txt", tmp_path / "elsewhere"
    folder.mkdir()
    facts = TrainedWith(lexicon=LexiconFile(str(original), "ab"))
    path = training_checkpoint(folder / "run.pt", build.tacotron2(), trained_with=facts.as_dict())
    assert read_trained_with(path) == facts
    (folder / "lexicon.txt").touch()
    assert read_trained_with(path).lexicon == LexiconFile(str(folder / "lexicon.txt"), "ab")
    original.touch()
    assert read_trained_with(path) == facts


def test_a_lexicon_without_a_folder_is_the_one_beside_the_checkpoint(build, tmp_path, monkeypatch):
    """As in a voice; the working directory has another one."""
    facts = TrainedWith(lexicon=LexiconFile("lexicon.txt", "ab"))
    (tmp_path / "voice").mkdir()
    path = training_checkpoint(tmp_path / "voice" / "run.pt", build.tacotron2(), trained_with=facts.as_dict())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lexicon.txt").touch()
    assert read_trained_with(path) == facts
    (tmp_path / "voice" / "lexicon.txt").touch()
    assert read_trained_with(path).lexicon == LexiconFile(str(tmp_path / "voice" / "lexicon.txt"), "ab")


def test_inspect_prints_it(build, tmp_path):
    for path in (tmp_path / "m.safetensors", tmp_path / "m.pt"):
        model = build.tacotron2()
        model.trained_with = replace(FACTS[1], symbols="nvidia")
        (save_checkpoint if path.suffix == ".safetensors" else save_nvidia_checkpoint)(model, path)
        rows = dict(re.split(r"  +", line.strip()) for line in str(inspect_checkpoint(path)).splitlines()[1:])
        assert rows["audio.sampling_rate"] == "44100"
        assert rows["audio.mel_fmax"] == "22050.0"
        assert rows["text_cleaners"] == "a, b"
        assert rows["lexicon.path"] == "/some/where.txt"
        assert (rows["symbols"], rows["symbol table"]) == ("30", "nvidia")
        json.dumps(asdict(inspect_checkpoint(path)), default=str)


@pytest.mark.parametrize("suffix", [*TORCH_SUFFIXES, ".PTH", ".Pt"])
def test_a_torch_suffix_gets_what_torch_load_reads(build, same_weights, tmp_path, suffix):
    model = build.tacotron2()
    save_checkpoint(model, tmp_path / "m.safetensors")
    target = tmp_path / f"new{suffix}"
    convert_checkpoint(tmp_path / "m.safetensors", target)
    state = torch.load(target, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    target.write_bytes(b"old")
    for refuse in (
        lambda: convert_checkpoint(tmp_path / "m.safetensors", target, "fastglow"),
        lambda: save_checkpoint(model, target),
    ):
        with pytest.raises(FastglowError, match=r"name it new\.safetensors, or write NVIDIA's layout") as error:
            refuse()
        assert "\n" not in str(error.value)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["new.safetensors", "new.SafeTensors", "new", "new.weights", "v1.0"])
def test_other_suffixes_get_safetensors(build, same_weights, tmp_path, name):
    model = build.tacotron2()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / name)
    with safe_open(tmp_path / name, "pt") as file:
        assert "fastglow" in file.metadata()
    same_weights(load_checkpoint(tmp_path / name), model)
    if name.lower().endswith(".safetensors"):
        for refuse in (
            lambda: convert_checkpoint(tmp_path / "m.pt", tmp_path / name, "nvidia"),
            lambda: save_nvidia_checkpoint(model, tmp_path / name),
        ):
            with pytest.raises(FastglowError, match=r"name it new\.pt, or write fastglow's layout"):
                refuse()
    else:
        convert_checkpoint(tmp_path / "m.pt", tmp_path / name, "nvidia")
        torch.load(tmp_path / name, weights_only=True)


def test_a_dropout_that_nvidias_layout_does_not_store_is_logged(build, tmp_path, caplog):
    for p, logged in ((0.0, True), (0.25, True), (0.5, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            save_nvidia_checkpoint(build.tacotron2(p_prenet_dropout=p), tmp_path / "m.pt")
        assert (f"p_prenet_dropout={p:g}: it will be read as 0.5" in caplog.text) is logged
