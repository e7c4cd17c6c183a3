"""A data set of noise with LJSpeech's lengths, as fastglow prepares it and as NVIDIA's loaders read it."""

import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fastglow.audio import MelConfig
from fastglow.train.manifest import Item, PreparedDataset
from fastglow.train.publishing import About, Clip, write_dataset

HIGHEST = 3000  # of the samples: noise that no mel clips


@dataclass(frozen=True)
class Sizes:
    """
    Attributes:
        n_items: clips.
        longest, shortest: (symbols, frames); clips lie evenly between.
    """

    n_items: int
    longest: tuple[int, int]
    shortest: tuple[int, int]


@cache
def folder() -> Path:
    """Removed at the end of the process."""
    made = tempfile.TemporaryDirectory(prefix="fastglow-bench-")
    _made.append(made)
    return Path(made.name)


_made: list[tempfile.TemporaryDirectory] = []


@cache
def prepared(sizes: Sizes) -> PreparedDataset:
    """The data set, all of it to train on."""
    about = About("noise", MelConfig(), text_cleaners=["basic_cleaners"])
    return write_dataset(folder() / f"prepared-{sizes.n_items}", about, {"train": _clips(sizes, about.audio)})


def _clips(sizes: Sizes, audio: MelConfig) -> Iterator[Clip]:
    random = np.random.default_rng(0)
    lengths = (np.linspace(a, b, sizes.n_items).astype(int) for a, b in zip(sizes.longest, sizes.shortest, strict=True))
    for i, (symbols, frames) in enumerate(zip(*lengths, strict=True)):
        item = Item(f"noise{i}", "a" * int(symbols), audio.hop_length * (int(frames) - 1), int(frames))
        samples = random.integers(-HIGHEST, HIGHEST, item.samples, endpoint=True).astype(np.int16)
        yield Clip(item, samples, random.normal(-5, 1, (audio.n_mel_channels, item.frames)).astype(np.float32))


@cache
def for_nvidia(sizes: Sizes) -> Path:
    """A folder with the same clips: audio.txt lists wav files, mels.txt files of mels, as its preprocess_audio2mel.py
    writes them."""
    dataset, path = prepared(sizes), folder() / f"nvidia-{sizes.n_items}"
    path.mkdir()
    lists: dict[str, list[str]] = {"audio": [], "mels": []}
    for item in dataset.items["train"]:
        with wave.open(str(path / f"{item.id}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(dataset.audio.sampling_rate)
            file.writeframes(np.ascontiguousarray(dataset.samples(item)).tobytes())
        torch.save(torch.from_numpy(np.array(dataset.mel(item))), path / f"{item.id}.pt")
        lists["audio"].append(f"{item.id}.wav|{item.text}\n")
        lists["mels"].append(f"{item.id}.pt|{item.text}\n")
    for name, lines in lists.items():
        (path / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return path
