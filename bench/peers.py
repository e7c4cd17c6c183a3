"""NVIDIA's own WaveGlow, loaded from a checkout of DeepLearningExamples that is no part of this repository."""

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from fastglow import WaveGlow
from fastglow.errors import FastglowError

TACOTRON2_FOLDER = Path("PyTorch/SpeechSynthesis/Tacotron2")


@dataclass(frozen=True)
class DLE:
    """
    Attributes:
        model: its waveglow/model.py.
        loss: its waveglow/loss_function.py.
    """

    model: ModuleType
    loss: ModuleType

    def waveglow(self, model: WaveGlow) -> nn.Module:
        """Its WaveGlow with the weights of ours, on the same device in the same dtype."""
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

    def ready_to_speak(self, model: WaveGlow) -> nn.Module:
        """The same as its inference.py prepares it: without weight norm."""
        return self.model.WaveGlow.remove_weightnorm(self.waveglow(model)).eval()


def load_dle(path: str | Path) -> DLE:
    """
    Args:
        path: of the checkout, or of its Tacotron2 folder.

    Raises:
        FastglowError: no WaveGlow is there.
    """
    for folder in (Path(path) / TACOTRON2_FOLDER, Path(path)):
        if (folder / "waveglow" / "model.py").is_file():
            return DLE(_load(folder / "waveglow" / "model.py"), _load(folder / "waveglow" / "loss_function.py"))
    raise FastglowError(f"{path} holds no {TACOTRON2_FOLDER}/waveglow/model.py: pass a DeepLearningExamples checkout")


def _load(file: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"dle_waveglow_{file.stem}", file)
    module = importlib.util.module_from_spec(specification)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # written for older versions of PyTorch
        specification.loader.exec_module(module)
    return module
