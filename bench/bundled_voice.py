"""The bundled voice on a CPU: a text to its last sample, and the command from its start to the file."""

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastglow import Synthesizer
from fastglow.engine import Speech
from fastglow.kernels import backend
from fastglow.kernels.arguments import dtype_name
from fastglow.kernels.cpu import fast_dtype
from fastglow.voices import DEFAULT_VOICE

from . import environment
from .workload import EAGER, FASTGLOW, INFERENCE, Cost, Implementation, Workload, largest_error

SEED = 1
CHECKED_FRAMES = 8
STEPS = 32  # those, and the frames that they depend on through the postnet
WORDS = "Hi."
ROUNDING = 2.0**-15
"""Of a sample in a file of 16 bits."""


@dataclass(frozen=True)
class BundledVoice(Workload):
    """`text` is one sentence; `cpu_decoder`: as of `Synthesizer`."""

    case: str
    text: str
    dtype: torch.dtype
    cpu_decoder: str | None = None

    op = "synthesizer"
    directions = (INFERENCE,)
    composed = True
    small = False

    @property
    def dtype_name(self) -> str:
        return self.cpu_decoder or dtype_name(self.dtype)

    def synthesizer(self) -> Synthesizer:
        return Synthesizer.from_voice(DEFAULT_VOICE, "cpu", self.dtype, cpu_decoder=self.cpu_decoder)

    def supports(self, implementation: str) -> bool:
        return implementation == FASTGLOW or (implementation == EAGER and self.cpu_decoder is None)

    def beside(self) -> "Sequence[BundledVoice]":
        others = [replace(self, dtype=torch.float32)] if self.dtype != torch.float32 else []
        return [*others, replace(self, cpu_decoder="int8")]

    def shapes(self) -> dict[str, list[int]]:
        return {"text": [len(self.text)], "audio": [self.samples(INFERENCE)]}

    def samples(self, direction: str) -> int:
        return len(speech_of(self).audio)

    def audio_seconds(self, direction: str) -> float:
        return speech_of(self).seconds

    def cost(self, direction: str) -> Cost:
        """Not counted: nothing bounds reading, decoding and vocoding alike."""
        return Cost(0, 0)

    def targets(self, direction: str) -> dict[str, float]:
        return {} if self.dtype != fast_dtype() else {"times_real_time": 20}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], Speech]:
        synthesizer = self.synthesizer()
        return lambda: synthesizer.synthesize(self.text, seed=SEED)

    @torch.no_grad()
    def verify(self, implementation: Implementation, direction: str) -> float:
        """The beginning of the mel: rounding errors grow with the frames of a free run."""
        synthesizer = self.synthesizer()
        ids = torch.tensor([synthesizer.frontend.encode(self.text).symbols])
        ours = implementation.name == FASTGLOW
        (sentence,) = (speech_of(self) if ours else synthesizer.synthesize(self.text, seed=SEED)).sentences
        assert sentence.attempts == 1, f"the sentence was decoded {sentence.attempts} times"

        def beginning(mel: Tensor) -> Tensor:
            return mel[:, :CHECKED_FRAMES]

        with Implementation(EAGER).active():
            model = synthesizer.tacotron2
            usual, exact = (
                beginning(of.refine(of.decode(ids, torch.tensor([ids.shape[1]]), seed=SEED, max_steps=[STEPS]))[0])
                for of in (model, copy.deepcopy(model).double())
            )
        return largest_error([beginning(torch.from_numpy(sentence.mel))], [usual], [exact], direction)


@lru_cache
def speech_of(workload: BundledVoice) -> Speech:
    """fastglow's, whichever implementation is timed."""
    with backend.use_backend(backend.AUTOMATIC):
        return workload.synthesizer().synthesize(workload.text, seed=SEED)


@dataclass(frozen=True)
class StartToFile(Workload):
    """`fastglow synth` in a process of its own."""

    op = "command"
    case = "start-to-file"
    dtype = fast_dtype()
    directions = (INFERENCE,)
    composed = True
    small = False

    @property
    def name(self) -> str:
        return self.case

    def supports(self, implementation: str) -> bool:
        return implementation == FASTGLOW

    def shapes(self) -> dict[str, list[int]]:
        return {"text": [len(WORDS)]}

    def cost(self, direction: str) -> Cost:
        """Mostly imports, which have neither."""
        return Cost(0, 0)

    def targets(self, direction: str) -> dict[str, float]:
        return {"milliseconds": 1500}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], np.ndarray]:
        return speak_by_command

    def verify(self, implementation: Implementation, direction: str) -> float:
        """Against the library's samples."""
        expected = Synthesizer.from_voice(DEFAULT_VOICE, "cpu").synthesize(WORDS, seed=SEED).audio
        actual = speak_by_command()
        assert actual.shape == expected.shape, f"the file has {len(actual)} samples, not {len(expected)}"
        difference = np.abs(actual - expected)
        assert difference.max() <= ROUNDING, f"a sample differs by {difference.max():.2g}"
        return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def speak_by_command() -> np.ndarray:
    """The samples of the file, float32 [N]; with as many threads as this process, since the bits depend on them."""
    import soundfile  # a machine that only runs kernels may lack it

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        options = ["-o", str(file), "--device", "cpu", "--seed", str(SEED)]
        command = [sys.executable, "-m", "fastglow", "synth", WORDS, *options]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        subprocess.run(command, cwd=environment.ROOT, env=os.environ | threads, check=True, capture_output=True)
        return soundfile.read(file, dtype="float32")[0]
