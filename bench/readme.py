"""The parts of README.md that programs write."""

from pathlib import Path

from fastglow.files import replacing

from .environment import ROOT

README = ROOT / "bench" / "README.md"


def write_between(path: Path, start: str, end: str, content: str) -> None:
    """Replaces what stands between two lines of a file; at its end if they are not there yet."""
    text = path.read_text(encoding="utf-8")
    section = f"{start}\n\n{content}\n\n{end}"
    if start in text and end in text:
        before, _, rest = text.partition(start)
        text = before + section + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
