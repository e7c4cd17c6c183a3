"""Takes the weights that come back into the run that was packed, as its newest checkpoint."""

import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastglow.errors import FastglowError
from fastglow.train.checkpointing import (
    Found,
    TrainingCheckpoint,
    checkpoint_path,
    find_newest_checkpoint,
    save_training_checkpoint,
)
from fastglow.train.history import LOG, RUN, HistoryWriter

from ..work import keep, read_json
from .packing import PACKS
from .results import Result


def unpack(folder: Path, run: Path) -> int:
    """Continues a run with a result; returns its new number of iterations.

    The run's newest checkpoint before stays, as before_gpu_N.pt. Its options, random states and position in the data
    remain. Its weights and their average become the result's weights, its optimizer gets the result's mean squares.

    Raises:
        FastglowError: no result, not one of this run, or one that is not trained longer than the run.
    """
    result = Result.read(folder)
    found = find_newest_checkpoint(run, result.model) if run.is_dir() else None
    if found is None:
        raise FastglowError(f"{run} holds no checkpoint of {result.model} that the result could continue")
    base = (read_json(run / PACKS) or {}).get(result.pack)
    if base is None:
        raise FastglowError(f"{folder} was not trained from a pack of {run}")
    iteration = base + result.iterations
    newest = found.checkpoint["iteration"]
    if iteration <= newest:
        raise FastglowError(f"{folder} is older than the run: {iteration:,} iterations, {run} has {newest:,}")
    checkpoint = _continued(found, result, iteration)
    keep(found.path, run / f"before_gpu_{newest}.pt")
    _extend_log(folder, run, base, checkpoint["epoch"])
    save_training_checkpoint(checkpoint_path(run, iteration), checkpoint)
    return iteration


def _continued(found: Found, result: Result, iteration: int) -> TrainingCheckpoint:
    """The run's checkpoint with the result's state."""
    checkpoint = found.checkpoint
    states = checkpoint["optimizer"]["state"]
    fits = (
        json.loads(json.dumps(checkpoint["config"])) == result.config
        and _shapes(checkpoint["state_dict"]) == _shapes(result.weights)
        and {index: state["exp_avg_sq"].shape for index, state in states.items()} == _shapes(result.squares)
    )
    if not fits:
        raise FastglowError(f"the result is of another model than {found.path}")
    bad = [name for name, tensor in result.weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise FastglowError(f"the result has weights that are not finite: {', '.join(bad[:3])}")
    for index, state in states.items():
        state["step"] = torch.full_like(state["step"], iteration)
        state["exp_avg"] = torch.zeros_like(state["exp_avg"])
        state["exp_avg_sq"] = result.squares[index]
    continued: TrainingCheckpoint = {**checkpoint, "iteration": iteration, "state_dict": result.weights}
    if "trained_state_dict" in checkpoint:
        # After so many updates the decay of the average is what it will be.
        continued |= {"trained_state_dict": result.weights, "ema_updates": iteration}
    return continued


def _shapes(tensors: dict[Any, torch.Tensor]) -> dict[Any, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _extend_log(folder: Path, run: Path, base: int, epoch: int) -> None:
    """Appends the other machine's log, counted on from the pack. What the run did since then does not count."""
    with HistoryWriter(run / LOG) as history:  # ends a line that a crash left unfinished
        history.write(RUN, epoch, base, {"description": f"continued on a GPU from iteration {base}"})
    lines = "".join(json.dumps(record) + "\n" for record in _records(folder, base))
    with open(run / LOG, "ab") as file:
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def _records(folder: Path, base: int) -> Iterator[dict[str, Any]]:
    path = folder / f"{LOG}.xz"
    try:
        lines = lzma.decompress(path.read_bytes()).splitlines()
    except (OSError, lzma.LZMAError) as error:
        raise FastglowError(f"{path} cannot be read: {error}") from error
    for line in lines:
        try:
            record = json.loads(line)
            yield record | {"iteration": record["iteration"] + base}
        except (ValueError, TypeError, KeyError):
            continue  # the process was killed while it wrote this
