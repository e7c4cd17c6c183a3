"""Packs a run and its data for a machine with a GPU: weights in float16, the options, and as many clips as fit.

A pack holds weights.safetensors unless the training begins anew, options.json for `--config-file`, clips-*.xz (see
`coding`), the lexicon if the run reads one, and manifest.json. Training on the other machine needs PyTorch, NumPy,
safetensors, click and tqdm only: texts are cleaned here.
"""

import heapq
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastglow.audio import MelConfig
from fastglow.checkpoint import load_checkpoint, save_checkpoint
from fastglow.errors import FastglowError
from fastglow.files import filling
from fastglow.text.cleaners import clean
from fastglow.train.checkpointing import Found, find_newest_checkpoint
from fastglow.train.manifest import Item, PreparedDataset
from fastglow.train.resuming import CALL_OPTIONS

from ..work import read_json, write_json
from . import coding, results

LIMIT = 60_000_000  # bytes, of a pack and of what comes back
LOG_BYTES = 2_000_000  # of what comes back
WEIGHTS = "weights.safetensors"
CLIPS = 64  # in a file
PACKS = "packs.json"
"""In the folder of a run: what was packed of it."""

# Options of the other machine: no validation, which needs matplotlib for its samples, no other extras, and no end but
# that of the time.
_THERE = {"tensorboard": False, "keep_best": False, "epochs": 10**9}
_NOT_THERE = {*CALL_OPTIONS, "text_cleaners", "lexicon"}


@dataclass(frozen=True)
class Manifest:
    """manifest.json of a pack.

    Attributes:
        id: of the pack.
        model: "tacotron2" or "waveglow".
        iteration: of the packed weights.
        config: of the model.
        lexicon: name of the file; None: none.
        audio: parameters of the log-mels.
        items: of the clips, in order.
        files: how many clips each file has.
    """

    id: str
    model: str
    iteration: int
    config: dict[str, Any]
    lexicon: str | None
    audio: MelConfig
    items: list[Item]
    files: list[int]

    def write(self, folder: Path) -> None:
        values = asdict(self) | {"audio": self.audio.as_dict(), "items": [item.as_dict() for item in self.items]}
        (folder / "manifest.json").write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises FastglowError if the folder is not a whole pack."""
        values = read_json(folder / "manifest.json")
        try:
            items = [Item(**item) for item in values.pop("items")]
            if any(Path(item.id).name != item.id for item in items):
                raise ValueError("an id is not the name of a file")
            return cls(audio=MelConfig.from_dict(values.pop("audio")), items=items, **values)
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise FastglowError(f"{folder} is no pack: make one with `python -m voices.gpu pack`") from error


def by_coverage(items: Sequence[Item]) -> Iterator[Item]:
    """The items, first those that add the most that is rare so far, per second: each sequence of three letters counts
    the less the more often it has come."""
    parts = {item.id: Counter(zip(text, text[1:], text[2:], strict=False)) for item in items if (text := item.text)}
    seen: Counter[tuple[str, ...]] = Counter()

    def gain(item: Item) -> float:
        return sum(n / (1 + seen[part]) for part, n in parts.get(item.id, {}).items()) / item.samples

    # Gains only fall, so that an item whose gain is still the largest known one is the best.
    heap = [(-gain(item), index) for index, item in enumerate(items)]
    heapq.heapify(heap)
    while heap:
        known, index = heapq.heappop(heap)
        now = -gain(items[index])
        if heap and now > heap[0][0] and now > known:
            heapq.heappush(heap, (now, index))
            continue
        seen.update(parts.get(items[index].id, {}))
        yield items[index]


def pack(
    data: Path, run: Path, model: str, out: Path, changes: dict[str, Any], *, anew: bool = False, limit: int = LIMIT
) -> Manifest:
    """Fills a folder for `python -m voices.gpu train`.

    Args:
        data: prepared data set of the run.
        run: its folder.
        model: "tacotron2" or "waveglow".
        out: folder to make; an earlier pack there is replaced.
        changes: options for the other machine that are not the run's, by name.
        anew: without the weights, which leaves room for more clips.
        limit: of all files together, in bytes.

    Raises:
        FastglowError: no checkpoint, a model that is too large, no clip fits, or `out` holds anything but a pack.
    """
    dataset = PreparedDataset.open(data)
    found = find_newest_checkpoint(run, model) if run.is_dir() else None
    if found is None:
        raise FastglowError(f"{run} holds no checkpoint to pack: begin its training with `make voice GOAL={model}`")
    _remove_pack(out)
    with filling(out) as folder:
        _check_size(found)
        if not anew:
            _write_weights(found, folder / WEIGHTS)
        _write_options(found, folder / "options.json", changes)
        lexicon = _copy_lexicon(found, folder)
        items = _cleaned(dataset, found) if model == "tacotron2" else list(dataset.items["train"])
        left = limit - size_of(folder)
        packed, files = _write_clips(dataset, list(by_coverage(items)), model, folder, left)
        if not files:
            raise FastglowError(f"limit={limit} bytes has no room for clips beside the weights: train a smaller model")
        manifest = Manifest(
            id=secrets.token_hex(8),
            model=model,
            iteration=found.checkpoint["iteration"],
            config=found.checkpoint["config"],
            lexicon=lexicon,
            audio=dataset.audio,
            items=packed,
            files=files,
        )
        manifest.write(folder)
        write_json(run / PACKS, {**(read_json(run / PACKS) or {}), manifest.id: manifest.iteration})
    return manifest


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove_pack(folder: Path) -> None:
    """Raises FastglowError for a folder that holds anything else, such as a run."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        Manifest.read(folder)
    except FastglowError as error:
        raise FastglowError(f"{folder} is there and is no pack: name a new folder with --out, or remove it") from error
    shutil.rmtree(folder)


