"""Markdown files of the project, and what is read from them: fenced blocks, links, anchors, code spans."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "bench", "kernels", "train", "fastglow", "voices", "tests", ".github")

FILES = sorted({*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))})
# The pages that tell users what to type.
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"```(\w*)$")
_NOT_RUN = re.compile(r"<!-- not run: (.*) -->")
_CODE_SPAN = re.compile(r"(`+)(.+?)\1")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"#{1,6} (.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its fence, and why the tests do not run it, or None."""

    language: str
    text: str
    line: int
    not_run: str | None


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[Block]:
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    start = None
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start = number
        elif start is not None and line == "```":
            fence = _FENCE.fullmatch(lines[start])
            assert fence, f"{name_of(path)}:{start + 1}: {lines[start]!r} must be a fence with one word"
            reason = _NOT_RUN.fullmatch(lines[start - 1]) if start else None
            text = "\n".join(lines[start + 1 : number]) + "\n"
            found.append(Block(fence[1], text, start + 1, reason[1] if reason else None))
            start = None
    assert start is None, f"{name_of(path)}: a block is not closed"
    marks = sum(_NOT_RUN.fullmatch(line) is not None for line in lines)
    assert marks == sum(block.not_run is not None for block in found), f"{name_of(path)}: a mark without its block"
    return found


def prose(path: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def code_spans(path: Path) -> list[str]:
    return [match[2].strip() for match in _CODE_SPAN.finditer(prose(path))]


def links(path: Path) -> list[str]:
    return _LINK.findall(_CODE_SPAN.sub("code", prose(path)))


def anchors(path: Path) -> Iterator[str]:
    """The anchors that GitHub gives to headings; a repeated one is numbered."""
    seen: dict[str, int] = {}
    for line in prose(path).splitlines():
        heading = _HEADING.fullmatch(line)
        if heading:
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            repeated = seen.get(anchor, 0)
            seen[anchor] = repeated + 1
            yield f"{anchor}-{repeated}" if repeated else anchor
