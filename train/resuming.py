"""Resuming: which options a run takes from its checkpoint, which may change, and which are refused."""

import hashlib
import logging
from collections.abc import Collection, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastglow.checkpoint import TrainedWith, audio_differences
from fastglow.checkpoint.layouts import NOT_IN_SHAPES
from fastglow.checkpoint.provenance import read_training_checkpoint
from fastglow.errors import FastglowError

from .checkpointing import Found, TrainingCheckpoint, find_newest_checkpoint, load_training_checkpoint
from .config import ModelConfig, TrainConfig, flags, flat_config
from .manifest import SPLITS, Item, PreparedDataset

logger = logging.getLogger(__name__)

# Options that belong to one call: paths, device, length, how to resume. Resuming does not restore them.
CALL_OPTIONS = {
    *("data", "out", "resume", "checkpoint_path", "init_from", "ignore_layers", "max_iterations", "tensorboard"),
    *("device", "use_saved_learning_rate", "profile"),
}
# Options that only matter at the start of a run.
_START_OPTIONS = {"fit_to_data", "init_mel_bias", "uniform_initialize_bn_weight"}
# Model options that may change during training. The others define another model or, for WaveGlow, another function of
# the same weights.
CHANGEABLE: dict[str, set[str]] = {"tacotron2": set(NOT_IN_SHAPES["tacotron2"]), "waveglow": set()}
# Options that determine the order of the items in an epoch.
_ORDER_OPTIONS = {"seed", "bucket_batches"}
# Options that say what the validation loss is.
_LOSS_OPTIONS = {
    *("guided_attention_weight", "guided_attention_sigma", "gate_positive_weight", "mask_padding", "text_cleaners"),
    *("l1_weight", "upper_band_weight", "delta_weight", "ssim_weight"),
    *("sigma", "segment_length", "likelihood_weight", "stft_weight", "stft_sigma"),
}

Changes = dict[str, tuple[Any, Any]]
"""Options that change, as (before, now)."""


@dataclass
class Resumption:
    """How a run continues.

    Attributes:
        config, model_config: the checkpoint's options, updated with the given ones that may change.
        trained_with: what the checkpoint records about the data.
        item_digests: of the data of this call.
        same_order: whether the items of the epoch in progress have the same order; if not, it starts again.
        same_validation: whether validation losses compare with those before.
    """

    config: TrainConfig
    model_config: ModelConfig
    trained_with: TrainedWith
    item_digests: dict[str, Tensor]
    same_order: bool
    same_validation: bool


def find_checkpoint(config: TrainConfig, model_name: str, launchers: Set[str]) -> Found | None:
    """The checkpoint to resume from; None for a new run.

    Args:
        launchers: of the processes of this run; what processes of theirs have saved comes first, because then they
            were started again, with the same options.

    Raises:
        FastglowError: the checkpoint is missing, damaged or another model's; a new run in a folder with checkpoints.
    """
    out = Path(config.out)
    if launchers:
        found = find_newest_checkpoint(out, model_name, launchers)
        if found is not None:
            return found
    if config.checkpoint_path:
        return Found(Path(config.checkpoint_path), load_training_checkpoint(config.checkpoint_path, model_name))
    if config.resume:
        found = find_newest_checkpoint(out, model_name)
        if found is None:
            logger.warning("no valid checkpoint in %s: starting from the beginning", out)
        return found
    if any(out.glob("checkpoint_*.pt")):
        raise FastglowError(f"{out} already holds checkpoints: pass --resume to continue, or another --out")
    return None


def item_digests(dataset: PreparedDataset, model_name: str) -> dict[str, Tensor]:
    """Digests of a data set, independent of its path: for each split int64 [items, 2], of each item's id and content.

    The content is what the model reads: lengths and, for Tacotron 2, the text.
    """

    def digests(item: Item) -> list[int]:
        content = (item.samples,) if model_name == "waveglow" else (item.samples, item.frames, item.text)
        parts = (repr(part).encode("utf-8", "backslashreplace") for part in (item.id, content))
        return [int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "little", signed=True) for part in parts]

    return {
        split: torch.tensor([digests(item) for item in dataset.items[split]], dtype=torch.int64).view(-1, 2)
        for split in SPLITS
    }


def plan_resumption(
    checkpoint: TrainingCheckpoint,
    config: TrainConfig,
    model_config: ModelConfig,
    dataset: PreparedDataset,
    given: Collection[str] | None = None,
) -> Resumption:
    """Compares a checkpoint with the options and data of the call that resumes it, and logs the differences.

    Args:
        checkpoint: from `load_training_checkpoint`.
        config, model_config: the options of this call.
        dataset: the data of this call.
        given: names of the chosen options of both configs, WN_config's as "WN_config.n_layers"; the others are taken
            from the checkpoint. None: those that differ from their default.

    Raises:
        FastglowError: a model option that would make another model, other audio parameters, or data that shares no
            item with the run's.
    """
    if given is None:
        given = _not_default(config) | _not_default(model_config)
    known = read_training_checkpoint(checkpoint).trained_with
    if known.audio is not None and known.audio != dataset.audio:
        raise FastglowError(
            f"{config.data} and the resumed run's data were prepared with different audio parameters "
            f"({audio_differences(dataset.audio, known.audio)}): prepare it with the run's"
        )
    resumed_model, model_changes = _resume_model(checkpoint, model_config, given)
    resumed_config, option_changes = _resume_options(checkpoint, config, known, given)
    changes = model_changes | option_changes
    differences = [f"{name} {before} -> {now}" for name, (before, now) in changes.items()]
    if differences:
        logger.warning("options that differ from the resumed run's: %s", ", ".join(differences))
    digests = item_digests(dataset, checkpoint["model"])
    same_items = _compare_items(checkpoint, config, digests)
    # Checkpoints of versions that trained in one process only do not say what was read of the epoch.
    same_order = same_items and _ORDER_OPTIONS.isdisjoint(changes) and "done" in checkpoint
    if not same_order and checkpoint["batch"]:
        logger.warning("the batches differ from the resumed run's: epoch %d starts again", checkpoint["epoch"] + 1)
    before = checkpoint.get("items")
    same_validation = _LOSS_OPTIONS.isdisjoint(changes) and (
        before is None or torch.equal(before["validation"], digests["validation"])
    )
    return Resumption(resumed_config, resumed_model, known, digests, same_order, same_validation)


