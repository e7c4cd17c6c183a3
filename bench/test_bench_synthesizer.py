"""Text to the last audio sample, or to the first: the models at the published sizes with random weights.

A call speaks texts of 16, 128 or 512 characters, from the strings to the finished samples in the host's memory; 512 are
four sentences. It decodes a fixed number of frames a sentence, because with a threshold of 1 no gate fires. The first
sound is `Synthesizer.stream`'s first chunk. NVIDIA's code gets the symbols and returns its samples to the host; it
draws its own noise, and its first sound is its whole result. On a CPU it is the bundled voice that speaks, and the
command from its start to the file.
"""

import copy
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastglow import Synthesizer, Tacotron2
from fastglow.audio import MelConfig
from fastglow.audio.loudness import LEVEL_DB
from fastglow.engine import Speech
from fastglow.engine.acoustic import MAX_SYMBOLS
from fastglow.engine.synthesizer import FIRST_CHUNK_FRAMES
from fastglow.kernels.cpu import fast_dtype
from fastglow.models import WaveGlow

from . import test_bench_decode_loop as decode_loop
from . import waveglow_model
from .bundled_voice import BundledVoice, StartToFile
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
SHORT_TEXT = "Good day to you."
FRAMES = 603  # 7.0 seconds, of a sentence of 128 characters
SEED = 1
QUIET = 1e-3  # volume at which no peak reaches full scale
CHECKED_FRAMES = 8  # of the mel; they depend on the first 18 of the decoder, through the postnet
CHECKED_VOCODER_FRAMES = 32


@dataclass(frozen=True)
class Synthesis(Workload):
    """`batch` texts of `n_sentences` times `sentence`; `streamed`: up to the first sound."""

    case: str
    dtype: torch.dtype
    channels: int = 256
    sentence: str = TEXT
    n_sentences: int = 1
    batch: int = 1
    n_frames: int = FRAMES  # of a sentence
    streamed: bool = False
    small: bool = False

    op = "synthesizer"
    directions = (INFERENCE,)
    composed = True

    @property
    def text(self) -> str:
        return " ".join([self.sentence] * self.n_sentences)

    @property
    def tacotron2(self) -> Tacotron2:
        return decode_loop.new_model(self.small, self.n_frames, torch.float32)

    @property
    def waveglow(self) -> WaveGlow:
        return waveglow_model.new_model(self.channels, **waveglow_model.SMALL if self.small else {})

    def synthesizer(self, dtype: torch.dtype) -> Synthesizer:
        synthesizer = Synthesizer(
            copy.deepcopy(self.tacotron2),
            "waveglow",
            copy.deepcopy(self.waveglow),
            audio=MelConfig(n_mel_channels=self.tacotron2.config.n_mel_channels),
            level=LEVEL_DB,
            device=device(),
            dtype=dtype,
        )
        # The step limit, which ends every sentence here, would otherwise split them.
        synthesizer.acoustic.most_symbols = MAX_SYMBOLS
        return synthesizer

    def supports(self, implementation: str) -> bool:
        return implementation != COMPILE

    def shapes(self) -> dict[str, list[int]]:
        return {"text": [self.batch, len(self.text)], "audio": [self.batch, self.samples(INFERENCE) // self.batch]}

    def samples(self, direction: str) -> int:
        return self.batch * self.n_sentences * self.n_frames * self.waveglow.config.upsample_stride

    def audio_seconds(self, direction: str) -> float:
        return self.samples(direction) / MelConfig().sampling_rate

    def cost(self, direction: str) -> Cost:
        """Of the decoder's frames and of WaveGlow; the encoder and the postnet are small beside them."""
        decoding = decode_loop.Decoding(
            self.case, decode_loop.GRAPH, self.batch, len(self.sentence), self.dtype, self.small, self.n_frames
        ).cost(direction)
        config = self.waveglow.config
        groups = self.samples(direction) // config.n_group
        parameters = sum(parameter.numel() for parameter in self.waveglow.parameters())
        flops = groups * waveglow_model.flops_per_group(config, folded=True)
        n = self.n_sentences
        return Cost(n * (decoding.bytes + parameters * self.dtype.itemsize), n * decoding.flops + flops)

    def capturable(self, direction: str) -> bool:
        return False  # the host reads the length and takes the samples

    def targets(self, direction: str) -> dict[str, float]:
        if self.small:
            return {}
        if self.streamed:
            return {"milliseconds": 10}
        if self.batch > 1:
            return {"samples_per_second": 15e6} if self.batch == 64 and self.sentence == TEXT else {}
        return {"milliseconds": 15, "times_real_time": 450} if self.text == TEXT else {}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], object]:
        synthesizer = self.synthesizer(self.dtype)
        if implementation.name != PEER:
            return lambda: self._first_sound(synthesizer) if self.streamed else self._speak(synthesizer)
        acoustic: Any = implementation.nvidia.tacotron2(synthesizer.tacotron2)
        vocoder = implementation.nvidia.waveglow_for_inference(copy.deepcopy(self.waveglow).to(self.dtype))
        text, lengths = self._symbols(synthesizer, self.batch)

        @torch.no_grad()
        def run() -> list[Tensor]:
            audio = []
            for _ in range(self.n_sentences):
                mel, _, _ = acoustic.infer(text, lengths)
                audio.append(vocoder.infer(mel, SIGMA).float().cpu())
            return audio

        return run

    @torch.no_grad()
    def verify(self, implementation: Implementation, direction: str) -> float:
        """The beginning of the mel, and the audio of a mel. Of a whole free run, rounding errors grow without bound."""
        synthesizer, eager = self.synthesizer(self.dtype), Implementation(EAGER).active
        text, lengths = self._symbols(synthesizer, 1)
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
            speeches = self._speak(synthesizer)
        sentences = [sentence for speech in speeches for sentence in speech.sentences]
        assert len(sentences) == self.batch * self.n_sentences, f"got {len(sentences)} sentences"
        assert all(sentence.attempts == 1 for sentence in sentences), "a sentence was spoken again"
        assert sum(len(sentence.audio) for sentence in sentences) == self.samples(direction)
        mel = torch.from_numpy(speeches[-1].sentences[0].mel)
        checked = self._checked_part(mel.shape[1])
        with launching(implementation):
            audio = self._first_sound(synthesizer) if self.streamed else vocoded(synthesizer, mel, checked)
        with eager():
            usual_audio = vocoded(synthesizer, mel, checked)
            with OFF.products():
                exact_audio = vocoded(self.synthesizer(waveglow_model.EXACT), mel, checked)
        actual = beginning(mel.to(device()))
        n = len(audio)
        return largest_error([actual, audio], [usual, usual_audio[:n]], [exact, exact_audio[:n]], direction)

    def _speak(self, synthesizer: Synthesizer) -> list[Speech]:
        if self.batch == 1:
            return [synthesizer.synthesize(self.text, seed=SEED)]
        return synthesizer.synthesize_batch([self.text] * self.batch, seed=SEED)

    def _first_sound(self, synthesizer: Synthesizer) -> Tensor:
        """As the vocoder made it: random weights exceed full scale, and then the level would change."""
        with closing(synthesizer.stream(self.text, seed=SEED, normalize=False, volume=QUIET)) as chunks:
            return torch.from_numpy(next(chunks)) / QUIET

    def _checked_part(self, n_frames: int) -> int:
        """Frames of the mel whose audio is checked; a first chunk depends on those of the receptive field, too."""
        if not self.streamed:
            return min(n_frames, CHECKED_VOCODER_FRAMES)
        return min(n_frames, FIRST_CHUNK_FRAMES + self.waveglow.receptive_field[1])

    def _symbols(self, synthesizer: Synthesizer, batch: int) -> tuple[Tensor, Tensor]:
        """The sentence's symbols [batch, T] and their number [batch]."""
        ids = synthesizer.frontend.encode(self.sentence).symbols
        return torch.tensor([ids] * batch, device=device()), torch.tensor([len(ids)] * batch, device=device())


