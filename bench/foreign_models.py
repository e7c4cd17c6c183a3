"""Other people's WNs, flows, cells and attention, with their published sizes."""

from typing import Any

import torch
from torch import Tensor, nn

from .foreign import Extent, Extents, Target
from .foreign_tacotron2 import TACOTRON2_TARGETS
from .foreign_waveglow import WAVEGLOW_TARGETS
from .peers import DLE
from .rebuilt import VitsWN

SPECTROGRAM_BINS = 513
BATCHES = Extents(Extent(8, 800), Extent(16, 400))
"""On a CPU, for single 1x1 convolutions, which are too short to time with less."""


class Masked(Target):
    """`module(x, mask)` on a signal of `channels`, the last item shorter than the others."""

    channels: tuple[int, int]  # published, small

    small = Extents(Extent(2, 9), Extent(2, 9))
    cpu = Extents(Extent(1, 200), Extent(2, 100))
    gpu = Extents(Extent(1, 800), Extent(32, 400))

    def inputs(self, small: bool, extent: Extent) -> dict[str, Tensor]:
        x = torch.randn(extent.batch, self.channels[small], extent.frames)
        mask = torch.ones_like(x[:, :1])
        mask[1:, :, -extent.frames // 4 :] = 0
        return {"x": x, "mask": mask}

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(inputs["x"], inputs["mask"])

    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return self.infer(model, inputs)


class Flow(Masked):
    """Inverted in inference: `module(x, mask, reverse=True)`."""

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(inputs["x"], inputs["mask"], reverse=True)


class RebuiltWN(Masked):
    """One WN of jaywalnut310, with a global conditioning."""

    package = "jaywalnut310 (rebuilt)"
    channels = (192, 8)

    def __init__(self, case: str, module: str, n_layers: int, p_dropout: float, drops_before: bool):
        self.case, self.module = case, module
        self.arguments = n_layers, p_dropout, drops_before

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        n_layers, p_dropout, drops_before = self.arguments
        return VitsWN(self.channels[small], 5, 3 if small else n_layers, 256, p_dropout, drops_before)

    def inputs(self, small: bool, extent: Extent) -> dict[str, Tensor]:
        return {**super().inputs(small, extent), "g": torch.randn(extent.batch, 256, 1)}

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(inputs["x"], inputs["mask"], g=inputs["g"])


class TransformersVits(Masked):
    """A part of VitsModel, with the configuration for LJSpeech."""

    package = "transformers"

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        narrow = {"hidden_size": 32, "num_attention_heads": 2, "flow_size": 32, "spectrogram_bins": 17} if small else {}
        config = self.imported("transformers.models.vits.configuration_vits").VitsConfig(**narrow)
        return getattr(self.imported("transformers.models.vits.modeling_vits"), self.module)(config)


class TransformersPosterior(TransformersVits):
    case, module = "transformers-vits-posterior", "VitsPosteriorEncoder"
    channels = (SPECTROGRAM_BINS, 17)


class TransformersFlow(TransformersVits, Flow):
    case, module = "transformers-vits-flow", "VitsResidualCouplingBlock"
    channels = (192, 32)


class CoquiPosterior(Masked):
    case, package, module = "coqui-vits-posterior", "coqui-tts", "vits PosteriorEncoder"
    channels = (SPECTROGRAM_BINS, 17)

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        width, n_layers = (8, 2) if small else (192, 16)
        networks = self.imported("TTS.tts.layers.vits.networks")
        return networks.PosteriorEncoder(self.channels[small], width, width, 5, 1, n_layers)

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(inputs["x"], inputs["mask"].sum((1, 2)))


class CoquiFlow(Flow):
    case, package, module = "coqui-vits-flow", "coqui-tts", "vits ResidualCouplingBlocks"
    channels = (192, 8)

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        width = self.channels[small]
        return self.imported("TTS.tts.layers.vits.networks").ResidualCouplingBlocks(width, width, 5, 1, 4)


class CoquiGlowTTS(Flow):
    """The decoder, for inference with its inverses stored and without weight norm, as from a checkpoint."""

    case, package, module = "coqui-glow-tts", "coqui-tts", "glow_tts Decoder"
    channels = (80, 4)

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        width, n_blocks = (8, 2) if small else (192, 12)
        decoder = self.imported("TTS.tts.layers.glow_tts.decoder").Decoder(
            self.channels[small], width, 5, 1, n_blocks, 4, dropout_p=0.05
        )
        if not training:
            decoder.store_inverse()
        return decoder


class CoquiInvConvNear(Flow):
    """Without a stored inverse."""

    case, package, module = "coqui-inv-conv-near", "coqui-tts", "InvConvNear"
    channels = (160, 8)
    cpu = BATCHES

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        return self.imported("TTS.tts.layers.glow_tts.glow").InvConvNear(self.channels[small])


class RadTTSInvertible(Masked):
    """For two frames of 80 mel channels at a time."""

    package = "radtts"
    channels = (160, 8)
    cpu = BATCHES
    asks_for_cuda = True

    def __init__(self, case: str, module: str):
        self.case, self.module = case, module

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        return getattr(self.imported("radtts.common"), self.module)(self.channels[small])

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(inputs["x"], inverse=True)

    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(inputs["x"])


class Cell(Target):
    """An LSTM cell of Tacotron 2's attention, called frame after frame."""

    case, package, module = "lstm-cell", "torch", "nn.LSTMCell"
    small = Extents(Extent(1, 4), Extent(3, 4))
    cpu = Extents(Extent(1, 50), Extent(8, 16))
    gpu = Extents(Extent(1, 200), Extent(64, 200))

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        return nn.LSTMCell(*self.sizes(small))

    def sizes(self, small: bool) -> tuple[int, int]:
        """Features of the input, units."""
        return (5, 6) if small else (768, 1024)

    def inputs(self, small: bool, extent: Extent) -> dict[str, Tensor]:
        n_in, n_units = self.sizes(small)
        zeros = torch.zeros(extent.batch, n_units)
        return {"x": torch.randn(extent.frames, extent.batch, n_in), "h": zeros, "c": zeros.clone()}

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        state, found = (inputs["h"], inputs["c"]), []
        for x in inputs["x"]:
            state = model(x, state)
            found.append(state[0])
        return torch.stack(found)

    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return self.infer(model, inputs)


class EspnetCell(Cell):
    case, package, module = "espnet-zoneout-cell", "espnet", "ZoneOutCell"

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        cell = nn.LSTMCell(*self.sizes(small))
        return self.imported("espnet.nets.pytorch_backend.tacotron2.decoder").ZoneOutCell(cell, 0.1)


class EspnetAttention(Target):
    """Called frame after frame, with the sizes of ESPnet's Tacotron 2."""

    case, package, module = "espnet-att-loc", "espnet", "AttLoc"
    small = Extents(Extent(2, 3, 7), Extent(2, 3, 7))
    cpu = Extents(Extent(1, 50, 64), Extent(4, 16, 64))
    gpu = Extents(Extent(1, 200, 128), Extent(32, 200, 128))

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        sizes = (12, 16, 10, 4, 3) if small else (512, 1024, 512, 32, 15)
        return self.imported("espnet.nets.pytorch_backend.rnn.attentions").AttLoc(*sizes)

    def inputs(self, small: bool, extent: Extent) -> dict[str, Tensor]:
        memory, query = (12, 16) if small else (512, 1024)
        return {
            "memory": torch.randn(extent.batch, extent.symbols, memory),
            "queries": torch.randn(extent.frames, extent.batch, query),
        }

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        model.reset()
        memory, weights, found = inputs["memory"], None, []
        lengths = [memory.shape[1] - i % 3 for i in range(len(memory))]
        for query in inputs["queries"]:
            context, weights = model(memory, lengths, query, weights)
            found.append(context)
        return torch.stack(found)

    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return self.infer(model, inputs)


TARGETS: list[Target] = [
    RebuiltWN("vits-wn", "VITS WN", 16, 0.0, drops_before=False),
    RebuiltWN("glow-tts-wn", "Glow-TTS WN", 4, 0.05, drops_before=True),
    Cell(),
    *TACOTRON2_TARGETS,
    *WAVEGLOW_TARGETS,
    TransformersPosterior(),
    TransformersFlow(),
    CoquiPosterior(),
    CoquiFlow(),
    CoquiGlowTTS(),
    CoquiInvConvNear(),
    RadTTSInvertible("radtts-invertible", "Invertible1x1Conv"),
    RadTTSInvertible("radtts-invertible-lus", "Invertible1x1ConvLUS"),
    EspnetCell(),
    EspnetAttention(),
]
