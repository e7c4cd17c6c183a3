"""The results as a JSON object, and as a table of text made of that object."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .measuring import Measured, Results, Sample

Object = dict[str, Any]


class _Metric(NamedTuple):
    of: Callable[[Sample, int], float]  # a run, samples per second of audio -> its value
    more_is_better: bool = False


_SECONDS = _Metric(lambda run, rate: run.seconds)
_REAL_TIME = _Metric(lambda run, rate: run.outcome.samples / rate / run.seconds, True)
_METRICS: dict[str, dict[str, _Metric]] = {
    "load": {"seconds": _SECONDS},
    "first_sound": {"seconds": _SECONDS},
    "latency": {
        "seconds": _SECONDS,
        "times_real_time": _REAL_TIME,
        "acoustic_seconds_per_frame": _Metric(lambda run, rate: run.outcome.acoustic_seconds / run.outcome.mel_frames),
        "vocoder_seconds_per_audio_second": _Metric(
            lambda run, rate: run.outcome.vocoder_seconds * rate / run.outcome.samples
        ),
    },
    "throughput": {
        "seconds": _SECONDS,
        "samples_per_second": _Metric(lambda run, rate: run.outcome.samples / run.seconds, True),
        "times_real_time": _REAL_TIME,
    },
}


def as_object(results: Results, sample_rate: int, environment: Object) -> Object:
    """Everything, for JSON: times in seconds, memory in bytes.

    Args:
        results: of `Benchmark.run`.
        sample_rate: of the audio, Hz.
        environment: entries to begin with.
    """
    return {
        **environment,
        "sample_rate": sample_rate,
        "seconds": results.seconds,
        "first_call_seconds": results.first_call_seconds,
        "implementations": results.implementations,
        "measurements": [_measurement(found, sample_rate) for found in results.measured],
        "left_out": [
            {"measure": case.measure, "title": case.title, "reason": reason} for case, reason in results.left_out
        ],
    }


def _measurement(found: Measured, rate: int) -> Object:
    case, passage = found.case, found.case.passage
    entry: Object = {"measure": case.measure, "title": case.title}
    if passage is not None:
        entry |= {
            "characters": len(passage.texts[0]),
            "batch_size": len(passage.texts),
            "text": passage.texts[0],
            "seed": passage.seed,
            "peak_bytes": {name: sample.peak_bytes for name, sample in found.warm.items()},
        }
    if case.chooses_seed and passage is not None:
        entry |= {
            "sentences": {name: outcome.sentences for name, outcome in passage.outcomes.items()},
            "attempts": {name: outcome.attempts for name, outcome in passage.outcomes.items()},
            "faulty_sentences": {name: outcome.faulty for name, outcome in passage.outcomes.items()},
        }
    entry["metrics"] = {name: _compared(metric, found, rate) for name, metric in _METRICS[case.measure].items()}
    entry["runs"] = {name: [_run(run, case.measure) for run in runs] for name, runs in found.runs.items()}
    return entry


def _compared(metric: _Metric, found: Measured, rate: int) -> Object:
    """The spread of a metric by implementation, and by what factor the first is better than each other one."""
    values = {name: [metric.of(run, rate) for run in runs] for name, runs in found.runs.items()}
    first, *others = values
    spreads: Object = {name: spread(of) for name, of in values.items()}
    for other in others:
        pairs = zip(values[first], values[other], strict=True)
        ratios = [a / b if metric.more_is_better else b / a for a, b in pairs]
        spreads[f"times_better_than_{other}"] = spread(ratios)
    return spreads


def _run(run: Sample, measure: str) -> Object:
    outcome = run.outcome
    entry: Object = {"seconds": run.seconds}
    if measure != "load":
        entry["samples"] = outcome.samples
    if measure in ("latency", "throughput"):
        entry |= {
            "mel_frames": outcome.mel_frames,
            "acoustic_seconds": outcome.acoustic_seconds,
            "vocoder_seconds": outcome.vocoder_seconds,
        }
    return entry


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles; those of a single value are the value."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * list(values)
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}
