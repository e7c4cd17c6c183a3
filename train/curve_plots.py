"""Draws the curves of one run, or of several to compare, as a picture. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastglow.errors import FastglowError
from fastglow.plotting import require_matplotlib

from .curves import MAX_POINTS, MIN_SMOOTHED, Curve, RunCurves, choose_scale, reduce_curve, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_RESUMES = 30

PARTS = {"seconds_data": "data", "seconds_model": "forward + backward", "seconds_optimizer": "optimizer"}


def plot_runs(runs: Sequence[RunCurves]) -> Figure:
    """Draws the losses, the gradient norm, learning rate, speed and, where they are known, loss scale, skipped
    updates, time split and FLOP utilisation over the iterations.

    Returns:
        a matplotlib Figure without a window.

    Raises:
        FastglowError: matplotlib is not installed, or there is nothing to draw.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    panels = _panels(runs)
    if not panels:
        raise FastglowError(f"{runs[0].name} has no curves yet: its log holds no loss and no speed")
    losses = [panel for panel in panels if panel.is_loss]
    others = [panel for panel in panels if not panel.is_loss]
    rows = [[panel] for panel in losses] + [others[i : i + 2] for i in range(0, len(others), 2)]
    heights = [3.6 if row[0].is_loss else 2.5 for row in rows]
    figure = Figure(figsize=(12, sum(heights) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(rows), 2, height_ratios=heights)
    first: Axes | None = None
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            axes = figure.add_subplot(grid[i, j] if len(row) > 1 else grid[i, :], sharex=first)
            first = axes if first is None else first
            panel.draw(axes, runs)
            _finish_axes(axes, panel.title)
            if row is rows[-1]:
                axes.set_xlabel("iteration")
            elif len(row) == len(rows[i + 1]):  # the axis below has the same numbers at the same places
                axes.tick_params(labelbottom=False)
    if first is not None:
        _set_iterations(first, runs)
    if len(runs) == 1:
        iterations = f"{runs[0].iteration:,} iteration{'s' * (runs[0].iteration != 1)}"
        figure.suptitle(f"{runs[0].name}: {iterations}", parse_math=False)
    else:
        _legend_of_runs(figure, runs)
    return figure


class _Panel(NamedTuple):
    title: str
    draw: Callable[[Axes, Sequence[RunCurves]], None]
    is_loss: bool = False


def _panels(runs: Sequence[RunCurves]) -> list[_Panel]:
    trained = {name for run in runs for name in run.train}
    validated = {name for run in runs for name in run.validation}
    losses = validated | {name for name in trained if name.endswith("loss")}
    panels = [
        _Panel(name.replace("_", " "), _drawing_of_loss(name), True)
        for name in sorted(losses, key=lambda name: (name != "loss", name))
    ]
    for name, title, draw in (
        ("grad_norm", "gradient norm", _drawing_of("grad_norm")),
        ("learning_rate", "learning rate", _drawing_of("learning_rate", exact=True)),
        (
            "items_per_second",
            "items per second (mel frames; WaveGlow: samples)",
            _drawing_of("items_per_second", from_zero=True),
        ),
        ("flop_utilisation", "FLOP utilisation", _drawing_of("flop_utilisation", from_zero=True)),
        ("loss_scale", "loss scale", _draw_loss_scale),
    ):
        if name in trained:
            panels.append(_Panel(title, draw))
    if trained & PARTS.keys():
        panels.append(_Panel("time of an iteration", _draw_time_split))
    return panels


def _color(run: int) -> str:
    return f"C{run % 10}"


def _faintness(runs: Sequence[RunCurves]) -> float:
    """The opacity of the unsmoothed values; those of many runs would only hide each other."""
    return 0.2 if len(runs) == 1 else 0.12 if len(runs) <= 3 else 0.0


def _drawing_of_loss(name: str) -> Callable[[Axes, Sequence[RunCurves]], None]:
    def draw(axes: Axes, runs: Sequence[RunCurves]) -> None:
        alone = len(runs) == 1
        shown: list[np.ndarray] = []
        for i, run in enumerate(runs):
            if name in run.train:
                shown.append(run.train[name].finite.values)
                _draw_smoothed(axes, run.train[name], _color(i), _faintness(runs), "training" if alone else None)
        for i, run in enumerate(runs):
            curve = run.validation[name].finite if name in run.validation else None
            if curve is None or not len(curve.values):
                continue
            lowest = int(np.argmin(curve.values))
            at = f"{curve.values[lowest]:.4g} at {int(curve.iterations[lowest]):,}"
            reduced = reduce_curve(curve)
            axes.plot(
                reduced.iterations,
                reduced.middle,
                color="C1" if alone else _color(i),
                linestyle="--",
                linewidth=1.2,
                marker="o" if len(reduced.middle) <= 60 else "",
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=f"validation (lowest: {at})" if alone else None,
            )
            shown.append(curve.values)
        _scale(axes, shown)
        if alone:
            resumes = [iteration for iteration in runs[0].begun[1:] if iteration > 0][-MAX_RESUMES:]
            for n, iteration in enumerate(resumes):
                axes.axvline(iteration, color="0.6", linewidth=0.8, linestyle=":", label=None if n else "resumed")
            _legend(axes)

    return draw


def _drawing_of(
    name: str, *, exact: bool = False, from_zero: bool = False
) -> Callable[[Axes, Sequence[RunCurves]], None]:
    """Draws one value of the steps: smoothed, or `exact` for a value that is set and not measured."""

    def draw(axes: Axes, runs: Sequence[RunCurves]) -> None:
        for i, run in enumerate(runs):
            if name in run.train:
                if exact:
                    _draw_steps(axes, run.train[name].finite, _color(i))
                else:
                    _draw_smoothed(axes, run.train[name], _color(i), _faintness(runs))
        _scale(axes, [run.train[name].finite.values for run in runs if name in run.train], from_zero, clips=not exact)
        if name == "flop_utilisation":
            axes.yaxis.set_major_formatter(lambda value, position: f"{100 * value:g} %")

    return draw


def _draw_loss_scale(axes: Axes, runs: Sequence[RunCurves]) -> None:
    alone = len(runs) == 1
    for i, run in enumerate(runs):
        if "loss_scale" not in run.train:
            continue
        scale = run.train["loss_scale"].finite
        _draw_steps(axes, scale, _color(i))
        skipped = run.train.get("skipped")
        at = skipped.iterations[skipped.values > 0] if skipped is not None else np.zeros(0)
        if skipped is not None and len(at) and len(scale.values):
            positions = np.searchsorted(scale.iterations, at).clip(0, len(scale.values) - 1)
            label = f"{np.nansum(skipped.values):,.0f} updates skipped" if alone else None
            chosen = np.unique(np.linspace(0, len(at) - 1, MAX_POINTS).astype(int))
            axes.plot(
                at[chosen],
                scale.values[positions[chosen]],
                "x",
                color="C3" if alone else _color(i),
                markersize=5,
                label=label,
            )
    values = [run.train["loss_scale"].finite.values for run in runs if "loss_scale" in run.train]
    if all((part > 0).all() for part in values):
        axes.set_yscale("log", base=2)
    if alone:
        _legend(axes)
    elif any((run.train["skipped"].values > 0).any() for run in runs if "skipped" in run.train):
        _note(axes, "crosses: skipped updates")


def _draw_time_split(axes: Axes, runs: Sequence[RunCurves]) -> None:
    from matplotlib.ticker import EngFormatter

    totals = []
    for i, run in enumerate(runs):
        parts = {title: run.train[name].finite for name, title in PARTS.items() if name in run.train}
        n = min((len(part.values) for part in parts.values()), default=0)
        if n == 0:
            continue
        reduced = {title: reduce_curve(Curve(part.iterations[-n:], part.values[-n:])) for title, part in parts.items()}
        iterations = next(iter(reduced.values())).iterations
        middles = [smooth(part.middle)[0] if len(iterations) >= MIN_SMOOTHED else part.middle
                   for part in reduced.values()]  # fmt: skip
        total = np.sum(middles, axis=0)
        totals.append(total)
        if len(runs) > 1:
            _draw_line(axes, iterations, total, _color(i))
            if "data" in reduced:
                axes.plot(iterations, middles[0], color=_color(i), linewidth=1.2, linestyle=":")
            continue
        everything = sum(float(part.values[-n:].sum()) for part in parts.values())
        shares = [float(part.values[-n:].sum()) / everything if everything else 0.0 for part in parts.values()]
        labels = [f"{title} ({share:.0%})" for title, share in zip(parts, shares, strict=True)]
        colors = ["C1", "C0", "C2"][-len(parts) :]
        if len(iterations) == 1:
            bottom = 0.0
            for middle, label, color in zip(middles, labels, colors, strict=True):
                axes.bar(iterations, middle, 0.5, bottom, color=color, label=label, alpha=0.8)
                bottom += middle[0]
        else:
            axes.stackplot(iterations, middles, labels=labels, colors=colors, alpha=0.8, linewidth=0)
    _scale(axes, totals, from_zero=True, unit=" s")
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    if len(runs) == 1:
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize=8, ncols=3, loc="upper left", frameon=False)
    elif any("seconds_data" in run.train for run in runs):
        _note(axes, "solid: all, dotted: waiting for data")


