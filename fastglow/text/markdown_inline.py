"""Emphasis, links, code and escapes inside a block of Markdown."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?P<escape>\\[!-/:-@\[-`{-~])|(?P<code>`+)|(?P<note>\[\^[^\s\[\]]{1,99}\])|(?P<open>!?\[)|(?P<close>\])"
    r"|<(?P<address>[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]{0,2000}|[\w.+-]{1,64}@[\w.-]{1,253})>"
    r"|(?P<tag><(?:/?[A-Za-z]|!--)[^<>]{0,4000}>)|(?P<mark>\*+|_+|~+)"
)
_TARGET = re.compile(
    r"\([ \t\n]{0,9}(?:<[^<>\n]{0,2000}>|[^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,2000}){0,9})"
    r"(?:[ \t\n]{1,9}(?:\"[^\"]{0,999}\"|'[^']{0,999}'|\([^()]{0,999}\)))?[ \t\n]{0,9}\)"
)
_REFERENCE = re.compile(r"\[([^\[\]]{0,999})\]")
# Longer runs are blanks to fill in, or rules.
_MOST_MARKS = 3
_LONGEST_LABEL = 999


class Links:
    """The labels that a text defines: ``[label]: https://...``."""

    def __init__(self, labels: Iterable[str]):
        self._labels = {self._normal(label) for label in labels}

    def __contains__(self, label: str) -> bool:
        return self._normal(label) in self._labels

    @staticmethod
    def _normal(label: str) -> str:
        return " ".join(label.lower().split())


@dataclass
class _Run:
    """Marks of emphasis."""

    start: int
    length: int
    opens: bool
    closes: bool
    left: int = 0  # not yet paired

    def __post_init__(self) -> None:
        self.left = self.length


def inline(text: str, links: Links) -> str:
    """A block's text without its inline marks: ``"**See** [this](x.html)"`` -> ``"See this"``."""
    edits: list[tuple[int, int, str]] = []
    runs: list[_Run] = []
    opened: list[tuple[int, int]] = []
    ticks = defaultdict(list)
    for run in re.finditer("`+", text):
        ticks[len(run[0])].append(run.start())
    position = 0
    while match := _TOKEN.search(text, position):
        start, position = match.span()
        kind = match.lastgroup
        if kind == "escape":
            edits.append((start, position, match[0][1]))
        elif kind == "code":
            n = len(match[0])
            following = bisect_right(ticks[n], start)
            if following < len(ticks[n]):
                end = ticks[n][following]
                edits.append((start, end + n, text[position:end].strip()))
                position = end + n
        elif kind == "note":
            edits.append((start, position, ""))
        elif kind == "address":
            edits.append((start, position, match["address"]))
        elif kind == "open":
            opened.append((start, position))
        elif kind == "close" and opened:
            first, behind = opened.pop()
            end = _end_of_link(text, behind, start, links)
            if end:
                edits += [(first, behind, ""), (start, end, "")]
                position = end
        elif kind == "mark":
            runs.append(_run(text, start, position))
    edits += _pairs(text, runs)
    pieces, position = [], 0
    for start, end, replacement in sorted(edits):
        pieces += [text[position:start], replacement]
        position = end
    return "".join([*pieces, text[position:]])


def _end_of_link(text: str, start: int, end: int, links: Links) -> int:
    """Where a link ends whose words in brackets are text[start:end]; 0 if they are no link's."""
    behind = end + 1
    if target := _TARGET.match(text, behind):
        return target.end()
    reference = _REFERENCE.match(text, behind)
    if reference and reference[1].strip():
        return reference.end() if reference[1] in links else 0
    if end - start < _LONGEST_LABEL and text[start:end] in links:
        return reference.end() if reference else behind
    return 0


def _run(text: str, start: int, end: int) -> _Run:
    """CommonMark's rule, but that marks inside words and between factors are none, and full-width text needs no space.

    https://spec.commonmark.org/0.31.2/#emphasis-and-strong-emphasis
    """
    before, behind = text[start - 1 : start] or " ", text[end : end + 1] or " "
    opens, closes = not behind.isspace(), not before.isspace()
    length, mark = end - start, text[start]
    if length > _MOST_MARKS or (mark == "~" and length != 2):
        return _Run(start, length, False, False)
    if mark == "_":
        return _Run(start, length, opens and not before.isalnum(), closes and not behind.isalnum())
    if mark == "*" and length == 1:
        opens = opens and not (_is_letter(before) or before in ")]}")
        closes = closes and not (_is_letter(behind) or behind in "([{")
    elif before.isdigit() and behind.isdigit():
        opens = closes = False
    return _Run(start, length, opens, closes)


def _is_letter(character: str) -> bool:
    """Or digit, of a script with spaces between words."""
    return character.isalnum() and character < "\u2e80"


def _pairs(text: str, runs: list[_Run]) -> list[tuple[int, int, str]]:
    """The edits that remove paired marks."""
    openers: dict[str, list[_Run]] = defaultdict(list)
    for run in runs:
        waiting = openers[text[run.start]]
        while run.closes and run.left and waiting:
            opener = waiting[-1]
            n_paired = min(opener.left, run.left)
            opener.left, run.left = opener.left - n_paired, run.left - n_paired
            if not opener.left:
                waiting.pop()
        if run.opens and run.left:
            waiting.append(run)
    return [(run.start, run.start + run.length - run.left, "") for run in runs if run.left < run.length]
