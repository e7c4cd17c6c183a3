"""A run's history as JSON lines: OUT/log.jsonl, one object a line, appended to by the run and read by `fastglow plot`.

A record has "group", "epoch", "iteration", "time" (seconds since 1970) and its values. The groups:

- "run": a run begins or resumes, at the iteration of the checkpoint that it continues. What an earlier process did
  after that iteration was lost with it, so the earlier records with a larger iteration no longer count.
- "train": one step, at the time when it ended. Its losses, grad_norm, learning_rate, items_per_second, the seconds of
  its parts (seconds_data, seconds_model, seconds_optimizer), flop_utilisation (1 is the rate of large matrix products
  on this device), skipped (1 if float16 left the update out, else 0); with float16 loss_scale.
- "validation": mean losses of the validation split.

JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity".
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastglow.errors import FastglowError

logger = logging.getLogger(__name__)

LOG = "log.jsonl"
RUN, TRAIN, VALIDATION = "run", "train", "validation"
Value = float | str | bool | None

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Record(NamedTuple):
    """One line: values by name, at `time` (seconds since 1970), after `iteration` iterations."""

    group: str
    epoch: int
    iteration: int
    time: float
    values: dict[str, Value]


class HistoryWriter:
    """Appends records to a log; each is one line, written by one call, so that no crash leaves two halves mixed.

    Args:
        path: of the log; created if it is missing.

    Raises:
        FastglowError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._error(error) from error
        try:
            size = os.fstat(self._file).st_size
            self._cut = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        except OSError as error:
            self.close()
            raise self._error(error) from error

    def __enter__(self) -> "HistoryWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(
        self, group: str, epoch: int, iteration: int, values: Mapping[str, Value], when: float | None = None
    ) -> None:
        """Appends a record.

        Args:
            group: "run", "train" or "validation"; see the module.
            epoch: of the record, from 0.
            iteration: iterations done since the beginning.
            values: by name; NumPy's and PyTorch's scalars are converted.
            when: seconds since 1970; None: now.

        Raises:
            FastglowError: it cannot be written, or only in part: a full disk.
        """
        record: dict[str, Any] = {"group": group, "epoch": int(epoch), "iteration": int(iteration)}
        record["time"] = round(time.time() if when is None else when, 3)
        record |= {name: _plain(value) for name, value in values.items() if name not in record}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        # A line that a crash or a full disk cut short ends here.
        line = b"\n" + line if self._cut else line
        try:
            n_written = os.write(self._file, line)
        except OSError as error:
            raise self._error(error) from error
        self._cut = line[:n_written][-1:] != b"\n"
        if n_written < len(line):
            raise FastglowError(f"{self.path} cannot be written: only {n_written} of {len(line)} bytes fit on the disk")

    def _error(self, error: OSError) -> FastglowError:
        return FastglowError(f"{self.path} cannot be written: {error.strerror}")


def read_history(run: str | os.PathLike) -> list[Record]:
    """The records of a run that count, in the order in which they were written.

    Records that a resumed run superseded are left out. So are damaged lines, with one warning.

    Args:
        run: the run's folder, or the path of its log.

    Raises:
        FastglowError: there is no log, or it cannot be read.
    """
    return list(read_backwards(run))[::-1]


def read_backwards(run: str | os.PathLike) -> Iterator[Record]:
    """`read_history` from the last record to the first, without holding them all."""
    path = _log_of(Path(run))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FastglowError(f"{path} cannot be read: {error.strerror}") from error
    limit: float = math.inf  # the iteration from which the following records continue
    end, n_damaged, first_damaged = len(data), 0, 0
    while end > 0:
        start = data.rfind(b"\n", 0, end) + 1
        line = data[start:end]
        if line.strip():
            record = _record(line)
            if record is None:
                n_damaged, first_damaged = n_damaged + 1, start
            elif record.iteration <= limit:
                yield record
                if record.group == RUN:
                    limit = record.iteration
        end = start - 1
    if n_damaged:
        number = 1 + data.count(b"\n", 0, first_damaged)
        which = f"line {number} is" if n_damaged == 1 else f"{n_damaged} lines, from line {number} on, are"
        logger.warning("%s: %s damaged or incomplete and left out", path, which)


def _log_of(run: Path) -> Path:
    path = run / LOG if run.is_dir() else run
    if not path.exists():
        what = f"{run} holds no {LOG}" if run.is_dir() else f"{run} does not exist"
        raise FastglowError(f"{what}: pass the output folder (--out) of a `fastglow train` that has begun")
    return path


def _plain(value: Any) -> Value:
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else json.dumps(number)


def _record(line: bytes) -> Record | None:
    """The record of a line; None if it is damaged. No beginning of a whole line is valid JSON by itself."""
    try:
        values = json.loads(line)
        group, epoch, iteration, when = (values.pop(name) for name in ("group", "epoch", "iteration", "time"))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    counts = type(epoch) is type(iteration) is int and 0 <= epoch < 2**63 and 0 <= iteration < 2**63
    if not counts or not isinstance(group, str) or type(when) not in (int, float):
        return None
    for name, value in values.items():
        if type(value) is str and value in _NOT_FINITE:
            values[name] = _NOT_FINITE[value]
    return Record(group, epoch, iteration, when, values)
