"""The measurements of one voice, as the report shows them."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fastglow.audio import MelConfig, MelSpectrogram, read_audio
from fastglow.engine import Speech, Synthesizer
from fastglow.engine.vocoders import Vocoder, WaveGlowVocoder
from fastglow.errors import FastglowError
from fastglow.text import split_sentences
from fastglow.voices import Voice

from . import artefacts, prosody, reading_faults
from .copy_synthesis import Copy, copy, copying, mean_scores, mel_of, teacher_forced, vocode
from .mel_measures import cepstral_distortion, texture
from .recognition import Recogniser, as_pcm
from .sentences import Prompt
from .speaking import speak
from .word_errors import WordErrors, rate_interval, ratio_interval, word_errors

SYNTHESIS, ORIGINALS, COPY = "synthesis", "originals", "copy by {}"
OTHER_SYNTHESIS = "synthesis by {}"
"""By a vocoder that is not the voice's default."""
PREDICTED = "predicted mels"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        prompts: sentences to speak; may be empty.
        recordings: one per prompt, or none.
        hard: sentences whose reading is searched for faults.
        seed: of each sentence's synthesis.
        vocoders: names of those that speak, besides the voice's default, and copy the recordings; none: all of the
            voice's.
        sigmas, denoises: settings of WaveGlow to compare on the recordings, besides; none: its own.
        device: of the models; None: the GPU if there is one.
        say: gets a line when a part is done.
    """

    prompts: Sequence[Prompt]
    recordings: Sequence[Path]
    hard: Sequence[reading_faults.HardSentence]
    seed: int
    vocoders: Sequence[str]
    sigmas: Sequence[float]
    denoises: Sequence[float]
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
        spoken: their log-mels as they sound.
        originals: recordings, float32 [N], at that rate; may be none.
        mels: their log-mels.
        copies: of the originals, by vocoder.
        sounds: those of `artefacts` and their copies, by source.
    """

    rate: int
    speeches: list[Speech] = field(default_factory=list)
    spoken: list[np.ndarray] = field(default_factory=list)
    originals: list[np.ndarray] = field(default_factory=list)
    mels: list[np.ndarray] = field(default_factory=list)
    copies: dict[str, list[Copy]] = field(default_factory=dict)
    sounds: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def evaluate(name: str, voice: Voice, plan: Plan, recogniser: Recogniser | None) -> tuple[dict[str, Any], Audio]:
    """Everything that the plan asks for of one voice, and what to draw of it.

    Args:
        recogniser: None: recordings are copied, nothing is spoken.

    Raises:
        FastglowError: models or recordings that cannot be read or used, or a vocoder that the voice lacks.
    """
    evaluation = _Evaluation(name, voice, plan, recogniser)
    if plan.recordings:
        evaluation.read_recordings()
    speaks = bool(plan.prompts) and recogniser is not None
    if speaks:
        evaluation.speak()
    if plan.recordings:
        evaluation.copy()
        evaluation.look_for_artefacts()
        evaluation.compare_settings()
    if speaks:
        evaluation.count_word_errors()
    if speaks and plan.recordings:
        evaluation.measure_prosody()
    if plan.hard:
        evaluation.read_hard_sentences()
    return evaluation.results, evaluation.audio


