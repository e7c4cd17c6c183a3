"""Other people's models: each function imports one package's modules, or skips the test with the reason.

Nothing is imported before a test asks for it, so that collecting these tests costs nothing.
"""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec
from types import ModuleType

import pytest


def load(name: str) -> ModuleType:
    """The module of this name; skips the test if its package is missing or does not import here."""
    package = name.partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"needs {package}, which `make test-integrations` installs")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (ImportError, OSError) as e:  # OSError: a shared library of another torch
        pytest.skip(f"{package} does not import here: {str(e).partition(chr(10))[0] or type(e).__name__}")


def torchaudio_models() -> ModuleType:
    """Tacotron2."""
    return load("torchaudio.models")


def transformers_vits() -> ModuleType:
    """VitsModel, VitsConfig, VitsWaveNet."""
    return load("transformers.models.vits.modeling_vits")


def coqui(name: str) -> ModuleType:
    """The module TTS.<name>, such as "tts.layers.generic.wavenet"."""
    return load(f"TTS.{name}")


def speechbrain_tacotron2() -> ModuleType:
    """Tacotron2."""
    return load("speechbrain.lobes.models.Tacotron2")


def nvidia_tacotron2() -> ModuleType:
    """Tacotron2(hparams); `tacotron2.hparams` needs TensorFlow, so pass any object with its attributes."""
    return load("tacotron2.model")


def nvidia_waveglow() -> ModuleType:
    """WaveGlow, WN, Invertible1x1Conv."""
    return load("waveglow.glow")


def radtts_common() -> ModuleType:
    """WN, Invertible1x1Conv, Invertible1x1ConvLUS."""
    return load("radtts.common")


def flowtron() -> ModuleType:
    """Flowtron."""
    return load("flowtron.flowtron")


def espnet(name: str) -> ModuleType:
    """The module espnet.nets.pytorch_backend.<name>: "rnn.attentions" has AttLoc, "tacotron2.decoder" ZoneOutCell."""
    return load(f"espnet.nets.pytorch_backend.{name}")


def nemo_tts(name: str) -> ModuleType:
    """The module nemo.collections.tts.<name>; the first takes 20 seconds."""
    return load(f"nemo.collections.tts.{name}")
