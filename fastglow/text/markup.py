"""Removes HTML and SSML from a text: tags, comments, entities. Each takes one pass, in linear time."""

import html
import re
from bisect import bisect_right
from collections.abc import Callable

from fastglow.text.arpabet import arpabet_spans, map_outside_arpabet
from fastglow.text.pauses import mark_of_break

# These elements end a line of the page, and with it a sentence.
_BLOCKS = frozenset(
    """
    address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption figure
    footer form h1 h2 h3 h4 h5 h6 head header hr html legend li main nav ol option p pre section select summary table
    speak tbody tfoot thead title tr ul
    """.split()
)
_CELLS = frozenset(["td", "th"])
_INLINE = frozenset(
    """
    a abbr acronym audio b bdi bdo big button canvas cite code col colgroup data del dfn em embed font i iframe img
    input ins kbd label link mark meta meter noscript object output param path picture q rp rt ruby s samp script small
    source span strike strong style sub sup svg template textarea time track tt u var video wbr
    """.split()
)
# Of SSML, and prefixes of vendors' own elements.
_SSML = frozenset("break desc emphasis lang lexicon metadata phoneme prosody say-as voice w".split())
_VENDORS = frozenset("amazon google ibm mstts ssml".split())
# Elsewhere these are likelier to be a writer's placeholders.
_IN_DOCUMENTS = frozenset("lookup media par seq token".split())
_DOCUMENT = re.compile(r"<speak[\s>]", re.IGNORECASE)
_NAMES = _BLOCKS | _CELLS | _INLINE | _SSML
_UNSPOKEN = ("script", "style", "desc", "metadata")

_VALUE = r"\s{0,9}=\s{0,9}(?:\"[^\"<]{0,4000}\"|'[^'<]{0,4000}'|[^\s\"'<>=`]{1,4000})"
_ATTRIBUTE = rf"\s{{1,99}}[A-Za-z_:@][\w:.@-]{{0,99}}(?:{_VALUE})?"
# "a <b and c> d" is a comparison: in one-letter tags, attributes must have values.
_TAG = re.compile(
    rf"<(?:/(?P<closed>[A-Za-z][A-Za-z0-9:-]{{0,39}})\s{{0,99}}"
    rf"|(?P<letter>[A-Za-z])(?:\s{{1,99}}[A-Za-z_:@][\w:.@-]{{0,99}}{_VALUE}){{0,99}}\s{{0,99}}/?"
    rf"|(?P<opened>[A-Za-z][A-Za-z0-9:-]{{1,39}})(?:{_ATTRIBUTE}){{0,99}}\s{{0,99}}/?)>"
    r"|<!(?P<declared>doctype)\b[^<>]{0,999}>|<\?xml\b[^<>]{0,999}>|(?P<comment><!--)",
    re.IGNORECASE,
)
# The most common ones also occur without their semicolon.
_ENTITY = re.compile(
    r"&(?:(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
    r"|#(?:\d{2,5}|[xX][0-9A-Fa-f]{2,4})(?![\w;])|#(?:39|34|8217)(?=[A-Za-z])|(?:amp|quot|lt|gt|nbsp)(?![\w;=]))"
)
_NO_BRACES = str.maketrans("{}", "()")
_EXPONENT = re.compile(r"<sup>\s?([0-9]{1,3})\s?</sup>", re.IGNORECASE)
_ALIAS = re.compile(r"\salias\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", re.IGNORECASE)
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# Text may have been escaped more than once.
_MAX_ESCAPES = 3

# Control characters that mark line ends and table cells.
_END, _CELL = "\x00", "\x01"
_NO_MARKERS = str.maketrans({_END: " ", _CELL: " "})
_ENDS = re.compile(
    rf"(?<![\s{_END}{_CELL}])\s*[{_END}{_CELL}][\s{_END}{_CELL}]*|\A\s*[{_END}{_CELL}][\s{_END}{_CELL}]*"
)
_MARKED = frozenset(".,;:!?…—")
_FINAL = frozenset(".!?…")


def markup_spans(text: str) -> tuple[list[tuple[int, int]], list[int]]:
    """``(start, end)`` of unspoken parts (tags, comments, whole scripts and style sheets), and the line ends.

    Both are in ascending order. A run of tags with ``<p>``, ``<br>`` or the like ends one line of the page, after its
    leading closing tags. Only HTML's and SSML's elements are tags: ``a < b`` and ``I <3 you`` have none.
    """
    spans = _spans(text)
    breaks = []
    i = 0
    while i < len(spans):
        position, closing, breaking = spans[i][0], True, False
        while True:
            start, end, name = spans[i]
            closing = closing and (text[start + 1] == "/" or name in ("br", "hr"))
            position = end if closing else position
            breaking = breaking or name in _BLOCKS
            i += 1
            if i == len(spans) or not (spans[i][0] == end or text[end : spans[i][0]].isspace()):
                break
        if breaking:
            breaks.append(position)
    return [(start, end) for start, end, _ in spans], breaks


def as_displayed(text: str, tags: list[tuple[int, int]]) -> str:
    """The text as a browser displays it, with unchanged positions: tags become spaces, entities are padded.

    An entity is padded by its kind: a letter or ``&`` stays part of its word, anything else separates words.
    """
    pieces = []
    position = 0
    for start, end in tags:
        pieces += [_ENTITY.sub(_filled, text[position:start]), " " * (end - start)]
        position = end
    return "".join([*pieces, _ENTITY.sub(_filled, text[position:])])


def _filled(match: re.Match) -> str:
    shown = html.unescape(match[0])[0]
    return shown + ("x" if shown.isalnum() or shown == "&" else " ") * (len(match[0]) - 1)


