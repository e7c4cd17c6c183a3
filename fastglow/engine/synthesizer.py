"""Text to audio, with a voice's models."""

import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

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
from fastglow.voices import AS_TRAINED, AsTrained, Voice

from .attempts import Utterance, decode_utterances
from .frontend import Frontend
from .jobs import Job, make_jobs, split_job
from .reading import Fault
from .seeds import random_seed
from .settings import check_mel_channels, resolve_settings, with_parts
from .speech import Sentence, Speech, silence_of
from .vocoders import build_vocoder

DEFAULT_SIGMA = 0.6
# Texts that synthesize_batch decodes together: enough to amortise reading the weights.
BATCH_SIZE = 8
# Lengths of the fades in seconds: where sentences join, and where a sentence that runs on is cut.
JOIN_FADE, CUT_FADE = 0.005, 0.03


class SilentTextWarning(UserWarning):
    """A text, or one of its sentences, gave no audio."""


class FaultySpeechWarning(UserWarning):
    """Every attempt at a sentence had a fault; the best one is used."""


_FAULTS = {
    Fault.RUNS_ON: "goes on past its end",
    Fault.REPEATS: "repeats a part of the text",
    Fault.SKIPS: "skips a part of the text",
    Fault.BREAKS_OFF: "breaks off before the end of the text",
}


class _Seconds(NamedTuple):
    """Time spent; the entries of `Speech.timings`."""

    acoustic: float = 0.0
    vocoder: float = 0.0
    total: float = 0.0

    def plus(self, other: "_Seconds") -> "_Seconds":
        return _Seconds(*(a + b for a, b in zip(self, other, strict=True)))


class _Spoken(NamedTuple):
    sentences: list[list[Sentence]]  # of each job: one, none if it has no audio, or several parts
    seconds: _Seconds


