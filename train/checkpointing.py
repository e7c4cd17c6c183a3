"""Training checkpoints: everything that a run needs to continue bit for bit on the same device.

The layout is DeepLearningExamples' (config, state_dict, optimizer, epoch) with additions for resuming, all of them
plain tensors and containers, which `torch.load(weights_only=True)` and `fastglow.load_checkpoint` read. They are read
like every checkpoint: a hostile file runs no code and cannot allocate more than twice its own size.
"""

import logging
import os
import random
import re
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from fastglow.checkpoint.containers import open_checkpoint
from fastglow.checkpoint.trees import read_tree
from fastglow.errors import FastglowError
from fastglow.files import replacing

logger = logging.getLogger(__name__)


class RandomState(TypedDict):
    """The generators' states, as plain containers and tensors."""

    python: list[Any]
    numpy: list[Any]
    torch: Tensor
    cuda: list[Tensor]


class _Required(TypedDict):
    model: str  # 'tacotron2' or 'waveglow'
    config: dict[str, Any]  # the model's
    state_dict: dict[str, Tensor]
    optimizer: dict[str, Any]
    epoch: int  # in progress
    iteration: int  # done since the beginning
    batch: int  # done of the epoch
    random_state: RandomState
    training: dict[str, Any]  # `TrainConfig.as_dict`


class TrainingCheckpoint(_Required, total=False):
    """The contents of a checkpoint; older ones lack some of these."""

    items: dict[str, Tensor]  # `resuming.item_digests`
    trained_with: dict[str, Any]  # `TrainedWith.as_dict`
    versions: dict[str, str]


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
_KINDS = {str: "string", dict: "dictionary", int: "count"}


class DamagedCheckpoint(FastglowError):
    """A damaged or incomplete checkpoint, which `--resume` skips."""


def random_state() -> RandomState:
    """The state of every generator that training may draw from."""
    version, python_state, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=True)
    assert isinstance(numpy_state, tuple)
    name, keys, position, has_gauss, cached = numpy_state
    return {
        "python": [version, list(python_state), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: RandomState) -> None:
    """Inverse of `random_state`.

    Raises:
        DamagedCheckpoint: the state is malformed.
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
        raise DamagedCheckpoint(f"the checkpoint's random state cannot be restored: {reason}") from error


def save_training_checkpoint(folder: Path, checkpoint: TrainingCheckpoint, keep: int) -> Path:
    """Writes checkpoint_<iteration>.pt atomically, and deletes all but the newest `keep` up to it (0: keeps all).

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


def load_training_checkpoint(path: str | os.PathLike, model_name: str) -> TrainingCheckpoint:
    """Reads a checkpoint of `fastglow train`; its tensors are on the CPU and contiguous.

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
        raise FastglowError(
            f"{path} is not a training checkpoint that can be resumed: use --init-from to start from its weights"
        )
    for key, kind in _REQUIRED.items():
        if type(checkpoint[key]) is not kind or kind is int and checkpoint[key] < 0:
            raise DamagedCheckpoint(f"{path}: damaged or truncated file: its {key} is not a {_KINDS[kind]}")
    if checkpoint["model"] != model_name:
        raise FastglowError(f"{path} is a training checkpoint of {checkpoint['model']}, not of {model_name}")
    return checkpoint


def find_newest_checkpoint(folder: Path, model_name: str) -> TrainingCheckpoint | None:
    """The newest undamaged checkpoint in a folder; a warning names each damaged one. None if there is no checkpoint.

    Raises:
        FastglowError: it is another model's, or all are damaged.
    """
    paths = _by_iteration(folder)
    for path in paths:
        try:
            return load_training_checkpoint(path, model_name)
        except DamagedCheckpoint as error:
            logger.warning("skipping %s", error)
    if paths:
        raise FastglowError(f"every checkpoint in {folder} is damaged: remove them to start over")
    return None


def _by_iteration(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