def without_markup(text: str) -> str:
    """``"<p>It&#39;s <b>bold</b></p>"`` -> ``"It's bold"``; a break between two sentences becomes a full stop.

    ``{ARPAbet}`` groups stay. ``AT&T`` and ``?a=1&copy=2`` have no entities: except for numbers and the most common
    names, an entity needs its semicolon.
    """
    for _ in range(_MAX_ESCAPES):
        bare = _without_tags(text)
        plain = map_outside_arpabet(_without_entities, bare)
        if plain == bare:
            return bare
        text = plain
    return _without_tags(text)


def without_tags(text: str) -> str:
    """A page or an SSML document as plain text: what is spoken, before any cleaner.

    Tags are dropped, and with them comments, scripts, style sheets, SSML's ``<desc>`` and ``<metadata>``; a blank line
    stands where ``<p>``, ``<br>`` or, in SSML, ``<s>`` end a sentence. ``<break>`` becomes a pause mark (see
    `fastglow.text.pauses`), ``<sub alias="...">`` its alias. Entities stay, unless there is a ``<speak>``.
    """
    if "<" not in text:
        return text
    plain = _without_tags(text, "\n\n", mark_of_break)
    return map_outside_arpabet(_without_entities, plain) if _DOCUMENT.search(text) else plain


def _spans(text: str) -> list[tuple[int, int, str]]:
    if "<" not in text:
        return []
    groups = iter([*arpabet_spans(text), (len(text), len(text))])
    group_start, group_end = next(groups)
    names = _NAMES | _IN_DOCUMENTS if _DOCUMENT.search(text) else _NAMES
    lowered = None
    unclosed: set[str] = set()
    spans: list[tuple[int, int, str]] = []
    position = 0
    while match := _TAG.search(text, position):
        start, position = match.span()
        name = (match["closed"] or match["letter"] or match["opened"] or "").lower()
        while group_end <= start and group_start < len(text):
            group_start, group_end = next(groups)
        if group_start < start:
            position = max(position, group_end)
            continue
        vendor, _, own = name.partition(":")
        if own and vendor in _VENDORS:
            name = own if vendor == "ssml" else name
        elif name and name not in names:
            continue
        holds_unspoken = name in _UNSPOKEN and not match["closed"] and not (name in _SSML and match[0].endswith("/>"))
        closing = "-->" if match["comment"] else f"</{name}" if holds_unspoken else ""
        if closing:
            lowered = lowered or _ascii_lower(text)
            end = -1 if closing in unclosed else lowered.find(closing, position)
            if end < 0:
                unclosed.add(closing)
                if match["comment"]:
                    continue
            else:
                position = end + len(closing) if match["comment"] else lowered.find(">", end) + 1 or len(text)
        spans.append((start, position, name))
        while group_start < position and group_start < len(text):
            group_start, group_end = next(groups)
    return spans


def _ascii_lower(text: str) -> str:
    """Lower case with unchanged positions."""
    return text.translate({code: code + 32 for code in range(ord("A"), ord("Z") + 1)})


def _without_tags(text: str, end: str = ". ", pause: Callable[[str], str] = lambda tag: _CELL) -> str:
    """`end`: where a line of the page ends between words; `pause`: for a ``<break>`` tag."""
    if "<" not in text:
        return text
    text = _EXPONENT.sub(lambda match: match[1].translate(_SUPERSCRIPTS), text)
    spans = _spans(text)
    if not spans:
        return text
    ends_of_aliased = [end for start, end, name in spans if name == "sub" and text[start + 1] == "/"]
    is_ssml = bool(_DOCUMENT.search(text))
    pieces: list[str] = []
    position = 0
    ended, after_closing, in_sentence = True, False, False
    for start, stop, name in spans:
        if start < position:
            continue  # inside what an alias replaces
        tag, closes = text[start:stop], text[start + 1] == "/"
        pieces.append(text[position:start].translate(_NO_MARKERS))
        after_closing = after_closing and not pieces[-1]
        if written := pieces[-1].rstrip():
            ended = written[-1] in _FINAL
        position = stop
        if name == "s" and not closes:
            in_sentence = is_ssml or ended  # in HTML, words that are struck out
        if name in _BLOCKS or (name == "s" and in_sentence):
            pieces.append(_END)
            ended = True
        elif name in _CELLS:
            pieces.append("" if closes else _CELL)
        elif name == "break":
            pieces.append("" if closes else pause(tag) or " ")
        elif name == "sub" and (alias := _ALIAS.search(tag)):
            following = bisect_right(ends_of_aliased, stop)
            if following < len(ends_of_aliased):
                pieces.append(map_outside_arpabet(_without_entities, alias[1] or alias[2] or ""))
                position = ends_of_aliased[following]
                ended = False
        elif name not in _INLINE:
            # Two elements side by side hold two words: "<w>one</w><w>two</w>".
            pieces.append(" " if after_closing and not closes else "")
            after_closing = closes
    pieces.append(text[position:].translate(_NO_MARKERS))
    return _ENDS.sub(lambda match: _break(match, end), "".join(pieces))


def _break(match: re.Match, end: str) -> str:
    text, first, last = match.string, match.start(), match.end()
    before, behind = text[max(0, first - 1) : first], text[last : last + 1]
    if not before or not behind:
        return ""
    if _END in match[0] and end.isspace():
        return end
    return " " if before in _MARKED else end if _END in match[0] else ", "


def _without_entities(text: str) -> str:
    if "&" not in text:
        return text
    return _ENTITY.sub(lambda match: html.unescape(match[0]).translate(_NO_BRACES), text)