class Synthesizer:
    """Acoustic model, vocoder and text front end of one voice.

    Args:
        tacotron2: acoustic model; its device and dtype change.
        vocoder: 'griffin-lim' or 'waveglow'.
        waveglow: for the vocoder of that name; its device and dtype change.
        audio: parameters of the mel; default: those that the models' checkpoints record, else those of the
            published models.
        text_cleaners: default: those that the acoustic model's checkpoint records, else english_cleaners.
        lexicon: pronunciations, for an acoustic model that was trained on ARPAbet: a file in CMUdict's format or a
            `fastglow.text.Lexicon`; None: none; default: the one that the acoustic model's checkpoint records, if any.
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
        used = waveglow if vocoder == "waveglow" else None
        settings = resolve_settings(tacotron2, used, audio, text_cleaners, lexicon)
        self.audio = settings.audio
        self.frontend = Frontend(settings.text_cleaners, tacotron2.config.n_symbols, settings.lexicon, settings.symbols)
        self.tacotron2 = tacotron2.to(self.device, dtype).eval()
        check_mel_channels(tacotron2, self.audio)
        moved = used if used is None else used.to(self.device, dtype).eval()
        self.vocoder = build_vocoder(vocoder, self.audio, moved, sigma, denoise)

    @classmethod
    def from_voice(
        cls,
        name: str | Path | Voice,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> "Synthesizer":
        """Loads a voice.

        Args:
            name: of a bundled voice, a voice's folder, or a `Voice`.
            device, dtype: as for the constructor.
            overrides: other values for fields of `Voice`: vocoder, sigma, denoise, text_cleaners, lexicon, ...;
                another tacotron2 brings the audio parameters, cleaners and lexicon that its checkpoint records.

        Raises:
            FastglowError: unknown voice, unreadable files, absent device, or a vocoder that the voice lacks.
        """
        voice = with_parts(name if isinstance(name, Voice) else Voice.load(name), **overrides)
        waveglow = None
        if voice.vocoder == "waveglow":
            if voice.waveglow is None:
                raise FastglowError("the vocoder waveglow needs a WaveGlow checkpoint: pass one, or use griffin-lim")
            waveglow = load_checkpoint(voice.waveglow, expect="waveglow")
        return cls(
            load_checkpoint(voice.tacotron2, expect="tacotron2"),
            voice.vocoder,
            waveglow,
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

        A sentence whose speech has a fault (it runs on, repeats, skips or breaks off, as its attention and the stop
        gate show) is decoded again with seeds derived from this one; `Sentence` records the outcome. A sentence that
        is too long to read at once, or for max_decoder_steps, is spoken in parts, which count as sentences. Where
        sentences join, their audio fades in and out within 5 ms.

        Args:
            text: anything; what cannot be spoken is left out with a warning.
            seed: the same seed gives the same audio; None: a random one, recorded in the result.
            sentence_silence: seconds between sentences.
            normalize: bring every sentence to -18 dBFS: see `fastglow.audio.loudness.set_level`.
            volume: factor applied after that; a sentence whose peak would exceed full scale is scaled to peak there.
            progress: show a progress bar on standard error if there is more than one sentence.

        Raises:
            FastglowError: sentence_silence or volume negative or not finite, seed out of range.

        Warns:
            SilentTextWarning: nothing to speak, or the model produced nothing.
            FaultySpeechWarning: every attempt at a sentence had a fault; the warning names the remaining one.
            DecoderStepLimitWarning: a sentence reached max_decoder_steps; its end may be missing.
        """
        seed = random_seed() if seed is None else seed
        speech = self._new_speech(seed, sentence_silence)
        seconds = _Seconds()
        for spoken in self._spoken(text, seed, normalize, volume, progress):
            speech.sentences.extend(chain.from_iterable(spoken.sentences))
            seconds = seconds.plus(spoken.seconds)
        speech.timings.update(seconds._asdict())
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
        """Speaks several texts; their sentences are decoded in batches.

        Each text gets the computation of `synthesize` with this seed, further attempts included, and in float64 the
        same result. In float32, larger matrix products round differently, and the decoder feeds its rounding back to
        itself: the speech is as good, but it drifts from the result of `synthesize` by an amount that is not bounded.
        With the bundled voice the median over 20 texts of the largest difference was 0.002 of full scale; in the worst
        it was 0.5, where the waveforms no longer coincide. A sentence may take a step more or less. For the same
        bits, call `synthesize` for each text.

        The results are in the order of the texts; their timings are those of the whole call.
        """
        seed = random_seed() if seed is None else seed
        check_volume(volume)
        jobs = [(i, job) for i, text in enumerate(texts) for job in self._jobs(text, seed)]
        speeches = [self._new_speech(seed, sentence_silence) for _ in texts]
        # Sorted by length: a batch takes as many steps as its longest item.
        by_length = sorted(range(len(jobs)), key=lambda j: len(jobs[j][1].symbols))
        done: dict[int, list[Sentence]] = {}
        seconds = _Seconds()
        for start in range(0, len(jobs), BATCH_SIZE):
            members = by_length[start : start + BATCH_SIZE]
            spoken = self._speak([jobs[j][1] for j in members], normalize, volume)
            done.update(zip(members, spoken.sentences, strict=True))
            seconds = seconds.plus(spoken.seconds)
        for j, (i, _) in enumerate(jobs):
            speeches[i].sentences.extend(done[j])
        for speech in speeches:
            speech.timings.update(seconds._asdict())
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
        """Speaks a text and yields float32 audio [n] as soon as a sentence is done.

        The concatenated chunks are the audio that `synthesize` returns for the same arguments.
        """
        seed = random_seed() if seed is None else seed
        silence = silence_of(sentence_silence, self.audio.sampling_rate)
        first = True
        for spoken in self._spoken(text, seed, normalize, volume, progress=False):
            for sentence in chain.from_iterable(spoken.sentences):
                yield sentence.audio if first else np.concatenate((silence, sentence.audio))
                first = False

    def sentences(
        self, text: str, seed: int, *, normalize: bool = True, volume: float = 1.0, progress: bool = False
    ) -> Iterator[Sentence]:
        """Speaks a text and yields each sentence as soon as it is done; arguments as for `synthesize`."""
        for spoken in self._spoken(text, seed, normalize, volume, progress):
            yield from chain.from_iterable(spoken.sentences)

    def _spoken(self, text: str, seed: int, normalize: bool, volume: float, progress: bool) -> Iterator[_Spoken]:
        """A text's sentences one by one."""
        check_volume(volume)
        jobs = self._jobs(text, seed)
        for job in tqdm(jobs, unit="sentence", leave=False, disable=not progress or len(jobs) < 2):
            yield self._speak([job], normalize, volume)

    def _jobs(self, text: str, seed: int) -> list[Job]:
        jobs = make_jobs(split_sentences(text), seed, self.frontend)
        if not jobs:
            warnings.warn(f"nothing to speak in {_shorten(text)!r}", SilentTextWarning, stacklevel=3)
        return jobs

    def _speak(self, jobs: list[Job], normalize: bool, volume: float) -> _Spoken:
        """Decodes and vocodes the jobs as one batch."""
        started = time.perf_counter()
        utterances = decode_utterances(self.tacotron2, jobs, self.audio.hop_length / self.audio.sampling_rate)
        decoded = time.perf_counter()
        splits = {
            i: parts
            for i, utterance in enumerate(utterances)
            if utterance.fault is Fault.TOO_LONG and (parts := split_job(jobs[i], self.frontend))
        }
        whole = [i for i in range(len(jobs)) if i not in splits]
        for i in whole:
            self._warn_of_faults(jobs[i], utterances[i])
        audible = [i for i in whole if utterances[i].mel.shape[1]]
        audio = self._vocode([utterances[i] for i in audible], [jobs[i].seed for i in audible])
        sentences: list[list[Sentence]] = [[] for _ in jobs]
        for i, samples in zip(audible, audio, strict=True):
            sentences[i].append(self._finished(jobs[i], utterances[i], samples, normalize, volume))
        finished = time.perf_counter()
        seconds = _Seconds(decoded - started, finished - decoded, finished - started)
        for i, parts in splits.items():
            spoken = self._speak(parts, normalize, volume)
            sentences[i].extend(chain.from_iterable(spoken.sentences))
            seconds = seconds.plus(spoken.seconds)
        return _Spoken(sentences, seconds)

    def _vocode(self, utterances: list[Utterance], seeds: list[int]) -> list[np.ndarray]:
        """The audio of utterances of at least one frame each."""
        if not utterances:
            return []
        lengths = [utterance.mel.shape[1] for utterance in utterances]
        first = utterances[0].mel
        mels = first.new_zeros(len(utterances), len(first), max(lengths))
        for mel, utterance, length in zip(mels, utterances, lengths, strict=True):
            mel[:, :length] = utterance.mel
        return self.vocoder.vocode(mels, lengths, seeds)

    def _finished(self, job: Job, utterance: Utterance, audio: np.ndarray, normalize: bool, volume: float) -> Sentence:
        """Sets the level, which is measured without the fades, and fades."""
        rate = self.audio.sampling_rate
        join = round(JOIN_FADE * rate)
        audio = fade(
            set_level(audio, rate, normalize, volume),
            join * job.follows,
            round(CUT_FADE * rate) if utterance.cut else join * job.is_followed,
        )
        mel = utterance.mel.float().cpu().numpy()
        return Sentence(job.text, mel, utterance.alignment, audio, utterance.stopped, utterance.readings, utterance.cut)

    def _warn_of_faults(self, job: Job, utterance: Utterance) -> None:
        # Points past _speak, _spoken and the public method.
        text, stacklevel = repr(_shorten(job.text)), 5
        if not utterance.mel.shape[1]:
            warnings.warn(f"the model produced no frames for {text}", SilentTextWarning, stacklevel)
        elif utterance.fault >= Fault.UNFINISHED:
            warnings.warn(
                f"the stop gate did not fire within max_decoder_steps={self.tacotron2.config.max_decoder_steps}, "
                f"which cut the speech of {text}: split it, or try another seed",
                DecoderStepLimitWarning,
                stacklevel,
            )
        elif utterance.fault:
            outcome = "; it was cut there" if utterance.fault is Fault.RUNS_ON else ": try another seed, or split it"
            warnings.warn(
                f"the speech of {text} {_FAULTS[utterance.fault]} in each of {utterance.attempts} attempts{outcome}",
                FaultySpeechWarning,
                stacklevel,
            )

    def _new_speech(self, seed: int, sentence_silence: float) -> Speech:
        silence_of(sentence_silence, self.audio.sampling_rate)  # checks it
        return Speech([], self.audio.sampling_rate, seed, sentence_silence, self.audio.n_mel_channels)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
