"""Splits a text into sentences, in time linear in its length."""

import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

from fastglow.errors import FastglowError
from fastglow.text.arpabet import arpabet_spans
from fastglow.text.english.abbreviations import BEFORE_NAME, BEFORE_NUMBER, GENERAL, STREETS, TITLES
from fastglow.text.english.context import PRONOUN_I_FOLLOWS, SENTENCE_STARTERS, next_word
from fastglow.text.english.dotted_days import dotted_day_stops
from fastglow.text.line_breaks import sentence_line_breaks
from fastglow.text.markup import as_displayed, markup_spans

# The text after these belongs to the same sentence.
_INTRODUCING = frozenset("approx cf e.g esp i.e incl viz vs".split())
_CALENDAR = frozenset(
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun".split()
)
_UNITS = frozenset("gal hr hrs in lb lbs min mins oz sec secs yd yds".split())
# These end a sentence only before a word that usually begins one.
_AMBIGUOUS = frozenset({*GENERAL, *STREETS, "al", "est", "max", "min"} - _INTRODUCING)

_CLOSERS = re.escape("\"'”’»)]")
# Also as HTML entities and tags.
_CLOSER = (
    rf"(?:[{_CLOSERS}]|&(?:quot|#34|#39|#x27|apos|rdquo|rsquo|raquo|#8217|#8221|#x201[9Dd]);|</[A-Za-z]\w{{0,11}}>)"
)
_END = re.compile(rf"(?<![.!?…])([.!?…]+)({_CLOSER}{{0,20}})(?=\s|\Z|&nbsp;|<\w)|[。！？｡]+[」』）{_CLOSERS}]*")
_PARAGRAPH_END = re.compile(r"\n\s*\n|[\f\v\x1c-\x1e\u2029]")
_PARENTHESIS = re.compile(r"[()]")
_WORD_BEFORE = re.compile(r"[^\s()\[\]\"'“”‘’—–/]+\Z")
_NUMBER_FOLLOWS = re.compile(r"\s*(?:[\d#]|[A-Z][.-]?\d|[IVXLC]+\b|[B-HJ-Z]\b(?!['-]))")
# "on Elm Dr. The house", but "Ask Dr. Who", "met Dr. No".
_STREET_NAME = re.compile(r"[\w',]\s+[A-Z\d][\w'-]*\s+\Z")
_ITEM_LABEL = re.compile(r"\(?(?:\d+|[A-Za-z]|[ivx]{1,5}|[IVX]{1,5})\s*")
# "plan B.", "vitamin C.": the letter is not an initial.
_LETTERED = re.compile(
    r"(?i:\b(?:answer|appendix|block|building|category|choice|class|column|deck|division|exhibit|floor|gate|grade"
    r"|group|hepatitis|item|label|lane|letter|level|line|lot|option|part|phase|plan|point|pool"
    r"|question|room|row|schedule|section|side|step|table|team|terminal|type|unit|variant|version|vitamin|wing"
    r"|zone))\s\Z"
)
_INITIAL_FOLLOWS = re.compile(r"\s*[A-Z]\.")
# Dashes and spaces between digits belong to ranges and numbers: "1914–18", "12\u00a0345".
_CLAUSE_END = re.compile(rf"[;:,][{_CLOSERS}]*(?=\s)|[—–―─，；：、](?!(?<=\d.)\d)|[)\]](?=\s)|\s(?=[(\[—–])")
# Not after a hyphen at a line end.
_SPACE = re.compile(r"(?<![A-Za-z]-)(?<!\u00ad)(?![\u00a0\u2009\u202f](?<=\d.)\d)\s")
# In a word: after a mark of an address, but not in a number or a time; between East Asian characters; and with so many
# digits on both sides that all are spoken one by one, or so many letters that it is no word of a language.
_IN_WORD = re.compile(
    r"(?<=[/\\?&=_.,;:!|+~@#%)\]\u2010-\u2015-])(?!(?<=\d.)\d)(?=\w)"
    r"|(?<=[\u3040-\u9fff\uac00-\ud7af])(?=[\u3040-\u9fff\uac00-\ud7af])"
    r"|(?<=\d{12})(?=\d{12})|(?<=\w{40})(?=\w{40})"
)
# Most of these begin a clause where punctuation is missing.
_CONJUNCTION = re.compile(
    rf"{_SPACE.pattern}(?=(?i:after|although|and|because|before|but|if|or|since|that|though|unless|until|when|where"
    r"|which|while|who)\s)"
)
# A bounded context around each full stop keeps the time linear.
_WINDOW = 40


