"""Recognisers that need no package, and a voice of random weights."""

import numpy as np
import pytest

from fastglow import save_checkpoint
from tests.engine.conftest import make_tacotron2

CLIPS = "tests/data/clips"


class Listener:
    """Hears a word per half second of sound; counts the clips."""

    name = "listener 1"

    def __init__(self):
        self.heard = 0

    def hear(self, pcm: np.ndarray) -> str:
        self.heard += 1
        return " ".join(["how"] * (len(pcm) // 8000))


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
