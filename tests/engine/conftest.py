"""A voice small enough for tests: random weights, a gate that fires after some steps."""

import json
import os
from pathlib import Path

import pytest
import torch

from fastglow import Tacotron2, WaveGlow, save_checkpoint
from fastglow.text import Lexicon
from fastglow.voices import BUNDLED, DEFAULT_VOICE

UNSTOPPED = "ignore::fastglow.models.tacotron2.DecoderStepLimitWarning"
# Of a process that runs this checkout.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

TACOTRON2 = {
    "symbols_embedding_dim": 16,
    "encoder_embedding_dim": 16,
    "attention_rnn_dim": 24,
    "attention_dim": 8,
    "attention_location_n_filters": 4,
    "attention_location_kernel_size": 7,
    "decoder_rnn_dim": 24,
    "prenet_dim": 12,
    "postnet_embedding_dim": 12,
    "n_frames_per_step": 2,
    "max_decoder_steps": 30,
}
WAVEGLOW = {"n_flows": 4, "n_early_every": 2, "WN_config": {"n_layers": 2, "n_channels": 8, "kernel_size": 3}}


def make_tacotron2(**overrides) -> Tacotron2:
    torch.manual_seed(1)
    model = Tacotron2(**{**TACOTRON2, **overrides}).eval()
    with torch.no_grad():
        # The prenet's dropout makes the sign of the gate's input random.
        model.decoder.gate_layer.linear_layer.weight.normal_(0, 3)
        model.decoder.gate_layer.linear_layer.bias.fill_(-1.0)
        model.decoder.linear_projection.linear_layer.bias.fill_(-3.0)
    return model


def make_waveglow(**overrides) -> WaveGlow:
    torch.manual_seed(2)
    model = WaveGlow(**{**WAVEGLOW, **overrides}).eval()
    with torch.no_grad():
        for wn in model.WN:
            wn.end.weight.normal_(0, 0.02)
    return model


@pytest.fixture
def lexicon_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lexicon") / "own.txt"
    path.write_text("hello Y EH1 L OW0\nfastglow F AE1 S T G L OW2\n")
    return path


@pytest.fixture(scope="session")
def cmudict():
    """The lexicon of the bundled voice."""
    return Lexicon(BUNDLED / DEFAULT_VOICE / "lexicon.txt.gz")


@pytest.fixture(scope="session")
def voice_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices") / "tiny"
    folder.mkdir()
    save_checkpoint(make_tacotron2(), folder / "tacotron2.safetensors")
    save_checkpoint(make_waveglow(), folder / "waveglow.safetensors")
    description = {
        "name": "tiny",
        "language": "en-US",
        "description": "random weights",
        "tacotron2": "tacotron2.safetensors",
        "waveglow": "waveglow.safetensors",
        "vocoder": "griffin-lim",
        "text_cleaners": ["english_speech_cleaners"],
        "audio": {},
        "sigma": 0.5,
    }
    (folder / "voice.json").write_text(json.dumps(description))
    return folder
