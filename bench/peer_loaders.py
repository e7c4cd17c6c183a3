"""NVIDIA's data loaders, from a checkout of DeepLearningExamples outside this repository.

They need four functions of librosa and scipy. Where the packages are missing, these are made of NumPy, PyTorch and
fastglow's mel filters.
"""

import importlib
import sys
import warnings
import wave
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fastglow.audio import MelConfig
from fastglow.audio.mel import mel_filterbank

PACKAGES = ("tacotron2", "tacotron2_common", "waveglow")
"""Of the checkout; others are installed under the same names."""


def loader(
    checkout: Path,
    model: str,
    folder: Path,
    audio: MelConfig,
    batches: Sequence[list[int]],
    num_workers: int,
    segment_length: int = 0,
) -> tuple[DataLoader, Callable[[object], object]]:
    """(loader as its train.py makes one, function that moves a batch to the GPU).

    Its processes stay from epoch to epoch, which train.py does not ask for.

    Args:
        checkout: its Tacotron2 folder.
        model: 'tacotron2', whose mels are read from files, or 'waveglow'.
        folder: of `loader_data.for_nvidia`.
        audio: parameters of the mels.
        batches: indices of the items.
        num_workers: processes.
        segment_length: of WaveGlow's audio, samples.
    """
    dataset, collate, move = _data(checkout, model, folder, audio, segment_length)
    made: DataLoader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    return made, move


@cache
def _data(
    checkout: Path, model: str, folder: Path, audio: MelConfig, segment_length: int
) -> tuple[Dataset, Callable | None, Callable[[object], object]]:
    """(data set, its collate function, its batch_to_gpu). Its transform inverts large matrices at the start."""
    options = Namespace(
        **audio.as_dict(),
        text_cleaners=["basic_cleaners"],
        max_wav_value=32768.0,
        load_mel_from_disk=True,
        segment_length=segment_length,
    )
    with _importable(checkout):
        module = importlib.import_module(f"{model}.data_function")
        if model == "tacotron2":
            dataset = module.TextMelLoader(str(folder), str(folder / "mels.txt"), options)
            collate = module.TextMelCollate(1)
        else:
            dataset = module.MelAudioLoader(str(folder), str(folder / "audio.txt"), options)
            collate = None
    return dataset, collate, module.batch_to_gpu


@contextmanager
def _importable(checkout: Path) -> Iterator[None]:
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES}
    absent = {name: stub for name, stub in _stand_ins().items() if find_spec(name.partition(".")[0]) is None}
    for name in hidden:
        del sys.modules[name]
    path = list(sys.path)
    sys.path.insert(0, str(checkout))
    sys.modules.update(absent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its code is old
            yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        for name in absent:
            del sys.modules[name]
        sys.modules.update(hidden)


def _stand_ins() -> dict[str, ModuleType]:
    modules: dict[str, dict[str, Callable]] = {
        "librosa": {},
        "librosa.filters": {"mel": _mel},
        "librosa.util": {"pad_center": _pad_center, "tiny": lambda x: np.finfo(np.float32).tiny},
        "scipy": {},
        "scipy.signal": {"get_window": _get_window},
        "scipy.io": {},
        "scipy.io.wavfile": {"read": _read},
    }
    made = {name: ModuleType(name) for name in modules}
    for name, contents in modules.items():
        vars(made[name]).update(contents)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(made[parent], own, made[name])
    return made


def _mel(sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> np.ndarray:
    return mel_filterbank(MelConfig(sr, n_fft, n_mel_channels=n_mels, mel_fmin=fmin, mel_fmax=fmax, win_length=n_fft))


def _pad_center(data: np.ndarray, size: int) -> np.ndarray:
    left = (size - len(data)) // 2
    return np.pad(data, (left, size - len(data) - left))


def _get_window(name: str, length: int, fftbins: bool = True) -> np.ndarray:
    assert name == "hann" and fftbins, (name, fftbins)
    return torch.hann_window(length, dtype=torch.float64).numpy()


def _read(path: str) -> tuple[int, np.ndarray]:
    with wave.open(path, "rb") as file:
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16)
