"""`fastglow synth --json-lines`: speaks many texts into many files, in batches."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import click

from fastglow.audio.io import write_encoded
from fastglow.errors import FastglowError
from fastglow.outputs import is_stream

from .batch_report import BatchReport
from .inputs import EVERY_LINE, Line, Shard, check_inputs, read_windows
from .jobs import Defaults, Job, JobReader
from .journal import Journal
from .ray_cluster import Cluster
from .speakers import Outcome, OwnSpeakers, Speakers, in_one_line, without_seed

# Lines of a shard that are searched for texts of one batch.
WINDOW = 64
# Of the texts of a batch: a quarter of an hour of speech.
BATCH_CHARACTERS = 16_000
# Seconds to wait for input before looking what others have finished.
PATIENCE = 0.1


class Spread(NamedTuple):
    """Which jobs are spoken, and by whom.

    Attributes:
        shard: the lines that are this run's.
        cluster: speaks them; None: this process does.
    """

    shard: Shard = EVERY_LINE
    cluster: Cluster | None = None


def speak_jobs(
    inputs: tuple[str, ...], folder: str | None, defaults: Defaults, spread: Spread, resume: bool, warmup: bool,
    as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Speaks the jobs of all lines; those that fail are reported, and the others go on.

    Args:
        inputs: files, "-" for standard input, which is read if there are none.
        folder: to make, if need be, and to write to; None: the working directory.
        defaults: for what a line does not say.
        spread: leave out the lines of other shards, or call a cluster.
        resume: leave out the jobs of which an earlier run has made the files.
        warmup: of each voice, before its first job.
        as_json: print a JSON object for each job instead of the report.
        quiet: print failures only.

    Returns:
        the exit code: 1 if a job has failed.

    Raises:
        FastglowError: the inputs, the folder, the options' voice or the cluster cannot be used.
        ClosedPipeError: nobody reads the JSON objects any more.
        click.Abort: Ctrl-C.
    """
    check_inputs(inputs)
    if folder is not None:
        _make_folder(folder)
    shard = spread.shard
    with (
        closing(_speakers(defaults, warmup, spread.cluster)) as speakers,
        closing(Journal(folder or ".", resume)) as journal,
        closing(BatchReport(inputs, shard, as_json, quiet)) as report,
    ):
        reader = JobReader(defaults, folder, journal.path)
        windows = read_windows(inputs, WINDOW * shard.count, PATIENCE if spread.cluster else None)
        try:
            for job, outcome in _spoken(
                (_to_do(window, shard, reader, journal, report) for window in windows), speakers
            ):
                report.seconds = speakers.seconds
                _finish(job, outcome, journal, report)
        except KeyboardInterrupt as error:
            report.close()
            click.echo("fastglow: stopped: the same command with --resume goes on from here", err=True)
            raise click.Abort from error
        report.conclude()
    return 1 if report.n_failed else 0


def _speakers(defaults: Defaults, warmup: bool, cluster: Cluster | None) -> Speakers:
    if cluster is None:
        return OwnSpeakers(defaults.voice, warmup)
    from .ray_jobs import RaySpeakers

    return RaySpeakers(defaults.voice, warmup, cluster)


def _spoken(windows: Iterator[list[Job]], speakers: Speakers) -> Iterator[tuple[Job, Outcome]]:
    for jobs in windows:
        for batch in _batches(jobs):
            yield from speakers.speak(batch)
        yield from speakers.finished()
    yield from speakers.rest()


def _make_folder(folder: str) -> None:
    if is_stream(folder):
        raise FastglowError(f"cannot write many files to {folder}: pass -o FOLDER")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastglowError(f"cannot make the folder {folder}: {error.strerror}") from error


def _to_do(window: list[Line], shard: Shard, reader: JobReader, journal: Journal, report: BatchReport) -> list[Job]:
    """The jobs of a window's lines but for those of other shards, that cannot be read, and that are done."""
    jobs = []
    for line in window:
        if not line.data.strip():
            continue
        is_own = shard.has(line.position)
        try:
            # Also those of others: the reader knows who has claimed a file.
            job = reader.read(line)
            done = is_own and journal.has(job.digest, job.out)
        except (FastglowError, OSError) as error:
            if is_own:
                report.failed(line, in_one_line(error))
            continue
        if done:
            report.skipped(job)
        elif is_own:
            jobs.append(job)
    return jobs


def _batches(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that one call of `synthesize_batch` can speak: of one voice and the same options but for the seed."""
    groups: dict[Any, list[list[Job]]] = {}
    for job in jobs:
        batches = groups.setdefault((job.voice, *sorted(without_seed(job).items())), [[]])
        if batches[-1] and sum(len(other.text) for other in batches[-1]) + len(job.text) > BATCH_CHARACTERS:
            batches.append([])
        batches[-1].append(job)
    return [batch for batches in groups.values() for batch in batches]


def _finish(job: Job, outcome: Outcome, journal: Journal, report: BatchReport) -> None:
    """Writes the file of a job and notes that it is done."""
    try:
        if isinstance(outcome, str):
            raise FastglowError(outcome)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        write_encoded(job.out, outcome.data)
        journal.add(job.digest, job.out)
    except (FastglowError, OSError) as error:
        report.failed(job.line, in_one_line(error), job.out)
    else:
        report.spoken(job, outcome)