def _draw_smoothed(axes: Axes, curve: Curve, color: str, faintness: float, label: str | None = None) -> None:
    """The values faintly, or their range where there are too many, and their running median."""
    finite = curve.finite
    if len(finite.values):
        reduced = reduce_curve(finite)
        if len(finite.values) < MIN_SMOOTHED:
            _draw_line(axes, reduced.iterations, reduced.middle, color, label)
        else:
            if faintness and reduced.size == 1:
                axes.plot(reduced.iterations, reduced.middle, color=color, alpha=1.5 * faintness, linewidth=0.7)
            elif faintness:
                ends = reduced.low, reduced.high
                axes.fill_between(reduced.iterations, *ends, color=color, alpha=faintness, linewidth=0)
            smoothed, width = smooth(reduced.middle)
            median = f"{label} (median of {width * reduced.size:,} values)" if label else None
            axes.plot(reduced.iterations, smoothed, color=color, linewidth=1.8, label=median)
    lost = curve.lost
    if len(lost):
        chosen = np.unique(np.linspace(0, len(lost) - 1, MAX_POINTS).astype(int))
        axes.plot(
            lost[chosen],
            np.full(len(chosen), 0.98),
            "x",
            color="C3" if label else color,
            markersize=5,
            transform=axes.get_xaxis_transform(),
            label=f"not finite ({len(lost):,})" if label else None,
        )


