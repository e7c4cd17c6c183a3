"""Shows and reports how a run of `fastglow synth --json-lines` gets on."""

import json
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from fastglow.outputs import ClosedPipeError, discard_standard_output, draws_progress

from .inputs import EVERY_LINE, Line, Shard, count_lines
from .jobs import Job
from .speakers import Made


class BatchReport:
    """Counts, shows and reports the jobs of a run.

    Args:
        inputs: as for `read_windows`.
        shard: the lines that this run reads.
        as_json: print a JSON object for each job on standard output, and no summary.
        quiet: no progress bar and no summary.

    Attributes:
        seconds: of computing so far, set from outside.
        n_spoken, n_skipped, n_failed: numbers of jobs.
        audio_seconds: of the spoken ones.
    """

    def __init__(self, inputs: tuple[str, ...], shard: Shard, as_json: bool, quiet: bool):
        self.seconds = self.audio_seconds = 0.0
        self.n_spoken = self.n_skipped = self.n_failed = 0
        self._name = ", ".join("standard input" if path == "-" else path for path in inputs or "-")
        if shard != EVERY_LINE:
            self._name += f", shard {shard.index}/{shard.count}"
        self._as_json, self._quiet = as_json, quiet
        draws = draws_progress(quiet)
        self._bar = tqdm(
            total=count_lines(inputs, shard) if draws else None, unit=" items", leave=False, disable=not draws
        )

    def spoken(self, job: Job, made: Made) -> None:
        self.n_spoken += 1
        self.audio_seconds += made.audio_seconds
        self._bar.set_postfix_str(f"{self._speed:.1f} x real time", refresh=False)
        self._tell(job.line, job.out, audio_seconds=made.audio_seconds, **made.report)

    def skipped(self, job: Job) -> None:
        self.n_skipped += 1
        self._tell(job.line, job.out, skipped=True)

    def failed(self, line: Line, message: str, out: Path | None = None) -> None:
        self.n_failed += 1
        message = " ".join(message.split())
        with tqdm.external_write_mode():
            click.echo(f"fastglow: {line.place}: {message}", err=True)
        self._tell(line, out, error=message)

    def conclude(self) -> None:
        """Prints the summary."""
        self.close()
        if not self._as_json and not self._quiet:
            click.echo(
                f"{self._name}: {self.n_spoken} spoken, {self.n_skipped} skipped, {self.n_failed} failed; "
                f"{self.audio_seconds:.2f} s of audio in {self.seconds:.2f} s, {self._speed:.1f} x real time",
                err=True,
            )

    def close(self) -> None:
        """Removes the progress bar."""
        self._bar.close()

    @property
    def _speed(self) -> float:
        return self.audio_seconds / self.seconds if self.seconds else 0.0

    def _tell(self, line: Line, out: Path | None, **values: Any) -> None:
        self._bar.update()
        if not self._as_json:
            return
        report = {"input": line.source, "line": line.number, "out": out and str(out), **values}
        try:
            click.echo(json.dumps(report, ensure_ascii=False))
        except BrokenPipeError as error:
            discard_standard_output()
            raise ClosedPipeError("cannot write to standard output: nobody reads it") from error
