"""NVIDIA NeMo's files of Tacotron 2 and WaveGlow: a tar archive of a configuration and a torch.save file.

Sources: nemo_toolkit 2.7.3, `nemo/collections/tts/models` and `modules`, the last that has both models. Its Tacotron 2
and WaveGlow compute what NVIDIA's do; the names, the configuration and the symbols are its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any, BinaryIO

from fastglow.errors import FastglowError
from fastglow.text.symbol_tables import FOREIGN

from .block_yaml import read_mappings
from .provenance import Description, read_description
from .records import show
from .tar_archive import NotTar, read_members

WEIGHTS, CONFIG = "model_weights.ckpt", "model_config.yaml"
_MAX_CONFIG = 2**20
_MODELS = ("Tacotron2Model", "WaveGlowModel")

# fastglow's constructor keyword -> where NeMo's configuration has it.
_KEYWORDS = {
    "tacotron2": {
        "max_decoder_steps": ("decoder", "max_decoder_steps"),
        "gate_threshold": ("decoder", "gate_threshold"),
        "p_attention_dropout": ("decoder", "p_attention_dropout"),
        "p_decoder_dropout": ("decoder", "p_decoder_dropout"),
        "p_prenet_dropout": ("decoder", "prenet_p_dropout"),
        "p_postnet_dropout": ("postnet", "p_dropout"),
    },
    "waveglow": {
        "n_early_every": ("waveglow", "n_early_every"),
        "n_early_size": ("waveglow", "n_early_size"),
    },
}
# Names of the preprocessor's options; NeMo has two classes for it.
_AUDIO = {
    "sampling_rate": ("sample_rate",),
    "filter_length": ("n_fft",),
    "hop_length": ("n_window_stride",),
    "win_length": ("n_window_size",),
    "n_mel_channels": ("nfilt", "features"),
    "mel_fmin": ("lowfreq",),
    "mel_fmax": ("highfreq",),
}
# The options that give log-mel spectrograms of fastglow's scale, and NeMo's defaults.
_SCALE = {
    "log": (True, True),
    "log_zero_guard_type": ("clamp", "add"),
    "log_zero_guard_value": (1e-5, 2.0**-24),
    "mag_power": (1.0, 2.0),
    "mel_norm": ("slaney", "slaney"),
    "normalize": (None, "per_feature"),
    "preemph": (None, 0.97),
    "frame_splicing": (1, 1),
    "window": ("hann", "hann"),
}


def read_archive(file: BinaryIO) -> tuple[mmap.mmap, str]:
    """(the torch.save file, the text of the configuration) in a `.nemo` file; the text may be empty.

    Raises:
        FastglowError: not such an archive, or damaged.
    """
    try:
        members = read_members(file, (WEIGHTS, CONFIG))
    except NotTar:
        raise FastglowError("gzip-compressed: unpack it first") from None
    if WEIGHTS not in members:
        raise FastglowError(
            f"a tar archive without NeMo's {WEIGHTS} (torch.save of 2016 wrote tar archives too): unpack it, or save "
            "it again with a later torch"
        )
    config = members.get(CONFIG, b"")
    if len(config) > _MAX_CONFIG:
        raise FastglowError(
            f"its {CONFIG} has {len(config):,} bytes, {_MAX_CONFIG:,} are the most: unpack it and load {WEIGHTS}"
        )
    return members[WEIGHTS], config[:].decode("utf-8", errors="replace")


def read_config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The configuration among an open container's metadata; empty if there is none."""
    return read_mappings(metadata.get(CONFIG, ""))


def other_model(config: Mapping[str, Any]) -> str | None:
    """The class of a model that is neither Tacotron 2 nor WaveGlow, or None."""
    target = config.get("target")
    known = not isinstance(target, str) or target.rpartition(".")[2] in _MODELS
    return None if known else f"NeMo's {show(target)}: of NeMo's models only {' and '.join(_MODELS)} are read"


def constructor_keywords(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What the configuration says about the keywords in `NOT_IN_SHAPES`; not checked yet."""
    keywords: dict[str, Any] = {}
    for name, (part, option) in _KEYWORDS[model].items():
        options = _part(config, part)
        if option in options:
            keywords[name] = options[option]
    early_stopping = _part(config, "decoder").get("early_stopping")
    if model == "tacotron2" and early_stopping is not None:
        keywords["decoder_no_early_stopping"] = (
            not early_stopping if isinstance(early_stopping, bool) else early_stopping
        )
    return keywords


def describe(config: Mapping[str, Any], model: str) -> Description:
    """What the configuration says about the training.

    The audio parameters are unknown if its mel spectrograms have another scale than fastglow's; a note says why.
    """
    options = _part(config, "preprocessor")
    other_scale = [
        f"{name}={show(options.get(name, default))}"
        for name, (ours, default) in _SCALE.items()
        if options.get(name, default) != ours
    ]
    notes: list[str] = []
    values: dict[str, Any] = {}
    if not options:
        notes.append(f"it has no {CONFIG} with audio parameters: they are unknown")
    elif other_scale:
        notes.append(
            f"its mel spectrograms are not fastglow's ({', '.join(other_scale)}): use it with others of its kind"
        )
    else:
        values = _audio_parameters(options)
    known = read_description({"audio": values, "symbols": FOREIGN if model == "tacotron2" else None})
    if model == "tacotron2":
        notes.append("its symbols are NeMo's: pass the ids of its parse(), not text")
    return Description(known.trained_with, [*known.notes, *notes])


def _audio_parameters(options: dict[str, Any]) -> dict[str, Any]:
    """With NeMo's defaults for the options that may be missing: mel_fmin, the FFT's size, the Nyquist frequency."""
    values = {name: next((options[o] for o in theirs if o in options), None) for name, theirs in _AUDIO.items()}
    n_fft, window = values["filter_length"], values["win_length"]
    if n_fft is None and isinstance(window, int) and window > 0:
        values["filter_length"] = 1 << (window - 1).bit_length()
    values["mel_fmin"] = values["mel_fmin"] or 0.0
    values["mel_fmax"] = values["mel_fmax"] or None
    return values


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One part's options; NeMo 1.0's first configurations have them under `params`."""
    part = config.get(name)
    if not isinstance(part, dict):
        return {}
    inner = part.get("params")
    return {**part, **inner} if isinstance(inner, dict) else part
