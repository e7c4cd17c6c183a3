"""Draws the report. Needs matplotlib."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastglow.plotting import require_matplotlib

from .texts import BATCH_CHARACTERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

Object = dict[str, Any]

_STYLES = ("-", "--", ":")  # of the implementations


def plot_report(report: Object) -> "Figure":
    """Draws latency and first sound over the length of the text, and throughput over the size of the batch.

    Args:
        report: an object that `report.as_object` has made.

    Returns:
        a matplotlib Figure without a window. Bars show quartiles.

    Raises:
        FastglowError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, report, "latency", "characters", "seconds", "C0", "last sample")
    _draw(left, report, "first_sound", "characters", "seconds", "C1", "first sound")
    _finish(left, "from text to sound", "characters", "s")
    _draw(right, report, "throughput", "batch_size", "samples_per_second", "C2", "batch")
    _finish(right, f"throughput, {BATCH_CHARACTERS} characters each", "texts in the batch")
    right.set_ylabel("samples per second")
    rate = report["sample_rate"]
    if right.lines:
        real_time = right.secondary_yaxis("right", functions=(lambda y: y / rate, lambda y: y * rate))
        real_time.set_ylabel("x real time")
        _set_ticks(real_time.yaxis, lambda value, position: f"{value:g}")
    where = report["gpu"] or f"{report['processor']}, {report['threads']} thread(s)"
    what = f"{report['voice']}: {report['vocoder']}, {report['dtype']}"
    figure.suptitle(f"{what} on {where}", fontsize=11, parse_math=False)
    return figure


def _draw(axes: "Axes", report: Object, measure: str, x: str, metric: str, color: str, title: str) -> None:
    entries = [entry for entry in report["measurements"] if entry["measure"] == measure]
    if not entries:
        return
    at = [entry[x] for entry in entries]
    for name, style in zip(report["implementations"], _STYLES, strict=False):
        spreads = [entry["metrics"][metric][name] for entry in entries]
        axes.errorbar(
            at,
            [spread["median"] for spread in spreads],
            yerr=[
                [spread["median"] - spread["lower_quartile"] for spread in spreads],
                [spread["upper_quartile"] - spread["median"] for spread in spreads],
            ],
            color=color,
            linestyle=style,
            marker="o",
            markersize=4,
            capsize=3,
            label=f"{title}, {name}" if len(report["implementations"]) > 1 else title,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, labels=list(map(str, at)))
    axes.xaxis.minorticks_off()
    axes.set_yscale("log")


def _finish(axes: "Axes", title: str, label: str, unit: str = "") -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, loc="left", fontsize=10)
    if not axes.lines:
        axes.text(0.5, 0.5, "left out", ha="center", va="center", color="0.5")
        axes.set_axis_off()
        return
    axes.set_xlabel(label)
    _set_ticks(axes.yaxis, EngFormatter(unit))
    axes.grid(True, which="both", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _set_ticks(axis: "Axis", formatter: "Formatter | Callable[[float, float], str]") -> None:
    """At 1, 2 and 5 of every decade: a logarithmic axis may have no power of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(formatter)
