"""The measurements of one voice, as the report shows them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastglow.audio import read_audio
from fastglow.engine import Speech, Synthesizer
from fastglow.voices import Voice

from . import reading_faults
from .recognition import Recogniser, as_pcm
from .sentences import Prompt
from .speaking import speak
from .word_errors import WordErrors, rate_interval, ratio_interval, word_errors

SYNTHESIS, ORIGINALS = "synthesis", "originals"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        prompts: sentences to speak; may be empty.
        recordings: one per prompt, or none.
        hard: sentences whose reading is searched for faults.
        seed: of each sentence's synthesis.
        device: of the models; None: the GPU if there is one.
        say: gets a line when a part is done.
    """

    prompts: Sequence[Prompt]
    recordings: Sequence[Path]
    hard: Sequence[reading_faults.HardSentence]
    seed: int
    device: str | None
    say: Callable[[str], None]


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


def evaluate(name: str, voice: Voice, plan: Plan, recogniser: Recogniser) -> dict[str, Any]:
    """Everything that the plan asks for of one voice.

    Raises:
        FastglowError: models or recordings that cannot be read or used.
    """
    synthesizer = Synthesizer.from_voice(voice, plan.device)
    results: dict[str, Any] = {"voice": name}
    if plan.prompts:
        heard: dict[str, Heard] = {}
        if plan.recordings:
            heard[ORIGINALS] = _hear_recordings(plan.recordings, plan.prompts, recogniser)
            plan.say(f"{ORIGINALS}: word error {heard[ORIGINALS].total.rate:.3f}")
        heard[SYNTHESIS] = Heard()
        speeches = []
        for prompt in plan.prompts:
            speeches.append(speak(synthesizer, prompt.text, plan.seed))
            heard[SYNTHESIS].add(recogniser, prompt, speeches[-1].audio, speeches[-1].sample_rate)
        plan.say(f"{name}: word error {heard[SYNTHESIS].total.rate:.3f}")
        results["word_errors"] = _summary(heard)
        results["sentences"] = _rows(plan.prompts, heard, synthesizer, speeches)
    if plan.hard:
        hard = reading_faults.read_hard(synthesizer, plan.hard, plan.seed, recogniser)
        results["hard"] = reading_faults.summarise(hard)
        faulty = results["hard"]["faulty"]
        plan.say(
            f"{name}: {faulty['first']} of {len(hard)} hard sentences with a fault, {faulty['left']} after retries"
        )
    return results


def _hear_recordings(paths: Sequence[Path], prompts: Sequence[Prompt], recogniser: Recogniser) -> Heard:
    heard = Heard()
    for path, prompt in zip(paths, prompts, strict=True):
        heard.add(recogniser, prompt, *read_audio(path))
    return heard


def _summary(heard: Mapping[str, Heard]) -> dict[str, Any]:
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


def _rows(
    prompts: Sequence[Prompt], heard: Mapping[str, Heard], synthesizer: Synthesizer, speeches: Sequence[Speech]
) -> list[dict[str, Any]]:
    """A row per prompt: what was heard from each source, and the faults of its reading."""
    return [
        {
            **prompt._asdict(),
            "words": heard[SYNTHESIS].errors[i].words,
            "heard": {source: of.texts[i] for source, of in heard.items()},
            "edits": {source: of.errors[i].edits for source, of in heard.items()},
            "first": reading_faults.first_faults(synthesizer, prompt.text, speech),
            "left": reading_faults.faults_left(speech),
        }
        for i, (prompt, speech) in enumerate(zip(prompts, speeches, strict=True))
    ]
