"""Fine-tuning: a new model starts from the weights of a checkpoint of any published format."""

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from fastglow.audio import MelConfig
from fastglow.checkpoint import audio_differences, load_checkpoint, trained_with
from fastglow.checkpoint.layouts import NOT_IN_SHAPES
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2, WaveGlow
from fastglow.text import symbols
from fastglow.text.symbol_tables import find_table, rows_by_symbol

from .config import ModelConfig, flags, flat_config

logger = logging.getLogger(__name__)

EMBEDDING = "embedding.weight"
# Options that a misfit message leaves out: the symbol tables determine the first, the training data the last.
_NOT_NAMED = {"n_symbols", *NOT_IN_SHAPES["tacotron2"], "upsample_stride"}
_MAX_LAYERS = 8


def warm_start(
    model: Tacotron2 | WaveGlow,
    path: str | os.PathLike,
    ignore_layers: Sequence[str] = (),
    audio: MelConfig | None = None,
) -> None:
    """Loads the weights of a checkpoint into a model, except ignored layers.

    If the checkpoint has another known symbol table (`fastglow.text.symbol_tables`), the rows of Tacotron 2's
    embedding are assigned to the same symbols; symbols that it lacks keep their initial values. `model` reads the
    first of NVIDIA's symbols, as `fastglow train` does.

    Args:
        model: newly initialised; changed in place.
        path: checkpoint of any published format.
        ignore_layers: names of tensors, layers or parts, such as embedding.weight, decoder.prenet or WN.3, that keep
            their initial values.
        audio: parameters of the training data; a warning is logged if the checkpoint's differ.

    Raises:
        FastglowError: an unreadable checkpoint or one of the other model, a name that matches no layer, an unknown
            symbol table, or weights that do not fit: the message has the options that differ and the layers to ignore
            instead.
    """
    source = load_checkpoint(path)
    if type(source) is not type(model):
        raise FastglowError(f"{path} is a {type(source).__name__}, not a {type(model).__name__}")
    wanted, found = model.state_dict(), source.state_dict()
    ignored = _select(ignore_layers, wanted.keys() | found.keys())
    if isinstance(source, Tacotron2) and EMBEDDING not in ignored:
        found[EMBEDDING] = _embedding(source, wanted[EMBEDDING], path)
    if isinstance(source, WaveGlow) and isinstance(model, WaveGlow):
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
        logger.warning("%s was trained with other audio parameters: %s", path, audio_differences(known, audio))
    model.load_state_dict({name: wanted[name] if name in ignored else found[name] for name in wanted})
    if ignored:
        logger.info(
            "layers that keep their initial values: %s", ", ".join(_cover(ignored, wanted.keys() | found.keys()))
        )


def _check_function(source: WaveGlow, model: WaveGlow, path: str | os.PathLike) -> None:
    """Checks the options that change the model's function but not the shapes of its weights."""
    halves = source.config.alternate_halves
    if halves != model.config.alternate_halves:
        raise FastglowError(
            f"{path} was trained with alternate_halves={halves}: pass {flags({'alternate_halves': halves})}"
        )
    if source.config.upsample_stride != model.config.upsample_stride:
        logger.warning(
            "%s makes %d samples per frame, this run %d: its upsampling layer must be trained again",
            path,
            source.config.upsample_stride,
            model.config.upsample_stride,
        )


def _select(layers: Iterable[str], names: Collection[str]) -> set[str]:
    """The tensors whose name, or the first parts of it, is in `layers`."""
    selected = set()
    for layer in layers:
        parts = layer.rstrip(".").split(".")
        matches = {name for name in names if name.split(".")[: len(parts)] == parts}
        if not matches:
            raise FastglowError(
                f"ignore_layers={layer!r} must be a layer of the model: it has {', '.join(_nearest(parts, names))}"
            )
        selected |= matches
    return selected


def _nearest(parts: list[str], names: Collection[str]) -> list[str]:
    """The layers that share the most first parts with an unknown name."""
    depth = next(n for n in range(len(parts), -1, -1) if any(name.split(".")[:n] == parts[:n] for name in names))
    paths = [name.split(".") for name in sorted(names)]
    return list(dict.fromkeys(".".join(path[: depth + 1]) for path in paths if path[:depth] == parts[:depth]))[:20]


def _embedding(source: Tacotron2, initial: Tensor, path: str | os.PathLike) -> Tensor:
    """The rows of this run's embedding: the source's for the symbols that it has, else the initial ones."""
    rows, name = source.state_dict()[EMBEDDING], trained_with(source).symbols
    table, own = find_table(len(rows), name), symbols[: len(initial)]
    if rows.shape[1:] != initial.shape[1:]:
        return rows  # reported with the other shapes that do not fit
    if table is None and name is None and len(rows) == len(initial):
        return rows  # both have the user's own table
    if table is None:
        raise FastglowError(
            f"{path} has {len(rows)} symbols of an unknown table, so its embedding cannot be used: start a new one "
            "with --ignore-layers embedding.weight"
        )
    if list(table.symbols) == own and len(rows) == len(initial):
        return rows
    pairs = rows_by_symbol(table.symbols, own)
    sources, targets = (torch.tensor(side, dtype=torch.int64) for side in zip(*pairs, strict=True))
    mapped = initial.clone()
    mapped[targets] = rows[sources].to(initial.dtype)
    logger.info(
        "%s has %s: the embedding of %d of this run's %d symbols is loaded, the others keep their initial values",
        path,
        table.title,
        len(pairs),
        len(initial),
    )
    return mapped


def _misfit_message(
    path: str | os.PathLike,
    config: ModelConfig,
    source_config: ModelConfig,
    misfits: set[str],
    names: Collection[str],
) -> str:
    """One line: the options that differ, and the options that make the weights fit or leave them out."""
    ours, theirs = flat_config(asdict(config)), flat_config(asdict(source_config))
    different = {name: value for name, value in theirs.items() if value != ours[name] and name not in _NOT_NAMED}
    layers = _cover(misfits, names)
    for depth in (3, 2, 1):
        if len(layers) > _MAX_LAYERS:  # fewer names, which include layers that fit
            layers = sorted({".".join(layer.split(".")[:depth]) for layer in layers})
    ignoring = flags({"ignore_layers": layers})
    had = ", ".join(f"{name}={value} (this run: {ours[name]})" for name, value in different.items())
    if "n_mel_channels" in different:
        remedy = f"prepare the data with --n-mel-channels {different['n_mel_channels']} and pass {flags(different)}"
    else:
        remedy = f"pass {flags(different)}"
    return f"{path} was trained with {had}: {remedy}, or leave out the layers that do not fit: {ignoring}"


def _cover(chosen: Collection[str], names: Collection[str]) -> list[str]:
    """The fewest layer names that match exactly the tensors `chosen` of `names`."""
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
