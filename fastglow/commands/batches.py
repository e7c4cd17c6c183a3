"""`fastglow synth --json-lines`: speaks many texts into many files, in batches."""

import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastglow.audio.io import write_audio
from fastglow.errors import FastglowError
from fastglow.outputs import is_stream

from .batch_report import BatchReport
from .inputs import Line, check_inputs, read_windows
from .jobs import Defaults, Job, JobReader
from .journal import Journal
from .options import VoiceChoice
from .reports import computed_with, nothing_spoken

if TYPE_CHECKING:
    from fastglow.engine import Speech, Synthesizer

# Lines that are searched for texts of one batch.
WINDOW = 64
# Of the texts of a batch: a quarter of an hour of speech.
BATCH_CHARACTERS = 16_000
VOICES_KEPT = 4


def speak_jobs(
    inputs: tuple[str, ...], folder: str | None, defaults: Defaults, resume: bool, warmup: bool, as_json: bool,
    quiet: bool,
) -> int:  # fmt: skip
    """Speaks the jobs of all lines; those that fail are reported, and the others go on.

    Args:
        inputs: files, "-" for standard input, which is read if there are none.
        folder: to make, if need be, and to write to; None: the working directory.
        defaults: for what a line does not say.
        resume: leave out the jobs of which an earlier run has made the files.
        warmup: of each voice, before its first job.
        as_json: print a JSON object for each job instead of the report.
        quiet: print failures only.

    Returns:
        the exit code: 1 if a job has failed.

    Raises:
        FastglowError: the inputs, the folder or the options' voice cannot be used.
        ClosedPipeError: nobody reads the JSON objects any more.
        click.Abort: Ctrl-C.
    """
    check_inputs(inputs)
    if folder is not None:
        _make_folder(folder)
    speakers = _Speakers(defaults.voice, warmup)
    with closing(Journal(folder or ".", resume)) as journal, closing(BatchReport(inputs, as_json, quiet)) as report:
        reader = JobReader(defaults, folder, journal.path)
        try:
            for window in read_windows(inputs, WINDOW):
                for batch in _batches(_to_do(window, reader, journal, report)):
                    for job, outcome in zip(batch, speakers.speak(batch), strict=True):
                        report.seconds = speakers.seconds
                        _finish(job, outcome, speakers.how, journal, report)
        except KeyboardInterrupt as error:
            report.close()
            click.echo("fastglow: stopped: the same command with --resume goes on from here", err=True)
            raise click.Abort from error
        report.conclude()
    return 1 if report.n_failed else 0


def _make_folder(folder: str) -> None:
    if is_stream(folder):
        raise FastglowError(f"cannot write many files to {folder}: pass -o FOLDER")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastglowError(f"cannot make the folder {folder}: {error.strerror}") from error


def _to_do(window: list[Line], reader: JobReader, journal: Journal, report: BatchReport) -> list[Job]:
    """The jobs of a window's lines but for those that cannot be read and those that are done."""
    jobs = []
    for line in window:
        if not line.data.strip():
            continue
        try:
            job = reader.read(line)
            done = journal.has(job.digest, job.out)
        except (FastglowError, OSError) as error:
            report.failed(line, _message(error))
            continue
        if done:
            report.skipped(job)
        else:
            jobs.append(job)
    return jobs


def _batches(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that one call of `synthesize_batch` can speak: of one voice and the same options but for the seed."""
    groups: dict[Any, list[list[Job]]] = {}
    for job in jobs:
        batches = groups.setdefault((job.voice, *sorted(_without_seed(job).items())), [[]])
        if batches[-1] and sum(len(other.text) for other in batches[-1]) + len(job.text) > BATCH_CHARACTERS:
            batches.append([])
        batches[-1].append(job)
    return [batch for batches in groups.values() for batch in batches]


def _without_seed(job: Job) -> dict[str, Any]:
    return {name: value for name, value in job.keywords.items() if name != "seed"}


class _Speakers:
    """Speaks batches by the voices that they ask for, and loads each voice once.

    Attributes:
        seconds: spent on speaking.
        how: the latest batch was computed.
    """

    def __init__(self, default: VoiceChoice, warmup: bool):
        self.seconds = 0.0
        self.how: dict[str, str | None] = {}
        self._default = default
        self._load = lru_cache(VOICES_KEPT)(partial(VoiceChoice.load, warmup=warmup))

    def speak(self, batch: list[Job]) -> Iterator["Speech | str"]:
        """The speech of each job, or why it has none; so many at a time as are decoded together.

        Raises:
            Exception: the default voice cannot be loaded, which no job is to blame for.
        """
        voice = batch[0].voice
        try:
            synthesizer = self._load(voice)
        except Exception as error:
            if voice == self._default:
                raise
            yield from [_message(error)] * len(batch)
            return
        self.how = computed_with(synthesizer)
        for first in range(0, len(batch), synthesizer.batch_size):
            started = time.perf_counter()
            outcomes = _speak(synthesizer, batch[first : first + synthesizer.batch_size])
            self.seconds += time.perf_counter() - started
            yield from outcomes


def _speak(synthesizer: "Synthesizer", batch: list[Job]) -> list["Speech | str"]:
    """If the batch fails, each job is tried alone."""
    from fastglow.engine.remarks import SilentTextWarning
    from fastglow.engine.seeds import random_seed

    texts, seeds = [job.text for job in batch], [job.keywords.get("seed", random_seed()) for job in batch]
    try:
        with warnings.catch_warnings():
            # The job fails and says so.
            warnings.filterwarnings("ignore", "nothing to speak", SilentTextWarning)
            return [*synthesizer.synthesize_batch(texts, seeds, **_without_seed(batch[0]))]
    except Exception as error:
        if len(batch) == 1:
            return [_message(error)]
    return [outcome for job in batch for outcome in _speak(synthesizer, [job])]


def _finish(
    job: Job, outcome: "Speech | str", how: dict[str, str | None], journal: Journal, report: BatchReport
) -> None:
    """Writes the file of a job, which was computed so, and notes that it is done."""
    try:
        if isinstance(outcome, str):
            raise FastglowError(outcome)
        if not outcome.mel.shape[1]:
            raise nothing_spoken(job.text)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        write_audio(job.out, outcome.audio, outcome.sample_rate, job.format)
        journal.add(job.digest, job.out)
    except (FastglowError, OSError) as error:
        report.failed(job.line, _message(error), job.out)
    else:
        report.spoken(job, outcome, how)


def _message(error: Exception) -> str:
    # Not the error itself, whose traceback would keep the batch's tensors.
    if isinstance(error, FastglowError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    return f"{type(error).__name__}: {error}"
