"""Finds line breaks that end a sentence, and joins words that are hyphenated at a line break."""

import re

from fastglow.text.english.abbreviations import GENERAL, STREETS

# A line that ends in one of these continues, even before a capital.
_CONTINUING_WORDS = frozenset(
    """
    a an and are as at but by did do does dr for from had has have her his if in into is its like mr mrs ms my nor not
    of on or our over prof st than that the their these this those to under until very was were when which who whose
    will with your
    """.split()
)
_LINE = re.compile(r"[^\n]+")
_FIRST = re.compile(r"[\s\"'“‘«(\[¿¡*_-]*([^\W_])")
_LAST_WORD = re.compile(r"([^\W\d_]+)\s*\Z")
_CONTINUES = re.compile(r"[,;&/+=–—─-]\s*\Z")
# Whether a mark ends a sentence is decided elsewhere, with the abbreviations.
_HAS_MARK = re.compile(r"[.!?…。！？｡][\"'”’»)\]]*\s*\Z")
_NARROW = 40
# "- milk", "2) eggs", "(iv) bread", "[x] done".
_ITEM = re.compile(
    r"\s*(?:[-*•‣▪◦○●·+→⇒➔➜➢➤►▶✓✔✗✘☐☑☒□■◆❖]|\[[ xX]?\]|\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,5}|[IVX]{1,5})\)|\d{1,3}\.)[ \t]"
)
_DASHED = re.compile(r"\s*([–—―─])[ \t]")
_LABELLED = re.compile(r"\s*([A-Za-z]|[ivx]{1,5}|[IVX]{1,5})\.[ \t]")
_ROMAN = "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx".split()
# A rule of signs under a heading or between paragraphs; it belongs to the text before.
_RULE = re.compile(r"[-–—―=_*~#+.─━═ \t]{3,}")
# Abbreviations that may end a line: "12 Main St.", "Smith & Co."
_ABBREVIATED = re.compile(r"([A-Za-z]+)\.\s*\Z")
_MAY_END = (GENERAL.keys() | STREETS.keys()) - frozenset("approx cf esp incl viz vs".split())

_BREAK = r"[ \t]*(?:\r\n|\r|\n)[ \t]*"
_SOFT = re.compile(rf"\u00ad{_BREAK}")
_HYPHEN = re.compile(rf"(?<![\w'-])((?:\w{{1,40}}[-‐]){{0,4}}?)(\w{{1,40}})[-‐]{_BREAK}(?=([^\W_]{{1,40}}))")
_COMPOUND_FIRST = frozenset(
    """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand first second third self well ill
    half quarter high low long short full hard soft left right middle cold warm hot black white red blue green grey
    gray dark light bright pale great mother father brother sister son daughter good bad best better world
    north south east west old new open close quick slow deep wide narrow single double
    """.split()
)
_COMPOUND_LAST = frozenset(
    """
    sided known based eyed haired handed minded headed legged hearted looking coloured colored shaped sized faced
    tempered mannered year years old class term thirds quarters fifths law going made driven friendly conscious free
    """.split()
)
# "long-" / "ing", "short-" / "age", "north-" / "ern": endings of the same word.
_ENDINGS = re.compile(
    r"(?:ish|ed|ing|ings|ness|ly|e?r|ers|ered|ering|est|ment|ments|tion|tions|al|able|ibly|ible|ful|less|en|ens|ened"
    r"|ening|age|ages|ern|erner|ward|wards|s|es|y|ies|th|ths|ty|teen|lings?|like|ship|hood|self|selves|time|times|ry|dred"
    r"|sand)"
)
_PREFIXES = frozenset("be de dis ex im in ir mis out over pre re sub un under up".split())
# "state-" / "of-the-art", "mother-" / "in-law".
_INNER = frozenset("a at by for in of on the up".split())
_FORMER = frozenset("boyfriend boss convict girlfriend husband lover minister partner president soldier wife".split())
_SUSPENDING = frozenset("and or to nor but".split())
_SECOND_HALF = re.compile(r"\w+\s+(?:\w+\s+){0,2}\w+-\w")
_WINDOW = 60


def join_hyphenated_words(text: str) -> str:
    """Removes hyphenation at line ends: ``"trou-\\nble"`` -> ``"trouble"``, but ``"one-sided"``.

    Without a dictionary this is a guess. The hyphen stays after words that usually begin a compound (numbers,
    ``self``, ``well``, colours ...), before words that usually end one (``known``, ``eyed`` ...), next to digits
    and capitals, and in a word with another hyphen. Everything else becomes one word, so a rarer compound
    (``sugar-\\nfree``) loses its hyphen. ``"two-\\nand three-year"`` stays.
    """
    if "\n" not in text and "\r" not in text:
        return text
    return _HYPHEN.sub(_join, _SOFT.sub("", text))


