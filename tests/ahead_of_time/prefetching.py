"""What a kernel loads between its arrival at a grid barrier and its wait there, in PTX and in machine code."""

import re
from typing import NamedTuple


class Syntax(NamedTuple):
    arrival: str
    poll: str
    load: str  # of 8 or 16 bytes a thread


PTX = Syntax(r"\b(?:red|atom)\.[\w.]*\brelease\b", r"\bld\.global\.[\w.]*acquire\b", r"\bld\.global\.v[24]\.b32\b")
SASS = Syntax(r"\bREDG?\.E\.ADD\.STRONG\b", r"\bLDG\.E\.STRONG\b", r"\bLDG\.E\.(?:64|128) R(\d+),")


def waits_with_loads(code: str, syntax: Syntax) -> list[int]:
    """For every barrier, how many wide loads stand between the arrival and the first poll."""
    counts, count = [], None
    for line in code.splitlines():
        if re.search(syntax.arrival, line):
            count = 0
        elif count is not None and re.search(syntax.poll, line):
            counts.append(count)
            count = None
        elif count is not None:
            count += re.search(syntax.load, line) is not None
    return counts


def used_before_the_poll(sass: str) -> list[str]:
    """Instructions that wait for such a load, because they read its registers, before the first poll."""
    found: list[str] = []
    loading: set[int] | None = None
    for line in sass.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line).strip()
        if re.search(SASS.arrival, line):
            loading = set()
        elif re.search(SASS.poll, line):
            loading = None
        elif re.match(r"BRA\b", line):
            loading = loading and set()  # the next instruction is on another path
        elif loading is not None:
            _, _, sources = line.partition(",")
            if loading & {int(register) for register in re.findall(r"\bR(\d+)\b", sources)}:
                found.append(line)
            if load := re.search(SASS.load, line):
                first = int(load[1])
                loading |= set(range(first, first + (4 if "LDG.E.128" in line else 2)))
    return found
