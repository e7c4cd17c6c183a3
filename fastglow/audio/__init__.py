"""Audio in and out: log-mel spectrograms, Griffin-Lim, the WaveGlow denoiser, reading and writing files."""

import importlib

_HOMES = {
    "Denoiser": "denoiser",
    "MelConfig": "config",
    "MelSpectrogram": "mel",
    "griffin_lim": "griffinlim",
    "read_audio": "io",
    "write_audio": "io",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
