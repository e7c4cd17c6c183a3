"""Speaks the jobs of `fastglow synth --json-lines`, in this process or in a worker of a cluster."""

import io
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from fastglow.audio.io import write_audio
from fastglow.errors import FastglowError

from .jobs import Job
from .options import VoiceChoice
from .reports import computed_with, nothing_spoken, sentence_reports

if TYPE_CHECKING:
    from fastglow.engine import Speech, Synthesizer

VOICES_KEPT = 4


@dataclass(frozen=True)
class Made:
    """The speech of a job.

    Attributes:
        data: the whole file, in the job's format.
        audio_seconds: its length.
        report: what `--json` says of it besides.
    """

    data: bytes
    audio_seconds: float
    report: dict[str, Any]


Outcome = Made | str
"""What became of a job: its speech, or why it has none."""


class Speakers(Protocol):
    """Speaks batches, of jobs of one voice and the same options but for the seed.

    Attributes:
        seconds: that it has taken so far.
    """

    seconds: float

    def speak(self, batch: list[Job]) -> Iterator[tuple[Job, Outcome]]:
        """What has become of these jobs or of earlier ones.

        Raises:
            Exception: the default voice cannot be loaded, which no job is to blame for.
        """

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        """What has become of earlier jobs by now, without waiting."""

    def rest(self) -> Iterator[tuple[Job, Outcome]]:
        """What becomes of all earlier jobs. The last call."""

    def close(self) -> None:
        """Stops what has not been finished."""


class OwnSpeakers:
    """Speaks in this process, and loads each voice once.

    Args:
        default: the voice of jobs that name no other.
        warmup: of each voice, before its first job.
    """

    def __init__(self, default: VoiceChoice, warmup: bool):
        self.seconds = 0.0
        self._default = default
        self._load = lru_cache(VOICES_KEPT)(partial(VoiceChoice.load, warmup=warmup))

    def speak(self, batch: list[Job]) -> Iterator[tuple[Job, Outcome]]:
        """As `Speakers.speak`: these jobs, so many at a time as are decoded together."""
        voice = batch[0].voice
        try:
            synthesizer = self._load(voice)
        except Exception as error:
            if voice == self._default:
                raise
            message = in_one_line(error)
            yield from ((job, message) for job in batch)
            return
        for part in parts_of(batch, synthesizer.batch_size):
            started = time.perf_counter()
            outcomes = _speak(synthesizer, part)
            self.seconds += time.perf_counter() - started
            how = computed_with(synthesizer)
            for job, outcome in zip(part, outcomes, strict=True):
                yield job, outcome if isinstance(outcome, str) else _encoded(job, outcome, how)

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        return iter(())

    rest = finished

    def close(self) -> None:
        pass


def without_seed(job: Job) -> dict[str, Any]:
    """The options of a job that those of its batch have in common."""
    return {name: value for name, value in job.keywords.items() if name != "seed"}


def parts_of(batch: list[Job], most: int) -> Iterator[list[Job]]:
    """The jobs that are spoken in one call, at most so many."""
    return (batch[first : first + most] for first in range(0, len(batch), most))


def in_one_line(error: Exception) -> str:
    # Not the error itself, whose traceback would keep the batch's tensors.
    if isinstance(error, FastglowError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


def _speak(synthesizer: "Synthesizer", batch: list[Job]) -> list["Speech | str"]:
    """If the batch fails, each job is tried alone."""
    from fastglow.engine.remarks import SilentTextWarning
    from fastglow.engine.seeds import random_seed

    texts, seeds = [job.text for job in batch], [job.keywords.get("seed", random_seed()) for job in batch]
    try:
        with warnings.catch_warnings():
            # The job fails and says so.
            warnings.filterwarnings("ignore", "nothing to speak", SilentTextWarning)
            return [*synthesizer.synthesize_batch(texts, seeds, **without_seed(batch[0]))]
    except Exception as error:
        if len(batch) == 1:
            return [in_one_line(error)]
    return [outcome for job in batch for outcome in _speak(synthesizer, [job])]


def _encoded(job: Job, speech: "Speech", how: dict[str, str | None]) -> Outcome:
    if not speech.mel.shape[1]:
        return str(nothing_spoken(job.text))
    file = io.BytesIO()
    try:
        write_audio(file, speech.audio, speech.sample_rate, job.format)
    except FastglowError as error:
        return str(error)
    report = {"seed": speech.seed, **how, "sentences": sentence_reports(speech)}
    return Made(file.getvalue(), speech.seconds, report)