def split_sentences(text: str, max_chars: int = 200) -> list[str]:
    """Cuts a text into sentences of at most ``max_chars`` characters.

    Besides punctuation, a sentence ends at

    - blank lines, page breaks, rules of signs (``-----``), list items and tags such as ``<p>`` and ``<br>``. Items
      begin with a bullet or a number; with a dash if two lines in a row do, or the first line, or a line after a colon;
      with ``a.`` or ``iv.`` if they count up;
    - a line break before a capital or a digit, unless the line ends in a comma, a hyphen or a word that cannot end a
      sentence (``with``, ``the`` ...), or is full, as in wrapped prose: the next word would exceed the widest line of
      its paragraph. In a list or poem no line is full: no line begins in lower case, and there are more than two lines
      or all are shorter than 40 characters. Any other line break is a space.

    No sentence ends at full stops of abbreviations, initials, numbers, days (``on 12. Dec.``) and addresses, at
    ellipses that trail off, or inside ``{ARPAbet}``, tags and parentheses that fit within ``max_chars``. A sentence
    that is too long is cut evenly: at clause punctuation, else before conjunctions, else at spaces, else inside a
    word. Tacotron 2 works best with 120 to 200 characters.

    The pieces contain the whole text except the white space around them. A piece may have nothing to speak (``"..."``,
    an emoji): ``text_to_sequence`` then finds no letters in it. A text of white space gives an empty list.

    Args:
        text: any Unicode string.
        max_chars: length at which a sentence is cut, at least 1. Only a single ``{...}`` group, tag,
            comment or script can be longer.

    Raises:
        FastglowError: ``max_chars`` is below 1.
    """
    if max_chars < 1:
        raise FastglowError(f"max_chars={max_chars} must be at least 1")
    tags, tag_breaks = markup_spans(text)
    groups = _groups(text, tags)
    pieces: list[str] = []
    start = 0
    for end in _sentence_ends(text, tags, groups, tag_breaks, max_chars):
        pieces += _cut(text, start, end, groups, max_chars)
        start = end
    return pieces