def _draw_line(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, label: str | None = None) -> None:
    marker = "o" if len(x) < MIN_SMOOTHED else ""
    axes.plot(x, y, color=color, linewidth=1.5, marker=marker, markersize=4, label=label)


def _draw_steps(axes: Axes, curve: Curve, color: str) -> None:
    """A value that stays until it is set again: the points where it changes suffice."""
    values = curve.values
    if len(values):
        kept = np.ones(len(values), bool)
        kept[1:-1] = (values[1:-1] != values[:-2]) | (values[1:-1] != values[2:])
        changes = Curve(curve.iterations[kept], values[kept])
        if len(changes.values) > 4 * MAX_POINTS:  # a schedule that changes in every step
            reduced = reduce_curve(changes)
            axes.plot(reduced.iterations, reduced.middle, color=color, linewidth=1.5)
        else:
            marker = "o" if len(values) < MIN_SMOOTHED else ""
            axes.step(*changes, where="post", color=color, linewidth=1.5, marker=marker, markersize=4)


def _scale(
    axes: Axes, shown: Iterable[np.ndarray], from_zero: bool = False, clips: bool = True, unit: str = ""
) -> None:
    scale = choose_scale(shown, from_zero, clips)
    if scale is None:
        return
    if scale.logarithmic:
        _set_logarithmic(axes, scale.top / scale.bottom)
    else:
        axes.yaxis.set_major_formatter(_compact)
    axes.set_ylim(scale.bottom, scale.top)
    if scale.left_out:
        _note(axes, scale.left_out + unit)


def _set_logarithmic(axes: Axes, ratio: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_compact)
    if ratio < 1e3:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(_compact)
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())


def _set_iterations(axes: Axes, runs: Sequence[RunCurves]) -> None:
    """The ends and ticks of the horizontal axis, which all panels share."""
    from matplotlib.ticker import MaxNLocator

    curves = [curve for run in runs for curve in (*run.train.values(), *run.validation.values())]
    first = min(int(curve.iterations.min()) for curve in curves)
    last = max(int(curve.iterations.max()) for curve in curves)
    margin = max(0.01 * (last - first), 0.0 if last > first else 1.0)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter(_compact)


def _compact(value: float, position: float | None = None) -> str:
    """A number for an axis: 0.0001, 150, 20k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _finish_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _note(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="right", fontsize=8, color="0.4")


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="0.9")


def _legend_of_runs(figure: Figure, runs: Sequence[RunCurves]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=_color(i), linewidth=2.5) for i in range(len(runs))]
    lines += [Line2D([], [], color="0.4", linewidth=1.2, linestyle="--", marker="o", markersize=4)]
    # matplotlib leaves out labels that begin with an underscore.
    labels = [run.name if not run.name.startswith("_") else f" {run.name}" for run in runs] + ["validation"]
    legend = figure.legend(lines, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