def beginning(mel: Tensor) -> Tensor:
    return mel[:, :CHECKED_FRAMES]


def vocoded(synthesizer: Synthesizer, mel: Tensor, n_frames: int) -> Tensor:
    """Audio of the mel's first frames."""
    part = mel[None, :, :n_frames].to(device(), synthesizer.tacotron2.embedding.weight.dtype)
    return torch.from_numpy(synthesizer.vocoder.vocode(part, [n_frames], [SEED])[0])


def synthesis(characters: int, batch: int = 1, streamed: bool = False) -> Synthesis:
    case = "first-sound" if streamed else f"{batch}x{characters}-characters"
    short = characters == len(SHORT_TEXT)
    return Synthesis(
        f"{case}-256",
        torch.float16,
        sentence=SHORT_TEXT if short else TEXT,
        n_sentences=max(1, characters // len(TEXT)),
        batch=batch,
        n_frames=FRAMES * characters // len(TEXT) if short else FRAMES,
        streamed=streamed,
    )


small = partial(Synthesis, dtype=torch.float32, channels=16, n_frames=30, small=True)

WORKLOADS: list[Workload] = on_this_machine(
    gpu=[
        synthesis(128),
        synthesis(128, streamed=True),
        *(synthesis(128, batch) for batch in (8, 64)),
        *(synthesis(characters, batch) for characters in (16, 512) for batch in (1, 8, 64)),
    ],
    cpu=[
        small("small"),
        small("small-first-sound", streamed=True),
        small("small-batch", n_sentences=2, batch=3),
        BundledVoice("heart-128-characters", TEXT, fast_dtype()),
        StartToFile(),
    ],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_synthesizer(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