def _check_size(found: Found) -> None:
    n_parameters = sum(tensor.numel() for tensor in found.checkpoint["state_dict"].values())
    if n_parameters * results.BYTES > LIMIT - LOG_BYTES:
        raise FastglowError(
            f"{found.path} has {n_parameters:,} parameters: what comes back would have "
            f"{n_parameters * results.BYTES / 1e6:.0f} MB and the log, must have at most {LIMIT / 1e6:g} MB"
        )


def _write_weights(found: Found, path: Path) -> None:
    """The weights that are trained, not their average."""
    model = load_checkpoint(found.path)
    model.load_state_dict(found.checkpoint.get("trained_state_dict", found.checkpoint["state_dict"]))
    save_checkpoint(model, path, dtype=torch.float16)


def _write_options(found: Found, path: Path, changes: dict[str, Any]) -> None:
    options = {name: value for name, value in found.checkpoint["training"].items() if name not in _NOT_THERE}
    for name, value in found.checkpoint["config"].items():
        options |= {f"wn_{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    path.write_text(json.dumps(options | _THERE | changes, indent=2) + "\n", encoding="utf-8")


def _copy_lexicon(found: Found, folder: Path) -> str | None:
    known = found.checkpoint.get("trained_with", {}).get("lexicon")
    if not known:
        return None
    source = Path(known["path"])
    name = "lexicon.txt.gz" if source.suffix == ".gz" else "lexicon.txt"
    try:
        shutil.copyfile(source, folder / name)
    except OSError as error:
        raise FastglowError(f"the lexicon {source} cannot be copied: {error.strerror}") from error
    return name


def _cleaned(dataset: PreparedDataset, found: Found) -> list[Item]:
    cleaners = found.checkpoint["training"]["text_cleaners"]
    return [replace(item, text=clean(item.text, cleaners).text) for item in dataset.items["train"]]


def _write_clips(
    dataset: PreparedDataset, items: Sequence[Item], model: str, folder: Path, left: int
) -> tuple[list[Item], list[int]]:
    """Writes clips until `left` bytes are full; returns them, and how many each file has."""
    encode: Callable[[Sequence[np.ndarray]], bytes]
    if model == "tacotron2":
        encode, load = coding.encode_mels, dataset.mel
    else:
        encode, load = coding.encode_recordings, dataset.samples
    packed: list[Item] = []
    files: list[int] = []
    for first in range(0, len(items), CLIPS):
        some = items[first : first + CLIPS]
        encoded = encode([load(item) for item in some])
        described = len(json.dumps([item.as_dict() for item in packed + list(some)])) + 10_000
        if len(encoded) + described > left:
            break
        left -= len(encoded)
        (folder / f"clips-{len(files):03d}.xz").write_bytes(encoded)
        files.append(len(some))
        packed += some
    return packed, files
