"""fastglow: Tacotron 2 + WaveGlow text-to-speech.

`import fastglow` is cheap: it loads neither torch nor any part of the package. The names below are imported on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastglow._version import __version__

if TYPE_CHECKING:
    from fastglow import audio, checkpoint, engine, errors, kernels, models, modules, ops, patching, text, train
    from fastglow.audio import Denoiser
    from fastglow.checkpoint import load_checkpoint, save_checkpoint
    from fastglow.engine import Speech, Synthesizer
    from fastglow.errors import FastglowError
    from fastglow.models import Tacotron2, WaveGlow
    from fastglow.patching import accelerate
    from fastglow.train.losses import Tacotron2Loss, WaveGlowLoss

__all__ = [
    "Denoiser",
    "FastglowError",
    "Speech",
    "Synthesizer",
    "Tacotron2",
    "Tacotron2Loss",
    "WaveGlow",
    "WaveGlowLoss",
    "__version__",
    "accelerate",
    "audio",
    "checkpoint",
    "engine",
    "errors",
    "kernels",
    "load_checkpoint",
    "models",
    "modules",
    "ops",
    "patching",
    "save_checkpoint",
    "text",
    "train",
]

# Home of each export that is not a submodule.
_HOME = {
    "Denoiser": "fastglow.audio",
    "FastglowError": "fastglow.errors",
    "Speech": "fastglow.engine",
    "Synthesizer": "fastglow.engine",
    "Tacotron2": "fastglow.models",
    "Tacotron2Loss": "fastglow.train.losses",
    "WaveGlow": "fastglow.models",
    "WaveGlowLoss": "fastglow.train.losses",
    "accelerate": "fastglow.patching",
    "load_checkpoint": "fastglow.checkpoint",
    "save_checkpoint": "fastglow.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f"fastglow.{name}")
    raise AttributeError(f"module 'fastglow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
