"""What a model was trained with, beyond its tensors: audio parameters, text cleaners, lexicon, symbol table.

Training checkpoints, safetensors and NVIDIA's layout hold it as the plain dictionary of `as_dict`, and a loaded model
has it as `model.trained_with`, so that it survives conversions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fastglow.audio import MelConfig
from fastglow.errors import FastglowError
from fastglow.text.symbol_tables import FOREIGN, NVIDIA, TABLES

from .records import Inert, show

KEY = "trained_with"
_MAX_CLEANERS = 50
_MAX_TEXT = 4096
# Far above what speech needs; a file must not request a filterbank of gigabytes.
_MAX_VALUES = {"sampling_rate": 1_000_000, "n_mel_channels": 10_000}
_MAX_WINDOW = 2**18
# coqui's names. Its defaults, for keys that its configuration leaves out, are fastglow's except for mel_fmax.
_COQUI_AUDIO = {
    "sample_rate": "sampling_rate",
    "fft_size": "filter_length",
    "hop_length": "hop_length",
    "win_length": "win_length",
    "num_mels": "n_mel_channels",
    "mel_fmin": "mel_fmin",
    "mel_fmax": "mel_fmax",
}


@dataclass(frozen=True)
class LexiconFile:
    """The lexicon of a training: its path, and the `digest` of its pronunciations if known.

    The path is absolute, except in the files of a voice that holds the lexicon.
    """

    path: str
    digest: str | None = None


@dataclass(frozen=True)
class TrainedWith:
    """What is known about a model's training. None means unknown, or that there is no lexicon.

    Attributes:
        audio: parameters of the mel spectrograms.
        text_cleaners: names.
        lexicon: file with the words that the model reads as ARPAbet.
        symbols: name of the symbol table, see `fastglow.text.symbol_tables`.
    """

    audio: MelConfig | None = None
    text_cleaners: tuple[str, ...] | None = None
    lexicon: LexiconFile | None = None
    symbols: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The known values, as plain containers for JSON and torch.save."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        if self.text_cleaners is not None:
            values["text_cleaners"] = list(self.text_cleaners)
        return values

    def with_lexicon_from(self, folder: Path) -> TrainedWith:
        """Replaces the path of a lexicon by the file of the same name in `folder`, if that exists and the path is
        relative or leads nowhere."""
        lexicon = self.lexicon
        if lexicon is None or Path(lexicon.path).is_absolute() and Path(lexicon.path).is_file():
            return self
        beside = folder / Path(lexicon.path).name
        return replace(self, lexicon=replace(lexicon, path=str(beside.resolve()))) if beside.is_file() else self


def trained_with(model: nn.Module) -> TrainedWith:
    """What is known about the training of a model from `load_checkpoint`; nothing for any other model."""
    known = getattr(model, KEY, None)
    return known if isinstance(known, TrainedWith) else TrainedWith()


def audio_differences(one: MelConfig, other: MelConfig) -> str:
    """The audio parameters that differ, as "sampling_rate 16000 and 22050, ..."; empty if none do."""
    pairs = zip(one.as_dict().items(), other.as_dict().values(), strict=True)
    return ", ".join(f"{name} {a:g} and {b:g}" for (name, a), b in pairs if a != b)


class Description(NamedTuple):
    """What a file says about its model's training.

    Attributes:
        trained_with: the usable values.
        notes: one for each unusable value, for users.
    """

    trained_with: TrainedWith
    notes: list[str]


def read_description(values: Any) -> Description:
    """The inverse of `TrainedWith.as_dict`, for values from a file."""
    values = _plain(values)
    known, notes = {}, []
    for name, (read, unusable) in _READERS.items():
        try:
            known[name] = read(values.get(name))
        except FastglowError as error:
            known[name] = unusable
            notes.append(str(error))
    return Description(TrainedWith(**known), notes)


def read_training_checkpoint(top: Mapping[str, Any]) -> Description:
    """Reads a checkpoint of `fastglow train`; early ones have the values among the run's options."""
    if KEY in top:
        return read_description(top[KEY])
    options = _plain(top.get("training"))
    values = {"audio": top.get("audio"), "text_cleaners": options.get("text_cleaners"), "symbols": NVIDIA}
    if options.get("lexicon") and options.get("p_arpabet") != 0:
        values["lexicon"] = {"path": options["lexicon"]}
    return read_description(values)


def read_coqui_config(config: Mapping[str, Any]) -> Description:
    """Reads the audio parameters of coqui's configuration; its cleaners and symbols are coqui's own."""
    given = config.get("audio")
    if not isinstance(given, dict):
        return read_description({"symbols": FOREIGN})
    values = {name: given[theirs] for theirs, name in _COQUI_AUDIO.items() if given.get(theirs) is not None}
    values.setdefault("mel_fmax", None)
    try:
        if "filter_length" not in values and given.get("num_freq"):
            values["filter_length"] = 2 * (given["num_freq"] - 1)
        if "hop_length" not in values and given.get("frame_shift_ms"):
            values["hop_length"] = int(given["frame_shift_ms"] / 1000 * values["sampling_rate"])
            values["win_length"] = int(values["hop_length"] * (given["frame_length_ms"] / given["frame_shift_ms"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        pass  # missing values have their defaults
    return read_description({"audio": values, "symbols": FOREIGN})


def _plain(value: Any) -> dict[str, Any]:
    """A dictionary, or a pickled object's attributes, with string keys only; empty for anything else."""
    value = value.state if isinstance(value, Inert) else value
    return {k: v for k, v in value.items() if isinstance(k, str)} if isinstance(value, Mapping) else {}


def _read_audio(values: Any) -> MelConfig | None:
    values = _plain(values)
    if not values:
        return None
    try:
        audio = MelConfig.from_dict(values)
        for name, value in audio.as_dict().items():
            if value > _MAX_VALUES.get(name, _MAX_WINDOW if name.endswith("_length") else value):
                raise FastglowError(f"{name}={show(value)} is too large")
    except (FastglowError, TypeError, OverflowError) as error:
        raise FastglowError(f"its audio parameters are unusable ({show(str(error))}): the defaults are used") from error
    return audio


def _read_cleaners(values: Any) -> tuple[str, ...] | None:
    if values is None:
        return None
    if isinstance(values, list | tuple) and len(values) <= _MAX_CLEANERS and all(_is_text(name) for name in values):
        return tuple(values)
    raise FastglowError("its text cleaners are unusable: the default is used")


def _read_lexicon(values: Any) -> LexiconFile | None:
    values = _plain(values)
    if not values:
        return None
    path, digest = values.get("path"), values.get("digest")
    if _is_text(path) and (digest is None or _is_text(digest)):
        return LexiconFile(path, digest)
    raise FastglowError("its lexicon's name is unusable")


def _read_symbols(name: Any) -> str | None:
    if name is None or name == FOREIGN or name in [table.name for table in TABLES]:
        return name
    raise FastglowError(f"its symbol table {show(name)} is unknown to this version of fastglow")


# Field of TrainedWith -> its reader, which raises FastglowError, and the value to use if it does.
_READERS: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "audio": (_read_audio, None),
    "text_cleaners": (_read_cleaners, None),
    "lexicon": (_read_lexicon, None),
    "symbols": (_read_symbols, FOREIGN),
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()
