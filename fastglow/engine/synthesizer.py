"""The whole way from text to audio."""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fastglow.audio import MelConfig
from fastglow.audio.fade import fade
from fastglow.audio.loudness import check_volume, set_level
from fastglow.checkpoint import load_checkpoint
from fastglow.devices import pick_device
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2, WaveGlow
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.text import Lexicon, split_sentences
from fastglow.voices import AS_TRAINED, VOCODERS, AsTrained, Voice

from .attempts import Utterance, utter
from .frontend import Frontend
from .jobs import Job, jobs_of, parts_of
from .reading import Fault
from .seeds import random_seed
from .speech import Sentence, Speech, silence_of
from .training_facts import settle, with_parts
from .vocoders import GriffinLimVocoder, Vocoder, WaveGlowVocoder

DEFAULT_SIGMA = 0.6
# Texts decoded together by synthesize_batch: enough to share the reading of the weights.
BATCH_SIZE = 8
# Seconds: where sentences join, and where speech that ran on was cut.
JOIN_FADE, CUT_FADE = 0.005, 0.03


class SilentTextWarning(UserWarning):
    """A text, or a sentence of it, gave no audio."""


class FaultySpeechWarning(UserWarning):
    """Every attempt at a sentence went wrong; the best of them is what there is."""


_WHAT_IS_WRONG = {
    Fault.RUNS_ON: "goes on past its end",
    Fault.REPEATS: "says a part of the text again",
    Fault.SKIPS: "leaves out a part of the text",
    Fault.BREAKS_OFF: "breaks off before the end of the text",
}


