"""Training checkpoints: everything that a run needs to go on bit for bit on the same device.

The layout is DeepLearningExamples' (config, state_dict, optimizer, epoch), with what resuming needs
besides, all plain tensors and containers: `torch.load(weights_only=True)` and
`fastglow.load_checkpoint` read it. They are read as every checkpoint is, so that a hostile file runs nothing and
cannot ask for more memory than its own size twice over.
"""

import logging
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastglow.checkpoint.containers import open_checkpoint
from fastglow.checkpoint.trees import read_tree
from fastglow.errors import FastglowError
from fastglow.files import replacing

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint_(\d+)\.pt")
_REQUIRED = {
    "model": str,
    "config": dict,
    "state_dict": dict,
    "optimizer": dict,
    "epoch": int,
    "iteration": int,
    "batch": int,
    "random_state": dict,
    "training": dict,
}
_KINDS = {str: "text", dict: "dictionary", int: "count"}


class DamagedCheckpoint(FastglowError):
    """A file that is no whole checkpoint: `--resume` passes it over."""


def random_state() -> dict[str, Any]:
    """State of every generator that training may draw from, as plain containers and tensors."""
    version, python_state, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(python_state), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`.

    Raises:
        DamagedCheckpoint: it is none.
    """
    try:
        version, python_state, gauss = state["python"]
        random.setstate((version, tuple(python_state), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedCheckpoint(f"the checkpoint's random numbers cannot be gone on with: {reason}") from error


def save_training_checkpoint(folder: Path, checkpoint: dict[str, Any], keep: int) -> Path:
    """Writes checkpoint_<iteration>.pt whole or not at all; of it and those before it keeps the newest `keep` (0: all).

    Raises:
        FastglowError: it cannot be written.
    """
    path = folder / f"checkpoint_{checkpoint['iteration']}.pt"
    try:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
    except (OSError, RuntimeError) as error:
        raise FastglowError(f"{path} cannot be written: {' '.join(str(error).split())}") from error
    if keep > 0:
        older = _by_iteration(folder)
        older = older[older.index(path) + 1 :]
        for old in older[keep - 1 :]:
            old.unlink()
    return path


def load_training_checkpoint(path: str | os.PathLike, model_name: str) -> dict[str, Any]:
    """Reads a checkpoint of `fastglow train`.

    Returns:
        plain data, and the tensors bit for bit, on the CPU and contiguous.

    Raises:
        DamagedCheckpoint: damaged, or not what `save_training_checkpoint` writes.
        FastglowError: missing, of another model, or not a training checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FastglowError(f"{path} does not exist: pass a checkpoint of `fastglow train`")
    try:
        with open_checkpoint(path) as container:
            is_resumable = isinstance(container.top, dict) and _REQUIRED.keys() <= container.top.keys()
            checkpoint = read_tree(container) if is_resumable else None
    except FastglowError as error:
        raise DamagedCheckpoint(str(error)) from None
    if checkpoint is None:
        raise FastglowError(f"{path} cannot be resumed from; to start from its weights use --init-from")
    for key, kind in _REQUIRED.items():
        if type(checkpoint[key]) is not kind or kind is int and checkpoint[key] < 0:
            raise DamagedCheckpoint(f"{path}: damaged or truncated file: its {key} is no {_KINDS[kind]}")
    if checkpoint["model"] != model_name:
        raise FastglowError(f"{path} is a training checkpoint of {checkpoint['model']}, not of {model_name}")
    return checkpoint


def find_newest_checkpoint(folder: Path, model_name: str) -> dict[str, Any] | None:
    """The newest checkpoint of a folder that reads well, damaged ones passed over with a warning; None if it has none.

    Raises:
        FastglowError: it is another model's, or there are only damaged ones.
    """
    paths = _by_iteration(folder)
    for path in paths:
        try:
            return load_training_checkpoint(path, model_name)
        except DamagedCheckpoint as error:
            logger.warning("passing over %s", error)
    if paths:
        raise FastglowError(f"every checkpoint in {folder} is damaged: remove them to start anew")
    return None


def _by_iteration(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
