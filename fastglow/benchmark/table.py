"""The report as aligned text."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from .texts import BATCH_CHARACTERS

Object = dict[str, Any]


class _Unit(NamedTuple):
    name: str
    size: float  # in the unit of the JSON


_TIMES = (_Unit("s", 1.0), _Unit("ms", 1e-3), _Unit("us", 1e-6))
_RATES = (_Unit("M", 1e6), _Unit("k", 1e3), _Unit("", 1.0))
_SIZES = (_Unit("GB", 1e9), _Unit("MB", 1e6), _Unit("kB", 1e3))

_WHOLE_CALLS = ("seconds", "samples_per_second")  # the metrics beside which the table has the real-time factor


class _Row(NamedTuple):
    label: str
    metric: Object  # spreads, or single values, by implementation
    units: tuple[_Unit, ...]
    real_time: Object | None
    n_runs: int


def as_lines(report: Object) -> list[str]:
    """The lines of a table, of an object that `report.as_object` has made."""
    first, *others = report["implementations"]
    header = ["", first, "quartiles", "x real time", "runs"]
    for other in others:
        header += [other, "quartiles", "times faster", "quartiles"]
    cells = [header] + [_cells(row, first, others) for row in _rows(report["measurements"], first)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return [*_header(report), "", *(line.rstrip() for line in table), "", *_notes(report)]


def _header(report: Object) -> Iterator[str]:
    where = report["gpu"] or "the CPU"
    yield f"{report['voice']}: {report['vocoder']}, {report['dtype']}, on {where}"
    yield f"{report['processor']}, {report['threads']} thread(s)"
    versions = ", ".join(f"{name} {report[name]}" for name in ("fastglow", "torch", "triton", "python"))
    yield f"{versions}; {report['date']}"


def _rows(measurements: list[Object], first: str) -> Iterator[_Row]:
    def of(measure: str) -> list[Object]:
        return [entry for entry in measurements if entry["measure"] == measure]

    def row(entry: Object, metric: str, units: tuple[_Unit, ...], label: str) -> _Row:
        metrics = entry["metrics"]
        real_time = metrics.get("times_real_time") if metric in _WHOLE_CALLS else None
        return _Row(label, metrics[metric], units, real_time, len(entry["runs"][first]))

    for measure in ("latency", "first_sound"):
        yield from (row(entry, "seconds", _TIMES, entry["title"]) for entry in of(measure))
    for entry in of("throughput"):
        yield row(entry, "samples_per_second", _RATES, f"{entry['title']}, samples per second")
    for entry in of("latency")[-1:]:
        yield row(entry, "acoustic_seconds_per_frame", _TIMES, "text to mel, per mel frame")
        yield row(entry, "vocoder_seconds_per_audio_second", _TIMES, "vocoder, per second of audio")
    for entry in of("load"):
        yield row(entry, "seconds", _TIMES, entry["title"])
    for entry in of("latency")[-1:] + of("throughput")[-1:]:
        if entry["peak_bytes"][first] is not None:
            what = f"{entry['characters']} characters" if entry["measure"] == "latency" else entry["title"]
            yield _Row(f"peak memory, {what}", entry["peak_bytes"], _SIZES, None, 1)


def _cells(row: _Row, first: str, others: list[str]) -> list[str]:
    real_time = _digits(row.real_time[first]["median"]) if row.real_time else ""
    cells = [row.label, *_amount(row.metric[first], row.units), real_time, str(row.n_runs)]
    for other in others:
        cells += _amount(row.metric[other], row.units) if other in row.metric else ["", ""]
        ratio = row.metric.get(f"times_better_than_{other}")
        cells += [_digits(ratio["median"]), _range(ratio, 1.0)] if ratio else ["", ""]
    return cells


def _amount(value: Object | float, units: tuple[_Unit, ...]) -> list[str]:
    """Median with unit, and quartiles."""
    median = value["median"] if isinstance(value, dict) else value
    unit = next((unit for unit in units if median >= unit.size), units[-1])
    text = f"{_digits(median / unit.size)} {unit.name}"
    return [text.rstrip(), _range(value, unit.size) if isinstance(value, dict) else ""]


def _range(spread: Object, size: float) -> str:
    return f"{_digits(spread['lower_quartile'] / size)} - {_digits(spread['upper_quartile'] / size)}"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _notes(report: Object) -> Iterator[str]:
    if report["note"]:
        yield report["note"]
    yield "medians and quartiles of the runs; x real time: seconds of audio per second"
    if any(entry["measure"] == "throughput" for entry in report["measurements"]):
        yield f"batches: texts of {BATCH_CHARACTERS} characters"
    reserved = report["reserved_bytes"]
    in_all = "" if reserved is None else f"; reserved at the end: {' '.join(_amount(reserved, _SIZES)).strip()}"
    yield f"memory: {report['memory_method']}{in_all}"
    for entry in report["measurements"]:
        for name in entry.get("attempts", ()):
            sentences, attempts, faulty = (entry[key][name] for key in ("sentences", "attempts", "faulty_sentences"))
            if attempts > sentences or faulty:
                yield (
                    f"{entry['title']}, {name}: {attempts} attempts at {sentences} sentence(s), {faulty} still faulty; "
                    "the times include them all"
                )
    if report["left_out"]:
        yield f"left out of {report['budget_seconds']:g} s (--seconds):"
        yield from (f"  {entry['title']}: {entry['reason']}" for entry in report["left_out"])
