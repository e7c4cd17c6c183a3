"""Recognisers that need no package, and a voice of random weights."""

import json

import numpy as np
import pytest

from fastglow import save_checkpoint
from tests.engine.conftest import make_tacotron2, make_waveglow


class Listener:
    """Hears a word per half second of sound; counts the clips."""

    name = "listener 1"

    def __init__(self):
        self.heard = 0

    def hear(self, pcm: np.ndarray) -> str:
        self.heard += 1
        return " ".join(["how"] * (len(pcm) // 8000))


class Script:
    """Hears what it was told to."""

    name = "script 1"

    def __init__(self, *lines):
        self.lines = list(lines)

    def hear(self, pcm):
        return self.lines.pop(0)


@pytest.fixture
def listener(monkeypatch) -> Listener:
    """What `python -m bench.voice` takes for pocketsphinx."""
    made = Listener()
    monkeypatch.setattr("bench.voice.command.Pocketsphinx", lambda: made)
    return made


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Speech of random weights, at most 15 steps of 2 frames."""
    path = tmp_path_factory.mktemp("voice") / "tacotron2.safetensors"
    save_checkpoint(make_tacotron2(max_decoder_steps=15), path)
    return path


@pytest.fixture(scope="session")
def voice_folder(checkpoint):
    """A voice of that checkpoint and a WaveGlow."""
    folder = checkpoint.parent
    save_checkpoint(make_waveglow(), folder / "waveglow.safetensors")
    description = {
        "name": "tiny",
        "language": "en-US",
        "description": "random weights",
        "tacotron2": checkpoint.name,
        "waveglow": "waveglow.safetensors",
        "vocoder": "griffin-lim",
        "text_cleaners": ["english_speech_cleaners"],
        "audio": {},
    }
    (folder / "voice.json").write_text(json.dumps(description))
    return folder