class Synthesizer:
    """Acoustic model, vocoder and text front end of one voice.

    Args:
        tacotron2: acoustic model.
        vocoder: 'griffin-lim' or 'waveglow'.
        waveglow: needed by the vocoder of that name.
        audio: parameters of the mel; default: those that the models' checkpoints tell, or else those of the
            published ones.
        text_cleaners: default: those that the acoustic model's checkpoint tells, or else english_cleaners.
        lexicon: pronunciations, for an acoustic model that was trained on ARPAbet: a file in CMUdict's format, or a
            `fastglow.text.Lexicon`; None: none; default: the one that the acoustic model's checkpoint tells, if any.
        sigma: standard deviation of WaveGlow's noise.
        denoise: strength of WaveGlow's denoiser; 0: off.
        device: default: the GPU if there is one.
        dtype: of the weights; default float32.

    Raises:
        FastglowError: models that do not fit each other, the vocoder, the lexicon or the device; a bad lexicon.
    """

    def __init__(
        self,
        tacotron2: Tacotron2,
        vocoder: str,
        waveglow: WaveGlow | None = None,
        *,
        audio: MelConfig | None = None,
        text_cleaners: Sequence[str] | None = None,
        lexicon: str | PathLike | Lexicon | AsTrained | None = AS_TRAINED,
        sigma: float = DEFAULT_SIGMA,
        denoise: float = 0.0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.device = pick_device(device)
        facts = settle(tacotron2, waveglow if vocoder == "waveglow" else None, audio, text_cleaners, lexicon)
        self.audio = facts.audio
        self.frontend = Frontend(facts.text_cleaners, tacotron2.config.n_symbols, facts.lexicon, facts.symbols)
        self.tacotron2 = tacotron2.to(self.device, dtype).eval()
        _check_mel_channels(tacotron2, self.audio)
        self.vocoder = self._build_vocoder(vocoder, waveglow, sigma, denoise, dtype)

    @classmethod
    def from_voice(
        cls,
        name: str | Path | Voice,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> "Synthesizer":
        """A bundled voice by name, any by folder, or a `Voice`.

        Args:
            name: which.
            device, dtype: as above.
            overrides: fields of `Voice` to have otherwise: vocoder, sigma, denoise, text_cleaners, lexicon, ...;
                another tacotron2 brings the audio parameters, cleaners and lexicon that its checkpoint tells.

        Raises:
            FastglowError: unknown voice, unreadable files, absent device, or a vocoder that the voice lacks.
        """
        voice = with_parts(name if isinstance(name, Voice) else Voice.load(name), **overrides)
        if voice.vocoder == "waveglow" and voice.waveglow is None:
            raise FastglowError("the vocoder waveglow needs a WaveGlow checkpoint: pass one, or use griffin-lim")
        return cls(
            load_checkpoint(voice.tacotron2, expect="tacotron2"),
            voice.vocoder,
            load_checkpoint(voice.waveglow, expect="waveglow") if voice.vocoder == "waveglow" else None,
            audio=voice.audio,
            text_cleaners=voice.text_cleaners,
            lexicon=voice.lexicon,
            sigma=voice.sigma,
            denoise=voice.denoise,
            device=device,
            dtype=dtype,
        )

    def synthesize(
        self,
        text: str,
        seed: int | None = None,
        *,
        sentence_silence: float = 0.2,
        normalize: bool = True,
        volume: float = 1.0,
        progress: bool = False,
    ) -> Speech:
        """Speaks a text of any length, sentence by sentence.

        A sentence whose speech goes wrong (runs on, repeats, leaves out or breaks off, as its attention and the stop
        gate tell) is tried again with seeds derived from this one; `Sentence` says what came of it. A sentence that
        is too long to be read at once, or for max_decoder_steps, is spoken in parts, as several. Where sentences
        join, their audio fades in and out within 5 ms.

        Args:
            text: anything; what cannot be spoken is left out with a warning.
            seed: same seed, same audio; None: a random one, found in the result.
            sentence_silence: seconds between sentences.
            normalize: bring every sentence to one loudness, -18 dBFS: see `fastglow.audio.loudness.set_level`.
            volume: factor on top; where a sentence's peak would pass full scale, it is scaled to peak there.
            progress: show a progress bar on standard error if there is more than one sentence.

        Raises:
            FastglowError: negative or not finite sentence_silence or volume, seed out of range.

        Warns:
            SilentTextWarning: nothing to speak, or the model had nothing to say.
            FaultySpeechWarning: a sentence went wrong in every attempt; said is what is left wrong with it.
            DecoderStepLimitWarning: the speech of a sentence ran into max_decoder_steps, and may lack its end.
        """
        seed = random_seed() if seed is None else seed
        speech = self._new_speech(seed, sentence_silence)
        sentences = self.sentences(
            text, seed, normalize=normalize, volume=volume, timings=speech.timings, progress=progress
        )
        speech.sentences.extend(sentences)
        return speech

    def synthesize_batch(
        self,
        texts: Sequence[str],
        seed: int | None = None,
        *,
        sentence_silence: float = 0.2,
        normalize: bool = True,
        volume: float = 1.0,
    ) -> list[Speech]:
        """Speaks several texts, their sentences decoded together.

        For each the computation is that of `synthesize` with this seed, further attempts included, and in float64 so
        is the result. In float32 larger matrix products are rounded otherwise, and the decoder feeds its rounding
        back to itself: the speech is as good, but it drifts from that of `synthesize`, and how far is not bounded.
        With the bundled voice a sentence's largest difference is 0.0005 of full scale at the median, and a few
        hundredths at times; seldom one takes a step more or less. For the same bits, call `synthesize` for each text.

        The results come in the order of the texts; their timings are those of the whole batch.
        """
        seed = random_seed() if seed is None else seed
        check_volume(volume)
        jobs = [(i, job) for i, text in enumerate(texts) for job in self._jobs(text, seed)]
        speeches = [self._new_speech(seed, sentence_silence) for _ in texts]
        # Alike lengths together: a batch takes as many steps as its longest item.
        by_length = sorted(range(len(jobs)), key=lambda j: len(jobs[j][1].symbols))
        done: dict[int, list[Sentence]] = {}
        timings: dict[str, float] = {}
        for start in range(0, len(jobs), BATCH_SIZE):
            members = by_length[start : start + BATCH_SIZE]
            sentences = self._run([jobs[j][1] for j in members], normalize, volume, timings)
            done.update(zip(members, sentences, strict=True))
        for j, (i, _) in enumerate(jobs):
            speeches[i].sentences.extend(done[j])
        for speech in speeches:
            speech.timings.update(timings)
        return speeches

    def stream(
        self,
        text: str,
        seed: int | None = None,
        *,
        sentence_silence: float = 0.2,
        normalize: bool = True,
        volume: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Speaks a text and hands out float32 audio [n] as soon as a sentence is done.

        The chunks joined are the audio that `synthesize` gives with the same arguments.
        """
        seed = random_seed() if seed is None else seed
        silence = silence_of(sentence_silence, self.audio.sampling_rate)
        for i, sentence in enumerate(self.sentences(text, seed, normalize=normalize, volume=volume)):
            yield np.concatenate((silence, sentence.audio)) if i else sentence.audio

    def sentences(
        self,
        text: str,
        seed: int,
        *,
        normalize: bool = True,
        volume: float = 1.0,
        timings: dict[str, float] | None = None,
        progress: bool = False,
    ) -> Iterator[Sentence]:
        """Speaks a text sentence by sentence; adds the seconds it takes to `timings`, if given."""
        check_volume(volume)
        timings = {} if timings is None else timings
        jobs = self._jobs(text, seed)
        for job in tqdm(jobs, unit="sentence", leave=False, disable=not progress or len(jobs) < 2):
            for sentences in self._run([job], normalize, volume, timings):
                yield from sentences

    def _jobs(self, text: str, seed: int) -> list[Job]:
        jobs = jobs_of(split_sentences(text), seed, self.frontend)
        if not jobs:
            warnings.warn(f"nothing to speak in {_shorten(text)!r}", SilentTextWarning, stacklevel=3)
        return jobs

    def _run(self, jobs: list[Job], normalize: bool, volume: float, timings: dict[str, float]) -> list[list[Sentence]]:
        """Of each job the sentence, none if it has no audio, or those of its parts."""
        started = time.perf_counter()
        utterances = utter(self.tacotron2, jobs, self.audio.hop_length / self.audio.sampling_rate)
        acoustic_done = time.perf_counter()
        sentences, too_long = [], []
        for job, said in zip(jobs, utterances, strict=True):
            parts = parts_of(job, self.frontend) if said.fault is Fault.TOO_LONG else []
            if parts:
                too_long.append((len(sentences), parts))
                sentences.append([])
            else:
                sentences.append(self._finished(job, said, normalize, volume))
        finished = time.perf_counter()
        for name, seconds in (
            ("acoustic", acoustic_done - started),
            ("vocoder", finished - acoustic_done),
            ("total", finished - started),
        ):
            timings[name] = timings.get(name, 0.0) + seconds
        for place, parts in too_long:
            done = self._run(parts, normalize, volume, timings)
            sentences[place] = [sentence for part in done for sentence in part]
        return sentences

    def _finished(self, job: Job, said: Utterance, normalize: bool, volume: float) -> list[Sentence]:
        """With its audio, at its level, with its fades; none if there is no audio."""
        self._warn_of_faults(job, said)
        if not said.mel.shape[1]:
            return []
        rate = self.audio.sampling_rate
        # The level is that of the sentence without its fades.
        audio = set_level(self.vocoder(said.mel, job.seed).float().cpu().numpy(), rate, normalize, volume)
        join = round(JOIN_FADE * rate)
        audio = fade(audio, join * job.follows, round(CUT_FADE * rate) if said.cut else join * job.is_followed)
        mel = said.mel.float().cpu().numpy()
        return [Sentence(job.text, mel, said.alignment, audio, said.stopped, said.attempts, said.cut)]

    def _warn_of_faults(self, job: Job, said: Utterance) -> None:
        # Past this, _finished, _run and what calls it.
        text, stacklevel = repr(_shorten(job.text)), 6
        if not said.mel.shape[1]:
            warnings.warn(f"the model had nothing to say to {text}", SilentTextWarning, stacklevel)
        elif said.fault >= Fault.UNFINISHED:
            warnings.warn(
                f"the stop gate did not fire within max_decoder_steps {self.tacotron2.config.max_decoder_steps} and "
                f"cut the speech of {text}: split it, or try another seed",
                DecoderStepLimitWarning,
                stacklevel,
            )
        elif said.fault:
            outcome = ", and was cut there" if said.fault is Fault.RUNS_ON else ": try another seed, or split it"
            warnings.warn(
                f"the speech of {text} {_WHAT_IS_WRONG[said.fault]} in each of {said.attempts} attempts{outcome}",
                FaultySpeechWarning,
                stacklevel,
            )

    def _new_speech(self, seed: int, sentence_silence: float) -> Speech:
        silence_of(sentence_silence, self.audio.sampling_rate)
        timings = dict.fromkeys(("acoustic", "vocoder", "total"), 0.0)
        return Speech([], self.audio.sampling_rate, seed, sentence_silence, self.audio.n_mel_channels, timings)

    def _build_vocoder(
        self, name: str, waveglow: WaveGlow | None, sigma: float, denoise: float, dtype: torch.dtype | None
    ) -> Vocoder:
        if name not in VOCODERS:
            raise FastglowError(f"unknown vocoder {name!r}: use one of {', '.join(VOCODERS)}")
        if name == "griffin-lim":
            return GriffinLimVocoder(self.audio)
        if waveglow is None:
            raise FastglowError("the vocoder waveglow needs a WaveGlow checkpoint: pass one, or use griffin-lim")
        if not 0 <= sigma < math.inf or not 0 <= denoise < math.inf:
            raise FastglowError(f"sigma {sigma} and denoise {denoise} must be finite and must not be negative")
        _check_mel_channels(waveglow, self.audio)
        if waveglow.config.upsample_stride != self.audio.hop_length:
            raise FastglowError(
                f"this WaveGlow makes {waveglow.config.upsample_stride} samples a frame, the voice's frames are "
                f"{self.audio.hop_length} samples apart: use a WaveGlow that was trained on such mels"
            )
        return WaveGlowVocoder(waveglow.to(self.device, dtype).eval(), sigma, denoise)


def _check_mel_channels(model: Tacotron2 | WaveGlow, audio: MelConfig) -> None:
    if model.config.n_mel_channels != audio.n_mel_channels:
        raise FastglowError(
            f"the {type(model).__name__} has {model.config.n_mel_channels} mel channels, "
            f"the voice {audio.n_mel_channels}: use models that belong together"
        )


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
