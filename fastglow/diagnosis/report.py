"""The report of `fastglow doctor`: lines of text, or an object for JSON."""

import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from fastglow._version import __version__

from .findings import Check, Finding

Results = Iterable[tuple[Check, list[Finding]]]

_NAME_WIDTH = 30


def as_lines(results: Results, statuses: Counter[str]) -> Iterator[str]:
    """Yields the report's lines as the results come, and counts findings by status in `statuses`."""
    yield f"fastglow {__version__}"
    section = None
    for check, findings in results:
        if check.section != section and findings:
            section = check.section
            yield f"\n{section}"
        for finding in findings:
            statuses[finding.status] += 1
            yield f"  {finding.status:<8} {finding.name:<{_NAME_WIDTH}} {finding.detail}"
            if finding.remedy:
                yield f"  {'':<8} {'':<{_NAME_WIDTH}} -> {finding.remedy}"
    yield "\n" + ", ".join(f"{n} {status}" for status, n in sorted(statuses.items()))


def as_object(results: Results, statuses: Counter[str]) -> dict[str, Any]:
    """The report for JSON; counts findings by status in `statuses`."""
    findings = [
        {
            "section": check.section,
            "name": finding.name,
            "status": finding.status,
            "detail": finding.detail,
            "remedy": finding.remedy or None,
        }
        for check, found in results
        for finding in found
    ]
    statuses.update(str(finding["status"]) for finding in findings)
    return {
        "fastglow": __version__,
        "python": platform.python_version(),
        "failed": statuses["failed"],
        "findings": findings,
    }
