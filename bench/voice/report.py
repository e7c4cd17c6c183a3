"""The report of an evaluation: report.md."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .reading_faults import LEAST_LEAP, LEAST_RUN, OUTLIER

PARTS = ("acoustic", "vocoder", "total")
SHOWN = 20
"""Rows of a table of single sentences; report.json has all."""


def markdown(results: Mapping[str, Any]) -> str:
    voices = results["voices"]
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} thread(s)"
    sections = [
        f"# {', '.join(of['voice'] for of in voices)}",
        f"Seed {results['seed']}, {results['recogniser']}, {where}, torch {machine['torch']}, "
        f"commit {machine['commit']}.",
        _word_errors(voices),
        *(
            section
            for of in voices
            for section in (
                _copies(of, "copies", "Copy synthesis", results["missing"]),
                _copies(of, "teacher_forced", "Teacher-forced mels", results["missing"]),
                _mels(of),
                _prosody(of),
                _artefacts(of),
                _settings(of),
            )
        ),
        _seconds(voices),
        *(_hard(of) for of in voices),
        *(f"## Plots: {of['voice']}\n\n![{of['voice']}]({of['page']})" for of in voices if "page" in of),
        *(f"![Sounds of {of['voice']}]({of['sounds']})" for of in voices if "sounds" in of),
    ]
    return "\n\n".join(section for section in sections if section)


def _word_errors(voices: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for of in voices:
        for source, row in of.get("word_errors", {}).items():
            ratio = (f"{row['ratio']:.2f}", _range(row["ratio_interval"])) if "ratio" in row else ("", "")
            counts = (row[kind] for kind in ("words", "substitutions", "insertions", "deletions"))
            faults = (_count(of["sentences"], "first"), _count(of["sentences"], "left"))
            rows.append(
                (of["voice"], source, f"{row['rate']:.3f}", _range(row["interval"], 3), *counts, *ratio)
                + (faults if source == "synthesis" else ("", ""))
            )
    if not rows:
        return ""
    head = (
        *("voice", "audio", "word error", "95 %", "words", "substituted", "inserted", "deleted"),
        *("over the originals'", "95 %", "faulty at first", "after retries"),
    )
    return "## Word errors\n\n" + table(head, rows)


def _scores(of: Mapping[str, Any], key: str, title: str, head: str, *notes: str) -> str:
    """Scores by source or vocoder."""
    if not of.get(key):
        return ""
    names = list(next(iter(of[key].values())))
    rows = [(source, *(_number(values[name]) for name in names)) for source, values in of[key].items()]
    return "\n\n".join([f"## {title}: {of['voice']}", table((head, *names), rows), *notes])


def _copies(of: Mapping[str, Any], key: str, title: str, missing: Sequence[str]) -> str:
    """Scores of audio beside the recordings whose timing it has."""
    note = (
        "Distances from the recordings, lower is better: log_magnitude and convergence of multi-resolution STFTs, "
        "log_mel of the mel. Higher is better: pesq (wide band), stoi, estoi."
    )
    return _scores(of, key, title, "vocoder", note, *(f"Left out: {line}." for line in missing))


def _mels(of: Mapping[str, Any]) -> str:
    """How smooth mels are."""
    note = (
        "Over the recordings': variance of log-mels and of their Laplacian, in all bands and above 4 kHz, where 1 is "
        "as sharp as they are and less is smoother; sibilance, the level of the strongest tenth above 4 kHz, in dB. "
        "cepstral_distortion is the distance in dB, aligned in time."
    )
    return _scores(of, "mels", "Mels", "mels", note)


def _prosody(of: Mapping[str, Any]) -> str:
    """Pace, pauses and pitch."""
    note = (
        "Of texts of one sentence. Medians: words a second without pauses, seconds of a pause, pitch in Hz, half its "
        "range from the 16th to the 84th percentile in semitones, the pitch at the end of statements and of questions "
        "in semitones over the sentence's. pauses: the mean number within a sentence."
    )
    return _scores(of, "prosody", "Prosody", "source", note)


def _artefacts(of: Mapping[str, Any]) -> str:
    """Hiss, buzz and clicks."""
    if not of.get("artefacts"):
        return ""
    names = ("level", "noise", "buzz", "click")
    rows = [
        (source, sound, *(_number(measured[name]) for name in names))
        for source, sounds in of["artefacts"].items()
        for sound, measured in sounds.items()
    ]
    note = (
        "Copies of silence and of computed vowels. level: RMS in dBFS; noise: between the harmonics, in dB over them; "
        "buzz: swing of the level at the rate of the mel's frames, in dB; click: the largest jump over the usual one."
    )
    return "\n\n".join([f"## Artefacts: {of['voice']}", table(("source", "sound", *names), rows), note])


def _settings(of: Mapping[str, Any]) -> str:
    """WaveGlow's, compared."""
    if not of.get("settings"):
        return ""
    scores = [name for name in of["settings"][0]["copies"] if name in ("log_magnitude", "convergence", "pesq", "estoi")]
    kinds = {"copies": "copy", "teacher_forced": "predicted"}
    artefacts = ("silence", "vowel_noise", "buzz", "click")
    rows = [
        (f"{row['sigma']:g}", f"{row['denoise']:g}")
        + tuple(_number(row[kind][name]) for kind in kinds for name in scores)
        + tuple(f"{row[name]:.1f}" for name in artefacts)
        for row in of["settings"]
    ]
    head = ("sigma", "denoise", *(f"{caption}: {name}" for caption in kinds.values() for name in scores), *artefacts)
    return f"## WaveGlow's settings: {of['voice']}\n\n" + table(head, rows)


