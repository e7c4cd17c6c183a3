"""Fine-tuning: a new model that starts from the weights of a checkpoint of any published format."""

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from fastglow.audio import MelConfig
from fastglow.checkpoint import audio_differences, load_checkpoint, trained_with
from fastglow.checkpoint.layouts import NOT_IN_SHAPES
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2, WaveGlow
from fastglow.text import symbols
from fastglow.text.symbol_tables import find_table, rows_by_symbol

from .config import flags, flat_config

logger = logging.getLogger(__name__)

EMBEDDING = "embedding.weight"
# What tells two symbol tables apart is handled by the table, and these two by the data that training reads.
_NOT_NAMED = {"n_symbols", *NOT_IN_SHAPES["tacotron2"], "upsample_stride"}
_MOST_LAYERS = 8


def warm_start(
    model: nn.Module, path: str | os.PathLike, ignore_layers: Sequence[str] = (), audio: MelConfig | None = None
) -> None:
    """Gives a model the weights of a checkpoint, but for the layers that are to start anew.

    The rows of Tacotron 2's embedding go to the same symbols where the checkpoint has another of the known symbol
    tables (`fastglow.text.symbol_tables`); symbols that it lacks keep their initial values. `model` reads the first
    of NVIDIA's symbols, as `fastglow train` does.

    Args:
        model: `Tacotron2` or `WaveGlow` as it is initialised; changed in place.
        path: checkpoint of any published format.
        ignore_layers: names of tensors, layers or parts, such as embedding.weight, decoder.prenet or WN.3, that
            keep their initial values.
        audio: parameters of the data to train on; it is told in the log if the checkpoint's are others.

    Raises:
        FastglowError: an unreadable checkpoint or one of the other model, a name that is no layer's, an unknown
            symbol table, or weights that do not fit: the options that differ, and the layers to ignore instead.
    """
    source = load_checkpoint(path)
    if type(source) is not type(model):
        raise FastglowError(f"{path} is a {type(source).__name__}, not a {type(model).__name__}")
    wanted, found = model.state_dict(), source.state_dict()
    ignored = _select(ignore_layers, wanted.keys() | found.keys())
    if isinstance(model, Tacotron2) and EMBEDDING not in ignored:
        found[EMBEDDING] = _embedding(source, wanted[EMBEDDING], path)
    if isinstance(model, WaveGlow):
        _check_function(source, model, path)
    misfits = {
        name
        for name in (wanted.keys() | found.keys()) - ignored
        if name not in wanted or name not in found or wanted[name].shape != found[name].shape
    }
    if misfits:
        raise FastglowError(_misfit_message(path, model.config, source.config, misfits, wanted.keys() | found.keys()))
    known = trained_with(source).audio
    if audio is not None and known not in (None, audio):
        logger.warning("%s was trained on other audio than this data: %s", path, audio_differences(known, audio))
    model.load_state_dict({name: wanted[name] if name in ignored else found[name] for name in wanted})
    if ignored:
        logger.info("layers that start anew: %s", ", ".join(_cover(ignored, wanted.keys() | found.keys())))


def _check_function(source: WaveGlow, model: WaveGlow, path: str | os.PathLike) -> None:
    """What no shape tells and the weights depend on."""
    halves = source.config.alternate_halves
    if halves != model.config.alternate_halves:
        raise FastglowError(
            f"{path} was trained with alternate_halves {halves}: pass {flags({'alternate_halves': halves})}"
        )
    if source.config.upsample_stride != model.config.upsample_stride:
        logger.warning(
            "%s makes %d samples of a frame, this run %d: its upsampling has to learn that anew",
            path,
            source.config.upsample_stride,
            model.config.upsample_stride,
        )


def _select(layers: Iterable[str], names: Collection[str]) -> set[str]:
    """The tensors that `layers` name by their whole name or the first parts of it."""
    selected = set()
    for layer in layers:
        parts = layer.rstrip(".").split(".")
        matches = {name for name in names if name.split(".")[: len(parts)] == parts}
        if not matches:
            raise FastglowError(
                f"ignore_layers {layer!r} is no layer of the model: there are {', '.join(_nearest(parts, names))}"
            )
        selected |= matches
    return selected


def _nearest(parts: list[str], names: Collection[str]) -> list[str]:
    """The layers that share the most first parts with a name that is none."""
    depth = next(n for n in range(len(parts), -1, -1) if any(name.split(".")[:n] == parts[:n] for name in names))
    paths = [name.split(".") for name in sorted(names)]
    return list(dict.fromkeys(".".join(path[: depth + 1]) for path in paths if path[:depth] == parts[:depth]))[:20]


def _embedding(source: Tacotron2, initial: Tensor, path: str | os.PathLike) -> Tensor:
    """The rows of this run's embedding: the source's for every symbol that it has, else the initial ones."""
    rows, name = source.state_dict()[EMBEDDING], trained_with(source).symbols
    table, own = find_table(len(rows), name), symbols[: len(initial)]
    if rows.shape[1:] != initial.shape[1:]:
        return rows  # told with the other shapes that do not fit
    if table is None and name is None and len(rows) == len(initial):
        return rows  # of a table of the user's own, as this run's
    if table is None:
        raise FastglowError(
            f"{path} has {len(rows)} symbols of a table that is not known here, so its embedding cannot be used: start "
            "a new one with --ignore-layers embedding.weight"
        )
    if list(table.symbols) == own and len(rows) == len(initial):
        return rows
    pairs = rows_by_symbol(table.symbols, own)
    sources, targets = (torch.tensor(side, dtype=torch.int64) for side in zip(*pairs, strict=True))
    mapped = initial.clone()
    mapped[targets] = rows[sources].to(initial.dtype)
    logger.info(
        "%s has %s: the embedding of %d of this run's %d symbols is taken from it, the others start anew",
        path,
        table.title,
        len(pairs),
        len(initial),
    )
    return mapped


def _misfit_message(
    path: str | os.PathLike, config: Any, source_config: Any, misfits: set[str], names: Collection[str]
) -> str:
    """One line: the options that differ, and what to pass so that the weights fit or are left out."""
    ours, theirs = flat_config(asdict(config)), flat_config(asdict(source_config))
    different = {name: value for name, value in theirs.items() if value != ours[name] and name not in _NOT_NAMED}
    layers = _cover(misfits, names)
    for depth in (3, 2, 1):
        if len(layers) > _MOST_LAYERS:  # fewer names that stand for more than do not fit
            layers = sorted({".".join(layer.split(".")[:depth]) for layer in layers})
    ignoring = flags({"ignore_layers": layers})
    had = ", ".join(f"{name} {value} (this run {ours[name]})" for name, value in different.items())
    if "n_mel_channels" in different:
        remedy = f"prepare the data with --n-mel-channels {different['n_mel_channels']} and pass {flags(different)}"
    else:
        remedy = f"pass {flags(different)}"
    return f"{path} was trained with {had}: {remedy}, or start the layers anew that do not fit: {ignoring}"


def _cover(chosen: Collection[str], names: Collection[str]) -> list[str]:
    """The fewest layer names that stand for the tensors `chosen` of all `names` and for no other."""
    cover: list[str] = []
    others = set(names) - set(chosen)
    for name in sorted(chosen):
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            prefix = ".".join(parts[:depth])
            if depth == len(parts) or not any(other.startswith(f"{prefix}.") for other in others):
                if prefix not in cover:
                    cover.append(prefix)
                break
    return cover
