"""Audio: log-mel spectrograms, Griffin-Lim, the WaveGlow denoiser, reading and writing files, encoding streams."""

import importlib
from typing import Any

_HOMES = {
    "Denoiser": "denoiser",
    "MelConfig": "config",
    "MelSpectrogram": "mel",
    "StreamEncoder": "encoder",
    "TacotronSTFT": "tacotron_stft",
    "griffin_lim": "griffinlim",
    "read_audio": "io",
    "write_audio": "io",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