def _seconds(voices: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (of["voice"], vocoder, *(f"{seconds[part]:.3f}" for part in PARTS), f"{1 / seconds['total']:.1f}")
        for of in voices
        for vocoder, seconds in of.get("seconds", {}).items()
    ]
    head = ("voice", "vocoder", *PARTS, "times real time")
    return "## Seconds per second of speech\n\n" + table(head, rows) if rows else ""


def _hard(of: Mapping[str, Any]) -> str:
    if "hard" not in of:
        return ""
    hard = of["hard"]
    first, left = hard["faults"]["first"], hard["faults"]["left"]
    checks = hard["checks"]
    parts = [
        f"## Hard sentences: {of['voice']}",
        f"{hard['faulty']['first']} of {hard['sentences']} sentences have a fault in the first attempt, "
        f"{hard['faulty']['left']} after {hard['retries']} retries; one that still runs on is cut after its text.",
    ]
    kinds = sorted({*first, *left})
    if kinds:
        parts.append(
            table(("fault", "first attempt", "after retries"), [(k, first.get(k, 0), left.get(k, 0)) for k in kinds])
        )
    parts.append(
        table(
            ("category", "sentences", "first attempt", "after retries", "word error"),
            [
                (name, row["sentences"], row["first"], row["left"], _number((row["word_errors"] or {}).get("rate")))
                for name, row in hard["categories"].items()
            ],
        )
    )
    parts.append(
        f"In {checks['leap']} sentences attention leaps over {LEAST_LEAP} or more symbols, a short word; in "
        f"{checks['return']} it goes back as many. "
        f"{checks['pace']} sentences are unusually slow or fast (modified z-score above {OUTLIER})."
    )
    errors = hard["word_errors"]
    if errors is not None:
        parts.append(
            f"The recogniser errs on {errors['rate']:.3f} of {errors['words']} words. In {checks['lost']} sentences it "
            f"lost {LEAST_RUN} or more words in a row, in {checks['added']} it added as many."
        )
    suspicious = [row for row in hard["rows"] if suspicions(row)]
    if suspicious:
        rows = [(row["text"], ", ".join(suspicions(row)), row.get("heard", "")) for row in suspicious]
        parts.append(table(("sentence", "suspicion", "heard"), rows[:SHOWN]))
    return "\n\n".join(parts)


def suspicions(row: Mapping[str, Any]) -> list[str]:
    """Why one would listen to a hard sentence."""
    found = [f"{fault} at first" for fault in row["first"]] + [f"{fault} after retries" for fault in row["left"]]
    found += [f"{row[key]} symbols' {key}" for key in ("leap", "return") if row[key] >= LEAST_LEAP]
    found += [f"{row[key]} words {key}" for key in ("lost", "added") if row.get(key, 0) >= LEAST_RUN]
    if abs(row["pace"]) > OUTLIER:
        found.append("slow" if row["pace"] > 0 else "fast")
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _count(rows: Sequence[Mapping[str, Any]], when: str) -> str:
    return str(sum(bool(row[when]) for row in rows))


def _range(ends: Sequence[float], digits: int = 2) -> str:
    return " to ".join(f"{end:.{digits}f}" for end in ends)
