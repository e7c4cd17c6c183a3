"""The report of an evaluation: report.md."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    "| | word error | 95 % | words | substituted | inserted | deleted | over the originals' | 95 % |",
    "|" + "---|" * 9,
)


def candidate_line(row: Mapping[str, Any]) -> str:
    return f"{row['voice']}: word error {row['rate']:.3f} over {row['words']} words"


def markdown(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    lines = [
        f"Seed {results['seed']}, {results['recogniser']}, torch {machine['torch']}, commit {machine['commit']}.",
        "",
        *HEAD,
    ]
    if "candidates" in results:
        lines += [_errors(row["voice"], row) for row in results["candidates"]]
    else:
        lines += [_errors(source, row) for source, row in results["word_errors"].items()]
    return "\n".join(lines)


def _errors(name: str, row: Mapping[str, Any]) -> str:
    ratio = (f"{row['ratio']:.2f}", _interval(row["ratio_interval"])) if "ratio" in row else ("", "")
    counts = (str(row[kind]) for kind in ("words", "substitutions", "insertions", "deletions"))
    cells = (name, f"{row['rate']:.3f}", _interval(row["interval"], 3), *counts, *ratio)
    return f"| {' | '.join(cells)} |"


def _interval(ends: Sequence[float], digits: int = 2) -> str:
    return " to ".join(f"{end:.{digits}f}" for end in ends)
