"""Sentences to audio: decoded, vocoded and finished, whole or in chunks."""

import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from fastglow.audio import MelConfig
from fastglow.audio.loudness import LEVEL_DB, mel_level
from fastglow.models import Tacotron2
from fastglow.modules.parameter_cache import ParameterCache, parameters_of

from .acoustic import MIN_SYMBOLS, Acoustic
from .attempts import Utterance
from .delivery import Delivery
from .finishing import Finisher
from .frontend import Frontend
from .jobs import Job, make_jobs, split_job
from .reading import Fault
from .remarks import warn_of_faults
from .silence import Silence, zeros
from .speech import Seconds, Sentence, WordSource
from .streaming import Chunks, speak_while_decoding
from .vocoders import Vocoder
from .word_times import Clock

# Read to measure the level of a voice that does not say it.
LEVEL_TEXT = "The quick brown fox jumps over the lazy dog."


class Spoken(NamedTuple):
    sentences: list[list[Sentence]]  # of each job: one, none if it has no audio, or several parts
    seconds: Seconds


class Speaker:
    """The parts of a voice, and what they do with sentences; `Synthesizer` does it with texts.

    Attributes:
        audio: parameters of the mel.
        frontend, acoustic, vocoder: from text to symbols, to mel, to audio.
    """

    def __init__(self, audio: MelConfig, frontend: Frontend, acoustic: Acoustic, vocoder: Vocoder, level: float | None):
        self.audio, self.frontend, self.acoustic, self.vocoder = audio, frontend, acoustic, vocoder
        self._level = level
        self._measured_level: ParameterCache[float | None] = ParameterCache()

    @property
    def tacotron2(self) -> Tacotron2:
        return self.acoustic.tacotron2

    @property
    def level(self) -> float:
        """Of the voice's speech before it is normalized, in dBFS: given, or measured from the mel of one sentence."""
        if self._level is not None:
            return self._level
        measured = self._measured_level.get(parameters_of(self.tacotron2), self.measure_level)
        return LEVEL_DB if measured is None else measured

    def measure_level(self) -> float | None:
        """The level of one sentence; None if the voice cannot read it."""
        jobs = list(make_jobs([LEVEL_TEXT], 0, self.frontend, self.acoustic.most_symbols))
        attempts = [self.acoustic.attempts(job) for job in jobs]
        self.acoustic.complete(attempts)
        mels = [mel for one in attempts if (mel := one.best().mel).shape[1]]
        return mel_level(torch.cat(mels, dim=1), self.audio) if mels else None

    def _finisher(self, how: Delivery, job: Job) -> Finisher:
        return how.finisher(self.audio.sampling_rate, self.level if how.needs_level else LEVEL_DB, job.follows)

    def _stream_sentence(
        self, job: Job, sizes: Iterator[int], how: Delivery, silence: Silence, early: bool
    ) -> Iterator[np.ndarray | Sentence]:
        """The finished audio of a sentence after the silence before it, then the sentence; or those of its parts.

        Args:
            silence: of the text, up to this sentence.
            early: hand out audio while it is decoded.
        """
        attempts = self.acoustic.attempts(job)
        chunks = Chunks(self.vocoder, self.audio.hop_length, job.seed, sizes)
        finisher = self._finisher(how, job)
        finished: list[np.ndarray] = []

        def delivered(audio: np.ndarray) -> Iterator[np.ndarray]:
            if len(audio):
                yield from zeros(0 if finished else silence.before_audio())
                yield audio
                finished.append(audio)

        if early and chunks.can_begin_early:
            for audio in speak_while_decoding(self.acoustic, attempts, chunks):
                yield from delivered(finisher.push(audio))
        self.acoustic.complete([attempts])
        utterance = attempts.best()
        if not chunks.n_spoken and (parts := self._parts_of(job, utterance)):
            for part in parts:
                yield from self._stream_sentence(part, sizes, how, silence, early=False)
            return
        warn_of_faults(job.text, utterance, self.acoustic.max_steps)
        for audio, is_last in chunks.rest(utterance.mel):
            audio = finisher.push(audio)
            if is_last:
                end = finisher.finish(is_followed=job.is_followed, cut=utterance.cut)
                audio = np.concatenate((audio, end))
            yield from delivered(audio)
        if utterance.mel.shape[1] or job.has_pause:
            yield self._sentence(job, utterance, finisher, how, finished)

    def _parts_of(self, job: Job, utterance: Utterance) -> list[Job]:
        """Of a sentence that is too long for the decoder, or long and faulty; empty if it is neither, or a word."""
        leaves_out = utterance.fault >= Fault.REPEATS and utterance.reading.legible
        if not (leaves_out and len(job.symbols) >= MIN_SYMBOLS) and utterance.fault is not Fault.TOO_LONG:
            return []
        return split_job(job, self.frontend, self.acoustic.most_symbols)

    def _speak(self, jobs: list[Job], how: Delivery) -> Spoken:
        """Decodes and vocodes the jobs as one batch."""
        started = time.perf_counter()
        attempts = [self.acoustic.attempts(job) for job in jobs]
        self.acoustic.complete(attempts)
        utterances = [one.best() for one in attempts]
        decoded = time.perf_counter()
        splits = {
            i: parts
            for i, (job, utterance) in enumerate(zip(jobs, utterances, strict=True))
            if (parts := self._parts_of(job, utterance))
        }
        whole = [i for i in range(len(jobs)) if i not in splits]
        for i in whole:
            warn_of_faults(jobs[i].text, utterances[i], self.acoustic.max_steps)
        audible = [i for i in whole if utterances[i].mel.shape[1]]
        audio = self._vocode([utterances[i] for i in audible], [jobs[i].seed for i in audible])
        # A sentence without audio is listed for the sake of the pauses around it.
        silent = np.zeros(0, np.float32)
        sentences = [
            [self._finished(job, utterance, silent, how)] if job.has_pause and not utterance.mel.shape[1] else []
            for job, utterance in zip(jobs, utterances, strict=True)
        ]
        for i in splits:
            sentences[i].clear()
        for i, samples in zip(audible, audio, strict=True):
            sentences[i].append(self._finished(jobs[i], utterances[i], samples, how))
        finished = time.perf_counter()
        seconds = Seconds(decoded - started, finished - decoded, finished - started)
        for i, parts in splits.items():
            spoken = self._speak(parts, how)
            sentences[i].extend(chain.from_iterable(spoken.sentences))
            seconds = seconds.plus(spoken.seconds)
        return Spoken(sentences, seconds)

    def _vocode(self, utterances: list[Utterance], seeds: list[int]) -> list[np.ndarray]:
        """The audio of utterances of at least one frame each."""
        if not utterances:
            return []
        lengths = [utterance.mel.shape[1] for utterance in utterances]
        mels = pad_sequence([utterance.mel.T for utterance in utterances], batch_first=True).transpose(1, 2)
        return self.vocoder.vocode(mels, lengths, seeds)

    def _finished(self, job: Job, utterance: Utterance, audio: np.ndarray, how: Delivery) -> Sentence:
        finisher = self._finisher(how, job)
        parts = [finisher.push(audio), finisher.finish(is_followed=job.is_followed, cut=utterance.cut)]
        return self._sentence(job, utterance, finisher, how, parts)

    def _sentence(
        self, job: Job, utterance: Utterance, finisher: Finisher, how: Delivery, audio: list[np.ndarray]
    ) -> Sentence:
        """What is known of a sentence whose finished audio comes in parts."""
        mel = utterance.mel.float().cpu().numpy()
        samples = np.concatenate([np.zeros(0, np.float32), *audio])
        rate = self.audio.sampling_rate
        clock = Clock(self.acoustic.seconds_per_step, finisher.n_trimmed / rate, how.speed, len(samples) / rate)
        return Sentence(
            job.text, mel, utterance.alignment, samples, utterance.stopped, utterance.readings, utterance.cut,
            pause_before=job.pause_before, pause_after=job.pause_after,
            word_source=WordSource(partial(self.frontend.written_words, job.text, job.words), clock),
        )  # fmt: skip