class _Evaluation:
    """What is known of a voice so far.

    Attributes:
        copiers: the vocoders that copy, by name.
        speakers: the voice by vocoder, first the default.
        spectrogram: of the voice's mels.
        predicted: mels with the recordings' timing.
        heard: by source.
        results: for the report.
    """

    def __init__(self, name: str, voice: Voice, plan: Plan, recogniser: Recogniser | None):
        self.name, self.plan, self.recogniser = name, plan, recogniser
        self.copiers = list(dict.fromkeys(plan.vocoders or ["griffin-lim", *(["waveglow"] if voice.waveglow else [])]))
        if (plan.sigmas or plan.denoises) and "waveglow" not in self.copiers:
            raise FastglowError(f"{name} has no WaveGlow, or not in --vocoder, to compare --sigma and --denoise of")
        self.speakers = {
            vocoder: Synthesizer.from_voice(voice, plan.device, vocoder=vocoder)
            for vocoder in dict.fromkeys([voice.vocoder, *self.copiers])
        }
        self.synthesizer = self.speakers[voice.vocoder]
        self.spectrogram = MelSpectrogram.from_config(self.synthesizer.audio)
        self.audio = Audio(self.synthesizer.audio.sampling_rate)
        self.predicted: list[np.ndarray] = []
        self.heard: dict[str, Heard] = {}
        self.results: dict[str, Any] = {"voice": name}

    def read_recordings(self) -> None:
        paths, audio = self.plan.recordings, self.audio
        self._hear(ORIGINALS, map(read_audio, paths))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of recordings at another rate
            audio.originals = [read_audio(path, audio.rate)[0] for path in paths]
        audio.mels = [mel_of(original, self.spectrogram) for original in audio.originals]

    def speak(self) -> None:
        self.results["seconds"] = {}
        for vocoder, speaker in self.speakers.items():
            speeches = [speak(speaker, prompt.text, self.plan.seed) for prompt in self.plan.prompts]
            self.results["seconds"][vocoder] = _seconds(speeches)
            is_default = speaker is self.synthesizer
            if is_default:
                self.audio.speeches = speeches
                # A speech without audio has a mel without frames.
                self.audio.spoken = [
                    mel_of(speech.audio, self.spectrogram) if speech.sentences else speech.mel for speech in speeches
                ]
            source = SYNTHESIS if is_default else OTHER_SYNTHESIS.format(vocoder)
            self._hear(source, ((speech.audio, self.audio.rate) for speech in speeches))

    def copy(self) -> None:
        audio, results = self.audio, self.results
        pairs = zip(self.plan.prompts, audio.mels, strict=True)
        self.predicted = [teacher_forced(self.synthesizer, text, mel, self.plan.seed) for (_, text), mel in pairs]
        for vocoder in self.copiers:
            audio.copies[vocoder] = self._copies(audio.mels, copying(self.speakers[vocoder]))
            self._hear(COPY.format(vocoder), ((one.audio, audio.rate) for one in audio.copies[vocoder]))
        results["copies"] = {vocoder: mean_scores(copies) for vocoder, copies in audio.copies.items()}
        results["teacher_forced"] = {
            vocoder: mean_scores(self._copies(self.predicted, self.speakers[vocoder].vocoder))
            for vocoder in self.copiers
        }
        results["mels"] = _mels(audio, self.synthesizer.audio)

    def look_for_artefacts(self) -> None:
        config = self.synthesizer.audio
        sounds = artefacts.sounds(config)
        self.audio.sounds = {"computed": sounds} | {
            vocoder: self._copies_of_sounds(sounds, copying(self.speakers[vocoder])) for vocoder in self.copiers
        }
        self.results["artefacts"] = {
            source: artefacts.measure_all(of, config) for source, of in self.audio.sounds.items()
        }

    def compare_settings(self) -> None:
        """Of WaveGlow, those that the plan names."""
        plan = self.plan
        if not (plan.sigmas or plan.denoises):
            return
        own = self.speakers["waveglow"].vocoder
        assert isinstance(own, WaveGlowVocoder)
        sounds, rows = self.audio.sounds["computed"], []
        for sigma, denoise in product(plan.sigmas or [own.sigma], plan.denoises or [own.denoise]):
            waveglow = WaveGlowVocoder(own.model, sigma, denoise)
            measured = artefacts.measure_all(self._copies_of_sounds(sounds, waveglow), self.synthesizer.audio)
            rows.append(
                {
                    "sigma": sigma,
                    "denoise": denoise,
                    "copies": mean_scores(self._copies(self.audio.mels, waveglow)),
                    "teacher_forced": mean_scores(self._copies(self.predicted, waveglow)),
                    **artefacts.summary(measured),
                }
            )
        self.results["settings"] = rows

    def count_word_errors(self) -> None:
        self.results["word_errors"] = _summary(self.heard)
        self.results["sentences"] = _rows(self.plan.prompts, self.heard, self.synthesizer, self.audio)

    def measure_prosody(self) -> None:
        """Of the acoustic model: any vocoder keeps it. Texts of several sentences have the engine's pauses, too."""
        pairs: dict[str, list[prosody.Utterance]] = {SYNTHESIS: [], ORIGINALS: []}
        audio = self.audio
        for i, (_, text) in enumerate(self.plan.prompts):
            speech = audio.speeches[i]
            if len(speech.sentences) == 1 and len(split_sentences(text)) == 1:
                pairs[SYNTHESIS].append(prosody.Utterance(text, speech.audio, audio.spoken[i]))
                pairs[ORIGINALS].append(prosody.Utterance(text, audio.originals[i], audio.mels[i]))
        self.results["prosody"] = {source: prosody.measure(of, self.spectrogram.config) for source, of in pairs.items()}

    def read_hard_sentences(self) -> None:
        plan = self.plan
        hard = reading_faults.read_hard(self.synthesizer, plan.hard, plan.seed, self.recogniser)
        self.results["hard"] = reading_faults.summarise(hard)
        faulty = self.results["hard"]["faulty"]
        plan.say(
            f"{self.name}: {faulty['first']} of {len(hard)} hard sentences with a fault, {faulty['left']} after retries"
        )

    def _hear(self, source: str, clips: Iterable[tuple[np.ndarray, int]]) -> None:
        prompts, recogniser = self.plan.prompts, self.recogniser
        if recogniser is None:
            return
        # No bar unless it is seen.
        watched = tqdm(clips, source, len(prompts), leave=False, disable=None)
        texts = [recogniser.hear(as_pcm(*clip)) for clip in watched]
        errors = [word_errors(prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)]
        self.heard[source] = Heard(texts, errors)
        self.plan.say(f"{self.name}, {source}: word error {self.heard[source].total.rate:.3f}")

    def _copies(self, mels: Sequence[np.ndarray], vocoder: Vocoder) -> list[Copy]:
        device, seed = self.synthesizer.device, self.plan.seed
        pairs = zip(self.audio.originals, mels, strict=True)
        return [copy(original, mel, self.spectrogram, vocoder, device, seed) for original, mel in pairs]

    def _copies_of_sounds(self, sounds: Mapping[str, np.ndarray], vocoder: Vocoder) -> dict[str, np.ndarray]:
        device, seed = self.synthesizer.device, self.plan.seed
        return {
            name: vocode(mel_of(samples, self.spectrogram), vocoder, device, seed) for name, samples in sounds.items()
        }


def _mels(audio: Audio, config: MelConfig) -> dict[str, dict[str, float]]:
    """By source: how sharp its mels are over the originals', and how far from them.

    The predicted mels; those of the synthesis as it sounds; those of the copies.
    """
    sources = {
        PREDICTED: [speech.mel for speech in audio.speeches],
        SYNTHESIS: audio.spoken,
        **{COPY.format(vocoder): [one.mel for one in copies] for vocoder, copies in audio.copies.items()},
    }
    wanted = texture(audio.mels, config)
    found: dict[str, dict[str, float]] = {}
    for source, mels in sources.items():
        of = texture(mels, config)
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
