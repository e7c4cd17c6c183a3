"""Markdown as chat models write it, as text to be spoken. Every step takes one pass, in linear time."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from fastglow.text.emoji import begins_with_emoji, without_emoji
from fastglow.text.markdown_inline import Links, inline
from fastglow.text.pauses import mark_spans

# A fenced block in one of these languages is spoken; code is not.
_PROSE = frozenset("markdown md text txt plaintext plain".split())
_FENCE = re.compile(r"\s{0,99}(?P<marks>`{3,99}|~{3,99})[ \t]*(?P<language>[\w+#.-]{0,40})[^`\n]*\Z")
_QUOTE = re.compile(r"\s{0,99}>(?![\d=])[ \t]?")
_BULLET = re.compile(r"\s{0,99}[-*+•](?:[ \t]{1,99}(?:\[[ xX]\][ \t]{1,9})?|\Z)")
_NUMBERED = re.compile(r"\s{0,99}(\d{1,9})[.)](?:[ \t]|\Z)")
_HEADING = re.compile(r"\s{0,3}#{1,6}(?:[ \t]{1,99}|\Z)")
_CLOSING_MARKS = re.compile(r"(?:\A|(?<=[ \t]))#{1,99}\Z")
_CALLOUT = re.compile(r"\[!([A-Za-z]{1,20})\]\s*\Z")
_FOOTNOTE = re.compile(r"\s{0,3}\[\^[^\s\[\]]{1,99}\]:[ \t]*")
_ADDRESS = re.compile(r"<?[a-z]{2,9}://\S{1,2000}\Z", re.IGNORECASE)
_DEFINITION = re.compile(
    r"\s{0,3}\[(?P<label>[^\[\]^][^\[\]]{0,998})\]:[ \t]*"
    r"(?:<[^<>]{1,2000}>|(?:[A-Za-z][A-Za-z0-9+.-]{0,20}:|[/#]|\.{1,2}/|[\w-]{1,63}\.\w)\S{0,2000})"
    r"(?:[ \t]+[\"'(].{0,999})?\s*\Z"
)
_DELIMITERS = re.compile(r"[ \t|:-]+\Z")
_CELL_END = re.compile(r"(?<!\\)\|")
_PHONES = re.compile(r"\{[A-Za-z0-9\s]{1,999}\}")

# Control characters that stand around the number of what is left as it is.
_OPEN, _CLOSE = "\x02", "\x03"
_HIDDEN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_NO_MARKERS = str.maketrans({_OPEN: " ", _CLOSE: " "})


class _Block(NamedTuple):
    """Part of a text that ends a sentence; cells of a table's row, or one text."""

    cells: list[str]


def without_markdown(text: str) -> str:
    """What a listener should hear of Markdown; blank lines stand where a block ends.

    Headings, list items, quotes and cells of tables keep their text, numbered items their numbers; emphasis,
    strikethrough and inline code lose their marks; links and images keep their text. Dropped are fenced code (but not
    fenced prose: ``text``, ``markdown``), rules, addresses of links, references to footnotes, and emoji. Pause marks,
    ``{ARPAbet}`` and HTML are left to the engine. What only looks like Markdown stays: ``2 * 3 * 4``, ``snake_case``,
    ``#5``, ``C#``.
    """
    kept: list[str] = []
    blocks = list(_blocks(_hide(text, kept)))
    links = Links(label for block in blocks if (label := _label(block)))
    spoken = []
    for block in blocks:
        if _label(block):
            continue
        cells = [cell for raw in block.cells if (cell := without_emoji(inline(raw, links)).strip())]
        if cells:
            spoken.append(", ".join(cells))
    return _HIDDEN.sub(lambda match: kept[int(match[1])], "\n\n".join(spoken))


def _hide(text: str, kept: list[str]) -> str:
    """Puts a number in the place of each pause mark and group of phones, which go into `kept`."""
    pieces, position = [], 0
    spans = [*mark_spans(text), *(match.span() for match in _PHONES.finditer(text))]
    for start, end in sorted(spans):
        is_link = text[start] == "[" and text.startswith("(", end) and text[start + 1 : end - 1].strip().isalpha()
        if start < position or is_link:
            continue
        pieces += [text[position:start].translate(_NO_MARKERS), f"{_OPEN}{len(kept)}{_CLOSE}"]
        kept.append(text[start:end])
        position = end
    return "".join([*pieces, text[position:].translate(_NO_MARKERS)])


def _label(block: _Block) -> str | None:
    """Of a link's definition."""
    found = _DEFINITION.match(block.cells[0]) if len(block.cells) == 1 else None
    return found["label"] if found else None


def _blocks(text: str) -> Iterator[_Block]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    paragraph: list[str] = []
    fences: list[str] = []  # marks of those that are open, around prose but for the last
    in_code = in_list = in_table = False

    def ended() -> Iterator[_Block]:
        if paragraph:
            yield _Block(["\n".join(paragraph)])
            paragraph.clear()

    for i, line in enumerate(lines):
        start, begins = _prefix(line)
        content = line[start:].rstrip()
        fence = _FENCE.match(content)
        if fences and fence and not fence["language"] and fence["marks"].startswith(fences[-1]):
            yield from ended()
            fences.pop()
            in_code = False
            continue
        if in_code:
            continue
        if fence:
            yield from ended()
            fences.append(fence["marks"])
            in_code = fence["language"].lower() not in _PROSE
            continue
        if not content or _is_rule(content):
            yield from ended()
            in_table = False
            in_list = in_list and not content
            continue
        numbered = _NUMBERED.match(content)
        if numbered and paragraph and not in_list and numbered[1] != "1":
            numbered = None
        in_list = in_list or bool(numbered) or begins
        if _is_table(lines, i, content):
            in_table = True
        if in_table and "|" in content:
            yield from ended()
            if not _DELIMITERS.match(content):
                yield _Block(_CELL_END.split(content))
            continue
        in_table = False
        heading, footnote, callout = (one.match(content) for one in (_HEADING, _FOOTNOTE, _CALLOUT))
        defined = _DEFINITION.match(content)
        if begins or numbered or heading or footnote or callout or defined or begins_with_emoji(content):
            yield from ended()
        if heading:
            yield _Block([_CLOSING_MARKS.sub("", content[heading.end() :])])
        elif callout:
            yield _Block([callout[1].capitalize()])
        elif footnote:
            note = content[footnote.end() :]
            paragraph.append("" if _ADDRESS.match(note) else note)
        elif defined:
            yield _Block([content])
        else:
            paragraph.append(content.removesuffix("\\").strip())
    yield from ended()


def _prefix(line: str) -> tuple[int, bool]:
    """The length of a line's quotation marks and bullets, and whether it has a bullet."""
    position, has_bullet = 0, False
    while match := _QUOTE.match(line, position) or _BULLET.match(line, position):
        if match[0].lstrip()[0] != ">":
            if _is_rule(line[position:] if not has_bullet else ""):
                break
            has_bullet = True
        position = match.end()
    return position, has_bullet


def _is_rule(line: str) -> bool:
    marks = "".join(line.split())
    return len(marks) > 2 and marks[0] in "-*_=" and marks == marks[0] * len(marks)


def _is_table(lines: list[str], i: int, content: str) -> bool:
    if "|" not in content or i + 1 == len(lines):
        return False
    following = lines[i + 1][_prefix(lines[i + 1])[0] :].strip()
    return "|" in following and "-" in following and bool(_DELIMITERS.match(following))