def _join(match: re.Match) -> str:
    before, first, second = match.groups()
    if second in _SUSPENDING and _is_suspended(first, match.string[match.end() : match.end() + _WINDOW]):
        return match[0]
    end = match.end() + len(second)
    is_inner = second in _INNER and match.string[end : end + 1] == "-"
    return before + first + "-" * (bool(before) or is_inner or _is_compound(first, second))


def _is_suspended(first: str, following: str) -> bool:
    """``"two-\\nand three-day"``, but ``"hon-\\nor"``."""
    known = first.lower() in _COMPOUND_FIRST | _PREFIXES or not first.isalpha()
    return known or bool(_SECOND_HALF.match(following))


def _is_compound(first: str, second: str) -> bool:
    if not (first.isalpha() and second.isalpha() and (second.islower() or (first + second).isupper())):
        return True
    if first.isupper() and second.islower():
        return True  # "X-ray", "TV-like"
    first, second = first.lower(), second.lower()
    if (first, second) == ("so", "called") or (first == "ex" and second in _FORMER):
        return True
    if first in _COMPOUND_FIRST:
        return not _ENDINGS.fullmatch(second)
    return second in _COMPOUND_LAST and first not in _PREFIXES and len(first) > 2


def sentence_line_breaks(text: str) -> list[int]:
    """Positions after each ``\\n`` that ends a sentence without a mark; blank lines end a paragraph.

    See ``split_sentences`` for the rule.
    """
    ends: list[int] = []
    paragraph: list[re.Match] = []
    for line in _LINE.finditer(text):
        if line[0].isspace():
            continue
        if paragraph and text.count("\n", paragraph[-1].end(), line.start()) != 1:
            ends += _breaks_in(paragraph)
            paragraph = []
        paragraph.append(line)
    return ends + _breaks_in(paragraph)


def _breaks_in(paragraph: list[re.Match]) -> list[int]:
    lines = [line[0].strip() for line in paragraph]
    width = max(map(len, lines), default=0)
    firsts = [_FIRST.match(line) for line in lines]
    items = _items(lines)
    begins_lower = any(first and first[1].islower() for i, first in enumerate(firsts) if i not in items)
    shouted = all(line.isupper() for line in lines)
    listed = not begins_lower and (width < _NARROW or (len(lines) > 2 and not shouted))
    ends = []
    for i in range(1, len(lines)):
        previous, following, first = lines[i - 1], lines[i], firsts[i]
        if i in items or (_RULE.fullmatch(previous) and not _RULE.fullmatch(following)):
            ends.append(paragraph[i].start())
            continue
        if listed and first and first[1].isupper() and _ends_abbreviated(previous):
            ends.append(paragraph[i].start())
            continue
        if not first or not (first[1].isupper() or first[1].isnumeric()) or _continues(previous):
            continue
        would_fit = len(previous) + 1 + len(following.split(maxsplit=1)[0]) <= width
        if listed or would_fit:
            ends.append(paragraph[i].start())
    return ends


def _items(lines: list[str]) -> set[int]:
    """Indices of the lines that are list items.

    A dash or a letter with a full stop may be something else: dashes must begin two lines in a row, the first line,
    or a line after a colon; letters and Roman numerals must count up from one item to the next.
    """
    items = {i for i, line in enumerate(lines) if _ITEM.match(line + " ")}
    dashed = [i for i, line in enumerate(lines) if _DASHED.match(line)]
    in_a_row = any(b == a + 1 for a, b in zip(dashed, dashed[1:], strict=False))
    if len(dashed) > 1 and (in_a_row or dashed[0] == 0 or lines[dashed[0] - 1].endswith(":")):
        items.update(dashed)
    labelled = [(i, match[1]) for i, line in enumerate(lines) if (match := _LABELLED.match(line))]
    for (i, label), (j, following) in zip(labelled, labelled[1:], strict=False):
        if _counts_up(label, following):
            items.update((i, j))
    return items


def _counts_up(label: str, following: str) -> bool:
    if label.isupper() != following.isupper():
        return False
    label, following = label.lower(), following.lower()
    if len(label) == len(following) == 1 and ord(following) == ord(label) + 1:
        return True
    return label in _ROMAN and following in _ROMAN and _ROMAN.index(following) == _ROMAN.index(label) + 1


def _ends_abbreviated(line: str) -> bool:
    last = _ABBREVIATED.search(line[-20:])
    key = last[1].lower() if last else ""
    return key in _MAY_END and (key not in STREETS or any(sign.isdigit() for sign in line))


def _continues(line: str) -> bool:
    tail = line[-60:]
    if _HAS_MARK.search(tail) or _CONTINUES.search(tail):
        return True
    last = _LAST_WORD.search(tail)
    word = last[1].lower() if last and line.isupper() else last and last[1]
    return word in _CONTINUING_WORDS and len(line.split(maxsplit=2)) > 2
