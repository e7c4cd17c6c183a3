"""NVIDIA's own models, loaded from a checkout of DeepLearningExamples outside this repository."""

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fastglow import Tacotron2, WaveGlow
from fastglow.errors import FastglowError

TACOTRON2_FOLDER = Path("PyTorch/SpeechSynthesis/Tacotron2")

OURS_ONLY = ("p_prenet_dropout", "p_encoder_dropout", "p_postnet_dropout")
"""Keywords of Tacotron2Config that are constants in NVIDIA's code."""

UNUSED_IMPORTS = ("librosa", "librosa.filters", "librosa.util", "scipy", "scipy.signal", "scipy.io", "scipy.io.wavfile")
"""Imports of its tacotron2_common that its models do not need."""


@dataclass(frozen=True)
class DLE:
    """
    Attributes:
        model: its waveglow/model.py.
        loss: its waveglow/loss_function.py.
        tacotron2_model: its tacotron2/model.py.
        tacotron2_loss: its tacotron2/loss_function.py.
        folder: its Tacotron2 folder.
    """

    model: ModuleType
    loss: ModuleType
    tacotron2_model: ModuleType
    tacotron2_loss: ModuleType
    folder: Path

    def waveglow(self, model: WaveGlow) -> nn.Module:
        """Its WaveGlow with our weights, device and dtype."""
        config, parameter = model.config, next(model.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its weight_norm is deprecated
            twin = self.model.WaveGlow(
                config.n_mel_channels,
                config.n_flows,
                config.n_group,
                config.n_early_every,
                config.n_early_size,
                config.WN_config,
            ).to(parameter.device, parameter.dtype)
        twin.load_state_dict(model.state_dict())
        return twin

    def waveglow_for_inference(self, model: WaveGlow) -> Any:
        """`waveglow` prepared as by its inference.py: weight norm removed."""
        return self.model.WaveGlow.remove_weightnorm(self.waveglow(model)).eval()

    def tacotron2(self, model: Tacotron2) -> nn.Module:
        """Its Tacotron2 with our weights, device, dtype and mode."""
        parameter = next(model.parameters())
        keywords = {name: value for name, value in asdict(model.config).items() if name not in OURS_ONLY}
        twin = self.tacotron2_model.Tacotron2(**keywords).to(parameter.device, parameter.dtype)
        twin.load_state_dict(model.state_dict())
        return twin.train(model.training)


def load_dle(path: str | Path) -> DLE:
    """
    Args:
        path: the checkout, or its Tacotron2 folder.

    Raises:
        FastglowError: the models are missing.
    """
    files = [Path(model, name) for model in ("waveglow", "tacotron2") for name in ("model.py", "loss_function.py")]
    for folder in (Path(path) / TACOTRON2_FOLDER, Path(path)):
        if all((folder / file).is_file() for file in files):
            with tolerate_old_code():
                model, loss, tacotron2_model, tacotron2_loss = (_load(folder / file) for file in files)
                return DLE(model, loss, tacotron2_model, tacotron2_loss, folder)
    raise FastglowError(f"{path} holds no {TACOTRON2_FOLDER}/{files[0]}: pass a DeepLearningExamples checkout")


def _load(file: Path) -> ModuleType:
    loader = SourceFileLoader(f"dle_{file.parent.name}_{file.stem}", str(file))
    module = ModuleType(loader.name)
    module.__file__ = str(file)
    loader.exec_module(module)
    return module


@contextmanager
def tolerate_old_code() -> Iterator[None]:
    """NVIDIA's files warn on new PyTorch, change sys.path, and import packages that may be missing."""
    absent = {name: _Stub(name) for name in UNUSED_IMPORTS if not _is_installed(name)}
    for name, module in absent.items():
        parent, _, own = name.rpartition(".")
        if parent in absent:
            setattr(absent[parent], own, module)
    path = list(sys.path)
    sys.modules.update(absent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = path
        for name in absent:
            del sys.modules[name]


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class _Stub(ModuleType):
    """A module in which every name is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
