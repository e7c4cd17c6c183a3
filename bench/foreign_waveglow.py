"""NVIDIA's WaveGlow, by its package and by DeepLearningExamples, with 256 channels."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .foreign import Extent, Extents, Target
from .peers import DLE

SAMPLES_PER_FRAME = 256


class NvidiaWaveGlow(Target):
    """For inference without weight norm, as its scripts prepare it."""

    case, package, module = "nvidia-waveglow", "waveglow", "WaveGlow"
    small = Extents(Extent(1, 8), Extent(1, 8))
    cpu = Extents(Extent(1, 8), Extent(1, 8))
    gpu = Extents(Extent(1, 256), Extent(10, 32))
    asks_for_cuda = True

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        cls = self.model_class(dle)
        n_mels, n_flows, n_layers, n_channels = (16, 4, 2, 8) if small else (80, 12, 8, 256)
        network = {"n_layers": n_layers, "n_channels": n_channels, "kernel_size": 3}
        model = cls(n_mels, n_flows, 8, n_flows // 3, 2, network)
        return model if training else cls.remove_weightnorm(model)

    def model_class(self, dle: DLE | None) -> Any:
        return self.imported("waveglow.glow").WaveGlow

    def inputs(self, small: bool, extent: Extent) -> dict[str, Tensor]:
        return {
            "mel": torch.randn(extent.batch, 16 if small else 80, extent.frames),
            "audio": torch.rand(extent.batch, SAMPLES_PER_FRAME * extent.frames) * 2 - 1,
        }

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model.infer(inputs["mel"], sigma=0.6)

    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model((inputs["mel"], inputs["audio"]))


class ExamplesWaveGlow(NvidiaWaveGlow):
    case, package = "examples-waveglow", "DeepLearningExamples"

    def model_class(self, dle: DLE | None) -> Any:
        if dle is None:
            pytest.skip("--peer-dle PATH is not given: no DeepLearningExamples")
        return dle.model.WaveGlow


WAVEGLOW_TARGETS: list[Target] = [NvidiaWaveGlow(), ExamplesWaveGlow()]
