"""The report of an evaluation: report.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from .reading_faults import LEAST_RUN, OUTLIER

SHOWN = 20
"""Rows of a table of single sentences; report.json has all."""


def markdown(results: Mapping[str, Any]) -> str:
    voices = results["voices"]
    machine = results["machine"]
    sections = [
        f"Seed {results['seed']}, {results['recogniser']}, torch {machine['torch']}, commit {machine['commit']}.",
        _word_errors(voices),
        *(_hard(of) for of in voices),
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
            ("category", "sentences", "first attempt", "after retries"),
            [(name, row["sentences"], row["first"], row["left"]) for name, row in hard["categories"].items()],
        )
    )
    errors = hard["word_errors"]
    if errors is not None:
        parts.append(
            f"The recogniser errs on {errors['rate']:.3f} of {errors['words']} words. In {checks['lost']} sentences it "
            f"lost {LEAST_RUN} or more words in a row, in {checks['added']} it added as many."
        )
    parts.append(f"{checks['pace']} sentences are unusually slow or fast (modified z-score above {OUTLIER}).")
    suspicious = [row for row in hard["rows"] if suspicions(row)]
    if suspicious:
        rows = [(row["text"], ", ".join(suspicions(row)), row.get("heard", "")) for row in suspicious]
        parts.append(table(("sentence", "suspicion", "heard"), rows[:SHOWN]))
    return "\n\n".join(parts)


def suspicions(row: Mapping[str, Any]) -> list[str]:
    """Why one would listen to a hard sentence."""
    found = [f"{fault} at first" for fault in row["first"]] + [f"{fault} after retries" for fault in row["left"]]
    found += [f"{row[key]} words {key}" for key in ("lost", "added") if row.get(key, 0) >= LEAST_RUN]
    if abs(row["pace"]) > OUTLIER:
        found.append("slow" if row["pace"] > 0 else "fast")
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _count(rows: Sequence[Mapping[str, Any]], when: str) -> str:
    return str(sum(bool(row[when]) for row in rows))


def _range(ends: Sequence[float], digits: int = 2) -> str:
    return " to ".join(f"{end:.{digits}f}" for end in ends)
