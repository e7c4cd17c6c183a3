"""Other people's Tacotron 2, with the published sizes: a text to as many frames as its mel has, in inference, and
teacher-forced, in training."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .foreign import Extent, Extents, Target
from .peers import DLE

SYMBOLS = 20  # that occur in the texts
NEVER = 2.0  # a threshold that no probability reaches

WIDTHS = {
    "n_mel_channels": (80, 16),
    "n_symbols": (148, SYMBOLS),
    "symbols_embedding_dim": (512, 16),
    "encoder_embedding_dim": (512, 16),
    "attention_rnn_dim": (1024, 24),
    "attention_dim": (128, 12),
    "attention_location_n_filters": (32, 4),
    "attention_location_kernel_size": (31, 7),
    "decoder_rnn_dim": (1024, 24),
    "prenet_dim": (256, 8),
    "postnet_embedding_dim": (512, 16),
}
"""Published and small, by NVIDIA's names."""


def options(small: bool) -> dict[str, Any]:
    """NVIDIA's, with which a gate never ends the speech."""
    return {
        "mask_padding": True,
        "encoder_kernel_size": 5,
        "encoder_n_convolutions": 3,
        "postnet_kernel_size": 5,
        "postnet_n_convolutions": 5,
        "n_frames_per_step": 1,
        "max_decoder_steps": 1000,
        "gate_threshold": NEVER,
        "p_attention_dropout": 0.1,
        "p_decoder_dropout": 0.1,
        **{name: widths[small] for name, widths in WIDTHS.items()},
    }


class Tacotron2Target(Target):
    small = Extents(Extent(1, 6, 9), Extent(2, 6, 9))
    cpu = Extents(Extent(1, 32, 64), Extent(2, 16, 64))
    gpu = Extents(Extent(1, 128, 128), Extent(32, 200, 128))

    steps = "max_decoder_steps"
    """The decoder's attribute that ends inference."""

    def inputs(self, small: bool, extent: Extent) -> dict[str, Tensor]:
        """The texts and mels of a batch become shorter by a symbol and two frames."""
        B, frames, symbols = extent
        order = torch.arange(B)
        return {
            "text": torch.randint(1, SYMBOLS, (B, symbols)),
            "text_lengths": (symbols - order).clamp(min=symbols // 2),
            "mel": torch.randn(B, WIDTHS["n_mel_channels"][small], frames),
            "mel_lengths": (frames - 2 * order).clamp(min=frames // 2),
        }

    def infer(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        setattr(model.decoder, self.steps, inputs["mel"].shape[2])
        return self.speak(model, inputs)

    def speak(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model.infer(inputs["text"], inputs["text_lengths"])

    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        text, text_lengths, mel, mel_lengths = inputs.values()
        return model((text, text_lengths, mel, text.shape[1], mel_lengths))


class NvidiaTacotron2(Tacotron2Target):
    case, package, module = "nvidia-tacotron2", "tacotron2", "Tacotron2"
    asks_for_cuda = True

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        return self.imported("tacotron2.model").Tacotron2(SimpleNamespace(**options(small), fp16_run=False))

    def speak(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model.inference(inputs["text"])


class ExamplesTacotron2(Tacotron2Target):
    case, package, module = "examples-tacotron2", "DeepLearningExamples", "Tacotron2"

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        if dle is None:
            pytest.skip("--peer-dle PATH is not given: no DeepLearningExamples")
        # Its mask overwrites what the backward pass needs; its scripts leave it off.
        without_mask = {**options(small), "mask_padding": False}
        return dle.tacotron2_model.Tacotron2(**without_mask, decoder_no_early_stopping=False)


class TorchaudioTacotron2(Tacotron2Target):
    case, package, module = "torchaudio-tacotron2", "torchaudio", "models.Tacotron2"
    steps = "decoder_max_step"

    NAMES = {
        "n_mel_channels": "n_mels",
        "n_symbols": "n_symbol",
        "symbols_embedding_dim": "symbol_embedding_dim",
        "attention_dim": "attention_hidden_dim",
        "attention_location_n_filters": "attention_location_n_filter",
    }
    """torchaudio's names for NVIDIA's."""

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        widths = {self.NAMES.get(name, name): both[small] for name, both in WIDTHS.items()}
        return self.imported("torchaudio.models").Tacotron2(**widths, gate_threshold=NEVER)

    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(*inputs.values())


class SpeechBrainTacotron2(Tacotron2Target):
    case, package, module = "speechbrain-tacotron2", "speechbrain", "lobes Tacotron2"

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        cls = self.imported("speechbrain.lobes.models.Tacotron2").Tacotron2
        return cls(**options(small), decoder_no_early_stopping=False)


class CoquiTacotron2(Tacotron2Target):
    """Its widths are constants."""

    case, package, module = "coqui-tacotron2", "coqui-tts", "Tacotron2"
    small = Extents(Extent(1, 3, 9), Extent(2, 6, 9))

    def build(self, small: bool, training: bool, dle: DLE | None) -> nn.Module:
        config = self.imported("TTS.tts.configs.tacotron2_config").Tacotron2Config(num_chars=148, r=1, out_channels=80)
        model = self.imported("TTS.tts.models.tacotron2").Tacotron2(config)
        model.decoder.stop_threshold = NEVER
        return model

    def inputs(self, small: bool, extent: Extent) -> dict[str, Tensor]:
        return super().inputs(False, extent)

    def speak(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model.inference(inputs["text"])

    def train(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        return model(inputs["text"], inputs["text_lengths"], inputs["mel"].mT, inputs["mel_lengths"])


TACOTRON2_TARGETS: list[Target] = [
    TorchaudioTacotron2(),
    NvidiaTacotron2(),
    ExamplesTacotron2(),
    SpeechBrainTacotron2(),
    CoquiTacotron2(),
]
