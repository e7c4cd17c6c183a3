"""The measurements of one voice, as the report shows them."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fastglow.audio import MelSpectrogram, read_audio
from fastglow.engine import Speech, Synthesizer
from fastglow.voices import Voice

from . import reading_faults
from .copy_synthesis import Copy, copy, mean_scores, mel_of, vocoders_of
from .mel_measures import cepstral_distortion, texture
from .recognition import Recogniser, as_pcm
from .sentences import Prompt
from .speaking import speak
from .word_errors import WordErrors, rate_interval, ratio_interval, word_errors

SYNTHESIS, ORIGINALS, COPY = "synthesis", "originals", "copy by {}"
PREDICTED = "predicted mels"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        prompts: sentences to speak; may be empty.
        recordings: one per prompt, or none.
        hard: sentences whose reading is searched for faults.
        seed: of each sentence's synthesis.
        vocoders: names of those that copy the recordings; none: all of the voice's.
        device: of the models; None: the GPU if there is one.
        say: gets a line when a part is done.
    """

    prompts: Sequence[Prompt]
    recordings: Sequence[Path]
    hard: Sequence[reading_faults.HardSentence]
    seed: int
    vocoders: Sequence[str]
    device: str | None
    say: Callable[[str], None]


class Heard(NamedTuple):
    """What the recogniser heard of each prompt, from one source."""

    texts: list[str]
    errors: list[WordErrors]

    @property
    def total(self) -> WordErrors:
        return sum(self.errors, WordErrors())


@dataclass
class Audio:
    """What the report draws of each prompt.

    Attributes:
        rate: Hz, the voice's.
        speeches: synthesis.
        originals: recordings, float32 [N], at that rate; may be none.
        mels: their log-mels.
        copies: of the originals, by vocoder.
    """

    rate: int
    speeches: list[Speech] = field(default_factory=list)
    originals: list[np.ndarray] = field(default_factory=list)
    mels: list[np.ndarray] = field(default_factory=list)
    copies: dict[str, list[Copy]] = field(default_factory=dict)


def evaluate(name: str, voice: Voice, plan: Plan, recogniser: Recogniser) -> tuple[dict[str, Any], Audio]:
    """Everything that the plan asks for of one voice, and what to draw of it.

    Raises:
        FastglowError: models or recordings that cannot be read or used, or a vocoder that the voice lacks.
    """
    synthesizer = Synthesizer.from_voice(voice, plan.device)
    vocoders = vocoders_of(voice, plan.vocoders, plan.device) if plan.recordings else {}
    spectrogram = MelSpectrogram.from_config(synthesizer.audio)
    rate = synthesizer.audio.sampling_rate
    audio = Audio(rate)
    heard: dict[str, Heard] = {}
    results: dict[str, Any] = {"voice": name}

    def hear(source: str, clips: Iterable[tuple[np.ndarray, int]]) -> None:
        # No bar unless it is seen.
        watched = tqdm(clips, source, len(plan.prompts), leave=False, disable=None)
        texts = [recogniser.hear(as_pcm(*clip)) for clip in watched]
        errors = [word_errors(prompt.text, text) for prompt, text in zip(plan.prompts, texts, strict=True)]
        heard[source] = Heard(texts, errors)
        plan.say(f"{name}, {source}: word error {heard[source].total.rate:.3f}")

    if plan.recordings:
        hear(ORIGINALS, map(read_audio, plan.recordings))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of recordings at another rate
            audio.originals = [read_audio(path, rate)[0] for path in plan.recordings]
        audio.mels = [mel_of(original, spectrogram) for original in audio.originals]
    if plan.prompts:
        audio.speeches = [speak(synthesizer, prompt.text, plan.seed) for prompt in plan.prompts]
        results["seconds"] = _seconds(audio.speeches)
        hear(SYNTHESIS, ((speech.audio, rate) for speech in audio.speeches))
    for vocoder, makes in vocoders.items():
        copies = [copy(original, spectrogram, makes, synthesizer.device, plan.seed) for original in audio.originals]
        audio.copies[vocoder] = copies
        hear(COPY.format(vocoder), ((one.audio, rate) for one in copies))
    if audio.copies:
        results["copies"] = {vocoder: mean_scores(copies) for vocoder, copies in audio.copies.items()}
        results["mels"] = _mels(audio, spectrogram)
    if plan.prompts:
        results["word_errors"] = _summary(heard)
        results["sentences"] = _rows(plan.prompts, heard, synthesizer, audio)
    if plan.hard:
        hard = reading_faults.read_hard(synthesizer, plan.hard, plan.seed, recogniser)
        results["hard"] = reading_faults.summarise(hard)
        faulty = results["hard"]["faulty"]
        plan.say(
            f"{name}: {faulty['first']} of {len(hard)} hard sentences with a fault, {faulty['left']} after retries"
        )
    return results, audio


def _mels(audio: Audio, spectrogram: MelSpectrogram) -> dict[str, dict[str, float]]:
    """By source: how sharp its mels are over the originals', and how far from them.

    The predicted mels; those of the synthesis as it sounds; those of the copies.
    """
    sources = {
        PREDICTED: [speech.mel for speech in audio.speeches],
        # A speech without audio has a mel without frames.
        SYNTHESIS: [mel_of(speech.audio, spectrogram) if speech.sentences else speech.mel for speech in audio.speeches],
        **{COPY.format(vocoder): [one.mel for one in copies] for vocoder, copies in audio.copies.items()},
    }
    wanted = texture(audio.mels, spectrogram.config)
    found: dict[str, dict[str, float]] = {}
    for source, mels in sources.items():
        of = texture(mels, spectrogram.config)
        if of is None or wanted is None:
            continue
        pairs = [(mel, original) for mel, original in zip(mels, audio.mels, strict=True) if mel.shape[1]]
        distortion = float(np.mean([cepstral_distortion(*pair) for pair in pairs]))
        found[source] = {**of.over(wanted), "cepstral_distortion": distortion}
    return found


def _seconds(speeches: Sequence[Speech]) -> dict[str, float]:
    """Seconds of computation per second of speech, medians over the prompts, without the first: it warms up."""
    timed = [speech for speech in speeches if speech.seconds] or list(speeches)
    timed = timed[1:] or timed
    return {
        part: float(np.median([speech.timings[part] / max(speech.seconds, 1e-9) for speech in timed]))
        for part in ("acoustic", "vocoder", "total")
    }


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
    prompts: Sequence[Prompt], heard: Mapping[str, Heard], synthesizer: Synthesizer, audio: Audio
) -> list[dict[str, Any]]:
    """A row per prompt: what was heard from each source, the faults of its reading, and the scores of its copies."""
    return [
        {
            **prompt._asdict(),
            "words": heard[SYNTHESIS].errors[i].words,
            "heard": {source: of.texts[i] for source, of in heard.items()},
            "edits": {source: of.errors[i].edits for source, of in heard.items()},
            "first": reading_faults.first_faults(synthesizer, prompt.text, audio.speeches[i]),
            "left": reading_faults.faults_left(audio.speeches[i]),
            "copies": {vocoder: copies[i].scores for vocoder, copies in audio.copies.items()},
        }
        for i, prompt in enumerate(prompts)
    ]
