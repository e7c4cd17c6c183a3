"""What checks find, and what a check is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "skipped"]

OPEN_AN_ISSUE = "open an issue with this output"


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        name: of what was looked at.
        status: only 'failed' makes the command fail.
        detail: what was found; one line.
        remedy: what to do about it; every failure has one.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.status == "failed" and not self.remedy:
            raise ValueError(f"the failure of {self.name} has no remedy")


@dataclass(frozen=True)
class Check:
    """A call that returns findings; it and its arguments can be pickled.

    Attributes:
        section: of the report.
        name: of the finding if the call raises, hangs or ends its process.
        seconds: after which it counts as hanging.
        remedy: for those three.
    """

    section: str
    name: str
    function: Callable[..., list[Finding]]
    arguments: tuple = ()
    seconds: float = 60.0
    remedy: str = OPEN_AN_ISSUE

    def failed(self, detail: str) -> Finding:
        return Finding(self.name, "failed", one_line(detail), remedy_for(detail) or self.remedy)


# Parts of messages, whatever check they come from.
_REMEDIES = {
    "FASTGLOW_BACKEND": "unset FASTGLOW_BACKEND",
    "Failed to find C compiler": "apt install gcc",
    "Python.h": "apt install python3-dev, the headers of this Python",
    "out of memory": "end other programs, or free memory in them",
    "No space left": "free disk space, or set TMPDIR and TRITON_CACHE_DIR to folders on another disk",
    "no kernel image": "install a torch that was built for this GPU",
}


def remedy_for(message: str) -> str | None:
    """The remedy for a message of torch, Triton or the system, if it is a known one."""
    return next((remedy for part, remedy in _REMEDIES.items() if part in message), None)


def one_line(text: str, most: int = 300) -> str:
    """The text without line breaks and surplus spaces, and no longer than `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."
