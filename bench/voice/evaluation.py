"""The measurements of one voice, as the report shows them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastglow.audio import read_audio
from fastglow.engine import Speech, Synthesizer

from .recognition import Recogniser, as_pcm
from .sentences import Prompt
from .speaking import speak
from .word_errors import WordErrors, rate_interval, ratio_interval, word_errors

SYNTHESIS, ORIGINALS = "synthesis", "originals"


@dataclass
class Heard:
    """What the recogniser heard of each prompt, from one source."""

    texts: list[str] = field(default_factory=list)
    errors: list[WordErrors] = field(default_factory=list)

    def add(self, recogniser: Recogniser, prompt: Prompt, audio: np.ndarray, rate: int) -> None:
        self.texts.append(recogniser.hear(as_pcm(audio, rate)))
        self.errors.append(word_errors(prompt.text, self.texts[-1]))

    @property
    def total(self) -> WordErrors:
        return sum(self.errors, WordErrors())


def hear_voice(
    synthesizer: Synthesizer,
    prompts: Sequence[Prompt],
    seed: int,
    recogniser: Recogniser,
    keep: Callable[[Speech], None],
) -> Heard:
    """Synthesis of the prompts, each with the same seed; `keep` gets the speech."""
    heard = Heard()
    for prompt in prompts:
        speech = speak(synthesizer, prompt.text, seed)
        heard.add(recogniser, prompt, speech.audio, speech.sample_rate)
        keep(speech)
    return heard


def hear_recordings(paths: Sequence[Path], prompts: Sequence[Prompt], recogniser: Recogniser) -> Heard:
    heard = Heard()
    for path, prompt in zip(paths, prompts, strict=True):
        heard.add(recogniser, prompt, *read_audio(path))
    return heard


def summarise(heard: Mapping[str, Heard]) -> dict[str, Any]:
    """Word errors by source, with intervals; beside the originals, the ratio of the rates."""
    originals = heard.get(ORIGINALS)
    found: dict[str, Any] = {}
    for source, of in heard.items():
        interval = rate_interval(of.errors)
        found[source] = {**of.total.as_dict(), "interval": [interval.low, interval.high]}
        if originals is not None and of is not originals:
            ratio = ratio_interval(of.errors, originals.errors)
            found[source] |= {"ratio": ratio.value, "ratio_interval": [ratio.low, ratio.high]}
    return found


def rows(prompts: Sequence[Prompt], heard: Mapping[str, Heard]) -> list[dict[str, Any]]:
    """A row per prompt: what was heard from each source."""
    return [
        {
            "id": prompt.id,
            "text": prompt.text,
            "words": next(iter(heard.values())).errors[i].words,
            "heard": {source: of.texts[i] for source, of in heard.items()},
            "edits": {source: of.errors[i].edits for source, of in heard.items()},
        }
        for i, prompt in enumerate(prompts)
    ]
