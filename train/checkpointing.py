"""Training checkpoints: everything that a run needs to continue bit for bit on the same device.

The layout is DeepLearningExamples' (config, state_dict, optimizer, epoch) with additions for resuming, all of them
plain tensors and containers, which `torch.load(weights_only=True)` and `fastglow.load_checkpoint` read. They are read
like every checkpoint: a hostile file runs no code and cannot allocate more than twice its own size.
"""

import logging
import os
import random
import re
from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

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
    cuda: list[Tensor]  # of the device that trains; none on a CPU


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

    trained_state_dict: dict[str, Tensor]  # with --ema, whose average is then the state_dict
    ema_updates: int
    done: list[list[int]]  # of the epoch, as `sampler.Stretch`
    random_states: list[RandomState]  # of the other processes, from rank 1 on
    loss_scale: dict[str, Any]  # `LossScaler.state_dict`
    best_loss: float
    launchers: list[str]  # `ranks.launcher` of all processes
    items: dict[str, Tensor]  # `resuming.item_digests`
    trained_with: dict[str, Any]  # `TrainedWith.as_dict`
    versions: dict[str, str]


BEST = "checkpoint_best.pt"
"""The checkpoint with the lowest validation loss."""

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


def random_state(device: torch.device) -> RandomState:
    """The state of every generator that training on a device may draw from."""
    version, python_state, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=True)
    assert isinstance(numpy_state, tuple)
    name, keys, position, has_gauss, cached = numpy_state
    return {
        "python": [version, list(python_state), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def restore_random_state(state: RandomState, device: torch.device) -> None:
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
        if state["cuda"] and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"][0], device)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedCheckpoint(f"the checkpoint's random state cannot be restored: {reason}") from error


def checkpoint_path(folder: Path, iteration: int) -> Path:
    return folder / f"checkpoint_{iteration}.pt"


def save_training_checkpoint(path: Path, checkpoint: TrainingCheckpoint) -> None:
    """Writes a checkpoint; whatever happens, `path` is the old file or the new one.

    Raises:
        FastglowError: it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            # Given a path, PyTorch reports a full disk by the line of its source that noticed it.
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        raise FastglowError(
            f"{path} cannot be written ({' '.join(str(error).split())}): earlier checkpoints are intact; make room "
            "and pass --resume"
        ) from error


def remove_unfinished_checkpoints(folder: Path) -> None:
    """Deletes what processes left that were killed while they wrote a checkpoint."""
    for path in folder.glob(".checkpoint_*.pt.*.tmp"):
        path.unlink(missing_ok=True)


def remove_older_checkpoints(path: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints up to `path` in its folder; 0: keeps all."""
    if keep > 0:
        older = numbered_checkpoints(path.parent)
        for old in older[older.index(path) + keep :]:
            old.unlink(missing_ok=True)


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


class Found(NamedTuple):
    """A checkpoint and its file."""

    path: Path
    checkpoint: TrainingCheckpoint


def find_newest_checkpoint(folder: Path, model_name: str, launchers: Set[str] | None = None) -> Found | None:
    """The newest undamaged checkpoint in a folder, which may be the best one; a warning names each damaged one.

    Args:
        folder: of the run.
        model_name: 'tacotron2' or 'waveglow'.
        launchers: only checkpoints of processes that one of these started; None: all.

    Returns:
        None if there is no checkpoint.

    Raises:
        FastglowError: it is another model's, or all are damaged.
    """
    paths = numbered_checkpoints(folder)
    best = folder / BEST
    if best.is_file():
        iteration = _read_head(best, "iteration", -1)
        paths.insert(sum(_iteration_of(path) >= iteration for path in paths), best)
    for path in paths:
        try:
            if launchers is None or not launchers.isdisjoint(map(str, _read_head(path, "launchers", []))):
                return Found(path, load_training_checkpoint(path, model_name))
        except DamagedCheckpoint as error:
            logger.warning("skipping %s", error)
    if paths and launchers is None:
        raise FastglowError(f"every checkpoint in {folder} is damaged: remove them to start over")
    return None


Head = TypeVar("Head")


def _read_head(path: Path, key: str, default: Head) -> Head:
    """An entry of a checkpoint of the type of `default`, read without its tensors; `default` if there is none."""
    try:
        with open_checkpoint(path) as container:
            value = container.top.get(key) if isinstance(container.top, dict) else None
    except FastglowError:
        return default  # reported when it is its turn
    return value if type(value) is type(default) else default


def _iteration_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, without the best one."""
    return sorted((path for path in folder.glob("*.pt") if _NAME.fullmatch(path.name)), key=_iteration_of, reverse=True)
