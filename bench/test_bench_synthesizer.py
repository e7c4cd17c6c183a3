"""Text to the last audio sample: `Synthesizer.synthesize`, the models at the published sizes with random weights.

A call speaks one sentence of 128 characters, from the string to the finished samples in the host's memory. It decodes a
fixed number of frames, because with a threshold of 1 no gate fires. NVIDIA's code gets the symbols and returns its
samples to the host; it draws its own noise.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastglow import Synthesizer, Tacotron2
from fastglow.audio import MelConfig
from fastglow.engine import Speech
from fastglow.models import WaveGlow

from . import test_bench_decode_loop as decode_loop
from . import waveglow_model
from .environment import device
from .precision import OFF
from .waveglow_model import SIGMA
from .workload import (
    COMPILE,
    EAGER,
    INFERENCE,
    PEER,
    Cost,
    Implementation,
    Workload,
    cases,
    largest_error,
    launching,
    on_this_machine,
)

TEXT = (
    "A sentence of one hundred and twenty eight characters, which a program that reads aloud would speak "
    "in about seven seconds here."
)
SEED = 1
FRAMES = 603  # 7.0 seconds
CHECKED_FRAMES = 8  # of the mel; they depend on the first 18 of the decoder, through the postnet
CHECKED_VOCODER_FRAMES = 32


@dataclass(frozen=True)
class Synthesis(Workload):
    case: str
    dtype: torch.dtype
    channels: int = 256
    n_frames: int = FRAMES
    small: bool = False

    op = "synthesizer"
    directions = (INFERENCE,)
    composed = True

    @property
    def tacotron2(self) -> Tacotron2:
        return decode_loop.new_model(self.small, self.n_frames, torch.float32)

    @property
    def waveglow(self) -> WaveGlow:
        return waveglow_model.new_model(self.channels, **waveglow_model.SMALL if self.small else {})

    def synthesizer(self, dtype: torch.dtype) -> Synthesizer:
        return Synthesizer(
            copy.deepcopy(self.tacotron2),
            "waveglow",
            copy.deepcopy(self.waveglow),
            audio=MelConfig(n_mel_channels=self.tacotron2.config.n_mel_channels),
            device=device(),
            dtype=dtype,
        )

    def supports(self, implementation: str) -> bool:
        return implementation != COMPILE

    def shapes(self) -> dict[str, list[int]]:
        return {"text": [len(TEXT)], "audio": [self.samples(INFERENCE)]}

    def samples(self, direction: str) -> int:
        return self.n_frames * self.waveglow.config.upsample_stride

    def audio_seconds(self, direction: str) -> float:
        return self.samples(direction) / MelConfig().sampling_rate

    def cost(self, direction: str) -> Cost:
        """Of the decoder's frames and of WaveGlow; the encoder and the postnet are small beside them."""
        decoding = decode_loop.Decoding(
            self.case, decode_loop.GRAPH, 1, len(TEXT), self.dtype, self.small, self.n_frames
        ).cost(direction)
        config = self.waveglow.config
        groups = self.samples(direction) // config.n_group
        parameters = sum(parameter.numel() for parameter in self.waveglow.parameters())
        flops = groups * waveglow_model.flops_per_group(config, folded=True)
        return Cost(decoding.bytes + parameters * self.dtype.itemsize, decoding.flops + flops)

    def capturable(self, direction: str) -> bool:
        return False  # the host reads the length and takes the samples

    def targets(self, direction: str) -> dict[str, float]:
        return {} if self.small else {"milliseconds": 15, "times_real_time": 450}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], object]:
        synthesizer = self.synthesizer(self.dtype)
        if implementation.name != PEER:
            return lambda: speak(synthesizer)
        acoustic: Any = implementation.nvidia.tacotron2(synthesizer.tacotron2)
        vocoder = implementation.nvidia.waveglow_for_inference(copy.deepcopy(self.waveglow).to(self.dtype))
        text, lengths = symbols(synthesizer)

        @torch.no_grad()
        def run() -> Tensor:
            mel, _, _ = acoustic.infer(text, lengths)
            return vocoder.infer(mel, SIGMA)[0].float().cpu()

        return run

    @torch.no_grad()
    def verify(self, implementation: Implementation, direction: str) -> float:
        """The beginning of the mel, and the audio of a mel. Of a whole free run, rounding errors grow without bound."""
        synthesizer, eager = self.synthesizer(self.dtype), Implementation(EAGER).active
        text, lengths = symbols(synthesizer)
        with eager():
            usual, exact = (
                beginning(model.infer(text, lengths, seed=SEED)[0][0])
                for model in (synthesizer.tacotron2, copy.deepcopy(self.tacotron2).double())
            )
        if implementation.name == PEER:
            acoustic: Any = implementation.nvidia.tacotron2(synthesizer.tacotron2)
            decoder = acoustic.decoder
            decoder.prenet = decode_loop.SeededPrenet(decoder.prenet, torch.tensor([SEED], device=device()))
            return largest_error([beginning(acoustic.infer(text, lengths)[0][0])], [usual], [exact], direction)
        with launching(implementation):
            speech = speak(synthesizer)
        assert len(speech.sentences) == 1 and speech.sentences[0].attempts == 1, "the sentence was spoken again"
        assert len(speech.audio) == self.samples(direction), f"got {len(speech.audio)} samples"
        mel = torch.from_numpy(speech.mel)
        with launching(implementation):
            audio = vocoded(synthesizer, mel)
        with eager():
            usual_audio = vocoded(synthesizer, mel)
            with OFF.products():
                exact_audio = vocoded(self.synthesizer(waveglow_model.EXACT), mel)
        actual = beginning(mel.to(device()))
        return largest_error([actual, audio], [usual, usual_audio], [exact, exact_audio], direction)


def speak(synthesizer: Synthesizer) -> Speech:
    return synthesizer.synthesize(TEXT, seed=SEED)


def symbols(synthesizer: Synthesizer) -> tuple[Tensor, Tensor]:
    """The text's symbols [1, T] and their number [1]."""
    ids = synthesizer.frontend.encode(TEXT).symbols
    return torch.tensor([ids], device=device()), torch.tensor([len(ids)], device=device())


def beginning(mel: Tensor) -> Tensor:
    return mel[:, :CHECKED_FRAMES]


def vocoded(synthesizer: Synthesizer, mel: Tensor) -> Tensor:
    """Audio of the mel's first frames."""
    part = mel[None, :, :CHECKED_VOCODER_FRAMES]
    dtype = synthesizer.tacotron2.embedding.weight.dtype
    return torch.from_numpy(synthesizer.vocoder.vocode(part.to(device(), dtype), [part.shape[2]], [SEED])[0])


WORKLOADS = on_this_machine(
    gpu=[Synthesis("128-characters-256", torch.float16)],
    cpu=[Synthesis("small", torch.float32, channels=16, n_frames=30, small=True)],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_synthesizer(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
