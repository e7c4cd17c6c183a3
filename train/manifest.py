"""The prepared data set on disk, which `fastglow prepare` writes and training reads.

dataset.json      audio parameters, text cleaners, source, counts, rejected items with reasons
train.jsonl       one item per line: id, text, samples, frames
validation.jsonl
mels/<id>.npy     log-mel [n_mel_channels, frames], float32
audio/<id>.npy    samples [N], int16
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fastglow.audio import MelConfig
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.lines import split_lines

from .arrays import read_array

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Item:
    """One clip: `id` names its files, `samples` and `frames` are the lengths of the cached arrays."""

    id: str
    text: str
    samples: int
    frames: int

    def __post_init__(self) -> None:
        for name, kind in (("id", str), ("text", str), ("samples", int), ("frames", int)):
            if type(getattr(self, name)) is not kind:
                raise TypeError(f"{name} must be {'a string' if kind is str else 'an integer'}")
        if not 0 < self.frames <= self.samples < 2**40:
            raise ValueError(f"samples={self.samples} or frames={self.frames} is out of range")


@dataclass
class PreparedDataset:
    """A folder that `fastglow prepare` filled."""

    folder: Path
    audio: MelConfig
    items: dict[str, list[Item]]  # by split
    text_cleaners: list[str] | None = None  # for training; None: prepared before they were recorded

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "PreparedDataset":
        """Reads the manifests; raises FastglowError if the folder was not completely prepared."""
        folder = Path(folder)
        try:
            description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            items = {
                split: [
                    Item(**json.loads(line))
                    for line in split_lines((folder / f"{split}.jsonl").read_text(encoding="utf-8"))
                ]
                for split in SPLITS
            }
            audio, cleaners = MelConfig.from_dict(description["audio"]), description.get("text_cleaners")
            if not (cleaners is None or isinstance(cleaners, list) and all(isinstance(name, str) for name in cleaners)):
                raise ValueError("text_cleaners must be a list of names")
            return cls(folder, audio, items, cleaners)
        except FileNotFoundError as error:
            raise FastglowError(
                f"{error.filename} is missing: run `fastglow prepare DATASET --out {folder}` first"
            ) from error
        except OSError as error:
            raise FastglowError(f"{folder} cannot be read as a prepared data set: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FastglowError(
                f"{folder} holds a damaged manifest ({reason}): run `fastglow prepare` again"
            ) from error

    def mel(self, item: Item) -> np.ndarray:
        """Cached log-mel, float32 [n_mel_channels, frames]."""
        return self._load("mels", item, np.float32, (self.audio.n_mel_channels, item.frames))

    def samples(self, item: Item) -> np.ndarray:
        """Cached samples, int16 [N], as a memory map."""
        return self._load("audio", item, np.int16, (item.samples,), mapped=True)

    def path(self, kind: str, item_id: str) -> Path:
        return self.folder / kind / f"{item_id}.npy"

    def _load(
        self, kind: str, item: Item, dtype: type[np.generic], shape: tuple[int, ...], mapped: bool = False
    ) -> np.ndarray:
        path = self.path(kind, item.id)
        try:
            return read_array(path, dtype, shape, mapped=mapped)
        except (OSError, ValueError) as error:
            raise FastglowError(f"{path} cannot be read ({error}): run `fastglow prepare` again") from error

    def write(self, source: str, rejected: list[tuple[str, str]]) -> None:
        """Writes the manifests, dataset.json last: its presence means that the caches are complete."""
        for split in SPLITS:
            lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in self.items[split])
            _write(self.folder / f"{split}.jsonl", "".join(lines))
        description = {
            "source": source,
            "audio": self.audio.as_dict(),
            "text_cleaners": self.text_cleaners,
            "counts": {split: len(self.items[split]) for split in SPLITS},
            "rejected": [{"item": name, "reason": reason} for name, reason in rejected],
        }
        _write(self.folder / "dataset.json", json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