def halve_sentence(text: str) -> list[str]:
    """Cuts a sentence into two or three parts: between words, where ``split_sentences`` would.

    A single word is cut after a mark (``example.com/`` ``news``), at a ``{...}`` group, between East Asian characters,
    or anywhere if it is very long. Else it stays whole: a number cut in two would be spoken as two others.
    """
    groups = _groups(text, markup_spans(text)[0])
    spaces = groups.outside(match.start() for match in _SPACE.finditer(text))
    if spaces:
        longest_word = max(end - start for start, end in pairwise([0, *spaces, len(text)]))
        return split_sentences(text, max_chars=max(len(text) // 2 + 1, longest_word))
    cuts = [*groups.outside(match.start() for match in _IN_WORD.finditer(text)), *groups.edges(len(text))]
    if not cuts:
        return [text] if text else []
    cut = min(cuts, key=lambda position: abs(position - len(text) / 2))
    return [text[:cut], text[cut:]]


class _Spans:
    """Disjoint spans ``(start, end)`` of a text, ascending; finds the one that a cut would split."""

    def __init__(self, spans: list[tuple[int, int]]):
        self._spans = spans
        self._starts = [start for start, _ in spans]

    def outside(self, positions: Iterable[int]) -> list[int]:
        """The positions at which a cut would split none."""
        return [position for position in positions if not self.around(position)]

    def edges(self, length: int) -> list[int]:
        """Where they begin and end, inside a text of that length."""
        return [position for span in self._spans for position in span if 0 < position < length]

    def around(self, position: int) -> tuple[int, int] | None:
        index = bisect_right(self._starts, position) - 1
        if index >= 0 and self._spans[index][0] < position < self._spans[index][1]:
            return self._spans[index]
        return None


def _groups(text: str, tags: list[tuple[int, int]]) -> _Spans:
    """What no cut may split: ``{ARPAbet}`` and tags."""
    return _Spans(_outermost(sorted(arpabet_spans(text) + tags)))


def _outermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The outermost spans only: braces inside a script are not groups."""
    kept: list[tuple[int, int]] = []
    for start, end in spans:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def _sentence_ends(
    text: str, tags: list[tuple[int, int]], groups: _Spans, tag_breaks: list[int], max_chars: int
) -> list[int]:
    """Positions after each sentence, ascending; the last is the end of the text."""
    # A lone carriage return is a line break, too; replaced by the same length to keep positions.
    text = re.sub(r"\r(?!\n)", "\n", text)
    displayed = as_displayed(text, tags)
    days = frozenset(dotted_day_stops(displayed))
    breaks = {match.end() for match in _PARAGRAPH_END.finditer(text)}
    breaks.update(sentence_line_breaks(displayed), tag_breaks, [len(text)])
    ends = []
    start = 0
    for paragraph_end in sorted(breaks):
        if groups.around(paragraph_end):
            continue
        parentheses = _short_parentheses(text, start, paragraph_end, max_chars)
        for match in _END.finditer(text, start, paragraph_end):
            end = match.end()
            if match.end(1) in days:
                continue
            if groups.around(end) or parentheses.around(end):
                continue
            if _ends_here(match, displayed, start, paragraph_end):
                ends.append(end)
        ends.append(paragraph_end)
        start = paragraph_end
    return ends


def _short_parentheses(text: str, start: int, end: int, max_chars: int) -> _Spans:
    """Outermost pairs of matching parentheses among those that fit into one piece."""
    spans: list[tuple[int, int]] = []
    opened = []
    for match in _PARENTHESIS.finditer(text, start, end):
        if match[0] == "(":
            opened.append(match.start())
        elif opened:
            first = opened.pop()
            if match.end() - first <= max_chars:
                while spans and spans[-1][0] > first:
                    spans.pop()
                spans.append((first, match.end()))
    return _Spans(spans)


def _ends_here(match: re.Match, displayed: str, paragraph_start: int, paragraph_end: int) -> bool:
    """Whether the stop, with the closing quotes after it, ends a sentence; ``displayed`` is the text without markup."""
    marks, closers = match[1], match[2]
    if marks is None:
        return True
    following = displayed[match.end() : min(match.end() + _WINDOW, paragraph_end)]
    if following.lstrip()[:1] in tuple(".!?…"):
        return False
    continues = next_word(following)[:1].islower()
    if "!" in marks or "?" in marks:
        return not (continues and closers)
    if marks != ".":
        return not continues
    preceding = displayed[max(paragraph_start, match.start() - _WINDOW) : match.start()]
    word = _WORD_BEFORE.search(preceding)
    if not word or (continues and closers):
        return not continues
    if _ITEM_LABEL.fullmatch(preceding.strip()) and following.strip():
        return False  # the number of a list item
    if len(word[0]) == 1 and _LETTERED.search(preceding[: word.start()]):
        return not continues
    return _full_stop_ends(word[0], preceding[: word.start()], following)


def _full_stop_ends(word: str, preceding: str, following: str) -> bool:
    """Whether the sentence ends after this word, which may be an abbreviation."""
    key = word.lower()
    upcoming = next_word(following)
    continues = upcoming[:1].islower()
    starts_sentence = upcoming[:1].isupper() and upcoming.lower() in SENTENCE_STARTERS

    if key == "no" and PRONOUN_I_FOLLOWS.match(following):
        return True
    if key in _INTRODUCING or (key in BEFORE_NUMBER and _NUMBER_FOLLOWS.match(following)):
        return False
    if key in TITLES or (key in BEFORE_NAME and word[0].isupper()):
        return key in STREETS and starts_sentence and (key != "dr" or bool(_STREET_NAME.search(preceding)))
    is_initials = all(len(part) < 3 and part.isalpha() for part in key.split(".")) and (len(key) == 1 or "." in key)
    if is_initials:
        return starts_sentence and not _INITIAL_FOLLOWS.match(following)
    if key in _AMBIGUOUS or (key in _CALENDAR and word[0].isupper()):
        return starts_sentence
    # Not every writer uses capitals; an unknown word without vowels is probably an abbreviation.
    return not continues or (
        key not in _UNITS and not (len(key) < 5 and key.isalpha() and not set(key) & set("aeiouy"))
    )


def _cut(text: str, start: int, end: int, groups: _Spans, max_chars: int) -> list[str]:
    """One sentence in stripped pieces of at most ``max_chars``; none if it is white space."""
    pieces: list[str] = []
    while True:
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if start == end:
            return pieces
        cut = end if end - start <= max_chars else _best_cut(text, start, end, groups, max_chars)
        pieces.append(text[start:cut].rstrip())
        start = cut


def _best_cut(text: str, start: int, end: int, groups: _Spans, max_chars: int) -> int:
    limit = start + max_chars
    n_pieces = -(-(end - start) // max_chars)
    even = start + (end - start) / n_pieces
    earliest = start + max_chars // 4
    for pattern, first in ((_CLAUSE_END, earliest), (_CONJUNCTION, earliest), (_SPACE, start)):
        cuts = [
            position
            for match in pattern.finditer(text, first + 1, limit + 1)
            if (position := match.end() if pattern is _CLAUSE_END else match.start()) <= limit
            and not groups.around(position)
        ]
        if cuts:
            return min(cuts, key=lambda position: abs(position - even))
    group = groups.around(limit)
    if group:
        return group[0] if group[0] > start else group[1]
    return limit
