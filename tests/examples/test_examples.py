"""Every example runs at a tiny size and does what it says."""

import json
import runpy
from pathlib import Path

import click.testing
import numpy as np
import pytest
import soundfile

from fastglow import Synthesizer, Tacotron2, WaveGlow, load_checkpoint
from fastglow.voices import DEFAULT_VOICE

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIPS = Path(__file__).parents[1] / "data" / "clips"

SMALL = {
    "tacotron2": {
        "symbols_embedding_dim": 16,
        "encoder_embedding_dim": 16,
        "attention_rnn_dim": 24,
        "attention_dim": 8,
        "decoder_rnn_dim": 24,
        "prenet_dim": 12,
        "postnet_embedding_dim": 12,
        "n_frames_per_step": 4,
    },
    "waveglow": {
        "n_flows": 4,
        "n_early_every": 2,
        "WN_config": {"n_layers": 2, "n_channels": 8, "kernel_size": 3},
        "upsample_kernel_size": 512,
    },
}


def run(example: str, *arguments: str) -> list[str]:
    """The lines that an example prints."""
    main = runpy.run_path(str(EXAMPLES / f"{example}.py"))["main"]
    result = click.testing.CliRunner(catch_exceptions=False).invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_example_has_its_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_batch(tmp_path):
    (tmp_path / "lines.txt").write_text("Hello.\n\nGood morning to you.\nNot this one.\n", encoding="utf-8")
    *lines, total = run("batch", "lines.txt", "--out", "spoken", "--seed", "3", "--limit", "2")
    assert [line.split(":")[0] for line in lines] == ["spoken/001.wav", "spoken/002.wav"]
    assert "x real time" in total
    short, long = (soundfile.info(tmp_path / "spoken" / f"00{number}.wav").duration for number in (1, 2))
    assert 0.3 < short < long


def test_streaming(tmp_path):
    text = "Hello. Good morning to you."
    lines = run("streaming", text, "--out", "out.wav", "--seed", "3")
    assert len(lines) == 3  # two sentences, and the silence between them
    audio, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    speech = Synthesizer.from_voice(DEFAULT_VOICE).synthesize(text, seed=3)
    assert rate == speech.sample_rate
    np.testing.assert_allclose(audio, speech.audio, atol=2 / 32767)


def test_drop_in_module():
    replaced, launches = run("drop_in_module", "--hidden", "16", "--steps", "5")
    assert replaced.startswith("replaced 2 cells")
    assert float(replaced.split()[-1]) < 1e-5
    assert launches.startswith("Triton launches: ")


def test_ray_serve(monkeypatch):
    """What Ray Serve is given: the application that a replica builds, and when to start another."""
    serve = pytest.importorskip("ray.serve", reason="needs Ray: pip install 'ray[serve]'")
    from starlette.testclient import TestClient

    found = []
    ingress = serve.ingress
    monkeypatch.setattr(serve, "ingress", lambda build: found.append(build) or ingress(build))
    example = runpy.run_path(str(EXAMPLES / "ray_serve.py"))
    assert example["build"](example["Options"](voices=f"{DEFAULT_VOICE},again={DEFAULT_VOICE}", max_replicas=3))
    (build,) = found
    with TestClient(build()) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert [voice["id"] for voice in client.get("/v1/audio/voices").json()["voices"]] == [DEFAULT_VOICE, "again"]


@pytest.mark.parametrize("name", ["tacotron2", "waveglow"])
def test_training_loop(name):
    config = json.dumps(SMALL[name])
    *steps, saved = run(
        "training_loop", str(CLIPS), "--model", name, "--config", config, "--steps", "3", "--batch-size", "2"
    )
    assert len(steps) == 3
    assert np.isfinite([float(line.split()[-1]) for line in steps]).all()
    assert saved == "saved trained.safetensors"
    model = load_checkpoint("trained.safetensors")
    assert type(model) is {"tacotron2": Tacotron2, "waveglow": WaveGlow}[name]
    assert {key: getattr(model.config, key) for key in SMALL[name]} == SMALL[name]