def compare_lexicons(before: TrainedWith, now: TrainedWith) -> None:
    """Warns if a run continues with other pronunciations; the path of their file does not matter."""
    digests = [known.lexicon and known.lexicon.digest for known in (before, now)]
    unknown = before.lexicon is not None and before.lexicon.digest is None and now.lexicon is not None
    if digests[0] != digests[1] and not unknown:
        logger.warning("the lexicon's pronunciations differ from the resumed run's")


def _not_default(config: TrainConfig | ModelConfig) -> set[str]:
    default = type(config)("", "") if isinstance(config, TrainConfig) else type(config)()
    values, defaults = flat_config(asdict(config)), flat_config(asdict(default))
    return {name for name, value in values.items() if value != defaults.get(name)}


def _resume_model(
    checkpoint: TrainingCheckpoint, config: ModelConfig, given: Collection[str]
) -> tuple[ModelConfig, Changes]:
    """The checkpoint's model config, updated with the given options."""
    try:
        before = type(config)(**checkpoint["config"])
    except TypeError as error:
        raise FastglowError(f"the checkpoint's model options cannot be read: {error}") from error
    theirs, ours = flat_config(asdict(before)), flat_config(asdict(config))
    changes = {n: (theirs.get(n), ours[n]) for n in ours if n in given and ours[n] != theirs.get(n)}
    refused = {name: values for name, values in changes.items() if name not in CHANGEABLE[checkpoint["model"]]}
    if refused:
        differences = ", ".join(f"{name}={then}, not {now}" for name, (then, now) in refused.items())
        wrong = flags({name: now for name, (_, now) in refused.items()})
        raise FastglowError(
            f"the resumed run's model has {differences}: leave out {wrong} to continue with it, or start another model "
            "in another --out, with --init-from for the weights that fit"
        )
    return replace(before, **{name: now for name, (_, now) in changes.items()}), changes


def _resume_options(
    checkpoint: TrainingCheckpoint, config: TrainConfig, known: TrainedWith, given: Collection[str]
) -> tuple[TrainConfig, Changes]:
    """The options of this call; those that are not given are the checkpoint's."""
    if not isinstance(checkpoint["training"], dict):
        raise FastglowError("the checkpoint's options cannot be read: it is damaged")
    # Options that are newer than the checkpoint had their defaults.
    saved = type(config)(data="", out="").as_dict() | checkpoint["training"]
    then = {name: value for name, value in saved.items() if name not in CALL_OPTIONS}
    now = config.as_dict()
    chosen = {name for name in given if name in now and name not in _START_OPTIONS}
    for name in _START_OPTIONS.intersection(given):
        if name in now and then.get(name, now[name]) != now[name]:
            logger.warning("%s=%s is ignored: it only matters at the start of a run", name, now[name])
    inherited = {name: value for name, value in then.items() if name in now and name not in chosen}
    # The option's path may be relative to another folder. `compare_lexicons` compares the contents.
    if inherited.get("lexicon") and known.lexicon is not None and Path(known.lexicon.path).is_file():
        inherited["lexicon"] = known.lexicon.path
    changes = {
        name: (value, now[name])
        for name, value in then.items()
        if name in chosen and name != "lexicon" and value != now[name]
    }
    try:
        return replace(config, **inherited), changes
    except TypeError as error:
        raise FastglowError(f"the checkpoint's options cannot be read: {error}") from error


def _compare_items(checkpoint: TrainingCheckpoint, config: TrainConfig, now: dict[str, Tensor]) -> bool:
    """Whether the training items are the resumed run's; logs the differences. Older checkpoints lack the digests."""
    before = checkpoint.get("items")
    if before is None:
        return True
    if not isinstance(before, dict) or any(not _are_digests(before.get(split)) for split in SPLITS):
        raise FastglowError("the checkpoint's digests of its data cannot be read: it is damaged")
    if not set(map(tuple, before["train"].tolist())) & set(map(tuple, now["train"].tolist())):
        newest = config.checkpoint_path or str(Path(config.out) / f"checkpoint_{checkpoint['iteration']}.pt")
        raise FastglowError(
            f"{config.data} is not the resumed run's data: it has none of its {len(before['train'])} training items "
            f"unchanged; to train on other data, start from the weights: --init-from {newest} with another --out"
        )
    for split in SPLITS:
        if not torch.equal(before[split], now[split]):
            difference = _difference(before[split], now[split])
            logger.warning("%s differs from the resumed run's data: %s items: %s", config.data, split, difference)
    return torch.equal(before["train"], now["train"])


def _are_digests(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 2 and value.shape[1] == 2


def _difference(before: Tensor, now: Tensor) -> str:
    then, present = (dict(items.tolist()) for items in (before, now))
    counts = {
        "new": len(present.keys() - then.keys()),
        "gone": len(then.keys() - present.keys()),
        "changed": sum(then[item] != present[item] for item in then.keys() & present.keys()),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "in another order"
