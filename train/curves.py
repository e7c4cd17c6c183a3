"""The curves of a run: read from its history, and reduced to what a picture can show."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastglow.errors import FastglowError

from .history import RUN, TRAIN, VALIDATION, read_backwards

# A curve of more points is drawn as the range and median of this many groups of neighbours.
MAX_POINTS = 1000
# A curve of fewer points is not smoothed.
MIN_SMOOTHED = 20
# The smoothed curve is the median of this share of the points.
SMOOTHED_SHARE = 0.04
# A scale is logarithmic if the largest value is at least this many times the smallest.
LOGARITHMIC_RATIO = 20
# Values beyond this count as not finite: no axis could show them beside others.
LARGEST = 1e100


class Curve(NamedTuple):
    """Values at iterations, both [N] and in the order of the run."""

    iterations: np.ndarray
    values: np.ndarray

    @property
    def finite(self) -> Curve:
        kept = np.abs(self.values) <= LARGEST
        return Curve(self.iterations[kept], self.values[kept])

    @property
    def lost(self) -> np.ndarray:
        """The iterations whose value is not finite."""
        return self.iterations[~(np.abs(self.values) <= LARGEST)]


@dataclass
class RunCurves:
    """The curves of a run.

    Attributes:
        name: for the legend.
        train, validation: curves by name.
        begun: iterations at which the run began or was resumed.
        iteration: of the last record.
    """

    name: str
    train: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, Curve] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)
    iteration: int = 0

    @property
    def summary(self) -> str:
        """One line: length and lowest validation loss."""
        loss = self.validation["loss"].finite if "loss" in self.validation else None
        lowest = ""
        if loss is not None and len(loss.values):
            best = int(np.argmin(loss.values))
            lowest = f", lowest validation loss {loss.values[best]:.4f} at iteration {loss.iterations[best]:,}"
        return f"{self.name}, {self.iteration:,} iteration{'s' * (self.iteration != 1)}{lowest}"


class Reduced(NamedTuple):
    """A curve of few points: the range and the median of groups of `size` neighbours, each [groups]."""

    iterations: np.ndarray
    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    size: int


def read_curves(run: str | os.PathLike, name: str | None = None) -> RunCurves:
    """Reads a run's curves; `name` is the folder's unless given.

    Raises:
        FastglowError: as `read_history`, or the log holds no curve yet.
    """
    curves = RunCurves(Path(run).resolve().name if name is None else name)
    columns: dict[tuple[str, str], tuple[array, array]] = {}
    is_last = True
    for record in read_backwards(run):
        if is_last:
            curves.iteration, is_last = record.iteration, False
        if record.group == RUN:
            curves.begun.insert(0, record.iteration)
        elif record.group in (TRAIN, VALIDATION):
            for key, value in record.values.items():
                if isinstance(value, bool) or not isinstance(value, float | int):
                    continue
                column = columns.get((record.group, key))
                if column is None:
                    column = columns[record.group, key] = array("q"), array("d")
                column[0].append(record.iteration)
                column[1].append(_float(value))
    for (group, key), (iterations, values) in columns.items():
        curve = Curve(np.array(iterations)[::-1], np.array(values)[::-1])
        (curves.train if group == TRAIN else curves.validation)[key] = curve
    if not columns:
        raise FastglowError(f"{run} has no curves yet: its log holds no iteration that counts")
    return curves


def reduce_curve(curve: Curve) -> Reduced:
    """At most MAX_POINTS groups of neighbours of a curve of finite values; the last group may be smaller."""
    n = len(curve.values)
    size = max(1, -(-n // MAX_POINTS))
    whole = n // size * size
    parts = [curve.values[:whole].reshape(-1, size)] + ([curve.values[None, whole:]] if whole < n else [])
    reductions: list[Callable[..., np.ndarray]] = [np.min, np.median, np.max]
    low, middle, high = (np.concatenate([of(part, axis=1) for part in parts]) for of in reductions)
    starts = np.arange(0, n, size)
    ends = np.minimum(starts + size, n) - 1
    return Reduced((curve.iterations[starts] + curve.iterations[ends]) / 2, low, middle, high, size)


def smooth(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The running median of [N] values, and how many it is taken of; narrower at both ends.

    A median, because a single spike must not bend it.
    """
    half = max(1, round(len(values) * SMOOTHED_SHARE / 2))
    smoothed = np.empty(len(values))
    for i in range(len(values)):
        # Symmetric at the beginning, where curves fall steeply.
        smoothed[i] = np.median(values[max(0, i - half) : i + min(half, i) + 1])
    return smoothed, 2 * half + 1


class Scale(NamedTuple):
    """The scale of an axis and its ends; `left_out` names values beyond them, for the reader."""

    logarithmic: bool
    bottom: float
    top: float
    left_out: str


def choose_scale(shown: Iterable[np.ndarray], from_zero: bool = False, clips: bool = True) -> Scale | None:
    """The scale on which finite values are seen best; None if there are none.

    Args:
        shown: arrays of values, one a curve.
        from_zero: a linear scale that begins at zero.
        clips: leave out extreme values, such as those of the first iterations of a long run.
    """
    parts = [values for values in shown if len(values)]
    if not parts:
        return None
    low, high = min(float(values.min()) for values in parts), max(float(values.max()) for values in parts)
    logarithmic = not from_zero and low > 1 / LARGEST and high / LOGARITHMIC_RATIO >= low
    forth, back = (math.log, math.exp) if logarithmic else (float, float)
    bottom, top = forth(low), forth(high)
    usual = [np.percentile(values, (1, 99)) for values in parts if len(values) >= MIN_SMOOTHED]
    if clips and usual:
        usual_bottom, usual_top = forth(min(ends[0] for ends in usual)), forth(max(ends[1] for ends in usual))
        span = usual_top - usual_bottom
        if top > usual_top + 1.5 * span > usual_top:
            top = usual_top + 0.5 * span
        if bottom < usual_bottom - 1.5 * span < usual_bottom:
            bottom = usual_bottom - 0.5 * span
    left_out = [f"up to {high:.3g}"] if top < forth(high) else []
    left_out += [f"down to {low:.3g}"] if bottom > forth(low) and not from_zero else []
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 0.05
    return Scale(logarithmic, 0.0 if from_zero else back(bottom - margin), back(top + margin), ", ".join(left_out))


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond float's range
        return math.inf
