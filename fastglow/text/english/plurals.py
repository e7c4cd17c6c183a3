"""The plural s after digits (decades, ages, designations), as opposed to the s of seconds.

``"the 1980s"``, ``"her 30s"``, ``"F-16s"``, ``"747s"``, ``"4x4s"`` are plurals; ``"It took 30s."``, ``"a 10s delay"``,
``"5-10s"``, ``"9.8s"`` are seconds, which the step for units reads.
"""

import re

from fastglow.text.english.attributive import CLOSED_CLASS
from fastglow.text.english.context import SENTENCE_STARTERS, after, before, last_word
from fastglow.text.english.letters import spell
from fastglow.text.numbers import cardinal, looks_like_year, plural, year

_ROUND = re.compile(r"(?<![\w.,-])(1(?:0{1,6}|0{0,2}(?:,000){1,2}))s(?= of\b)")
_BITS = re.compile(r"(?<![\w.,-])([01])s (and|or) ([01])s\b")
_PRODUCT = re.compile(r"(?<![\w.,])(\d{1,4})[x×](\d{1,4})s\b")
_AGENT = re.compile(r"(?<![\w.,-])(\d{2,4})er(s?)\b")
_PENSION = re.compile(r"(?<![\w.,$])(401|403)(?:(\()?([kb])(?(2)\)))(s?)(?!\w)")
_LETTERED = re.compile(r"(?<![\w.,$£€])(\d{1,4})([A-Zk])s\b")
_NOTES = re.compile(r"[$£€](\d{1,4})s\b")
_PREFIXED = re.compile(r"(?<![A-Za-z\d])([A-Za-z]{1,16})([-–]?)(\d{1,4})('{0,2})s\b")
_FROM_TO = re.compile(r"(?<![\w.,:/$£€'-])(\d{1,4})([-–])(\d{1,4})s\b")
_BETWEEN = re.compile(r"(?<=\ds) ?[-–] ?(?='?\d{2,4}'?s\b)")
_BARE = re.compile(r"(?:(?<=\ds/)|(?<![\w.,:/$£€'–-]))('?)(\d{1,3}(?:,\d{3}){1,3}|\d{1,6})('{0,2})s\b")

# After these the number is a time.
_DURATION_WORDS = frozenset(
    """
    every expire expired expires hold holds last lasted lasting lasts pause paused pauses sleep sleeps slept spend
    spends spent take taken takes taking timeout took wait waited waiting waits within
    """.split()
)
# Words that may come in between: "took me about 30s".
_FILLERS = frozenset("a about another around exactly him it just least me nearly only over than them to up us".split())
# After these the number is a time unless it describes what follows: "for 30s.", but "for 80s music".
_AROUND = frozenset(
    """
    about after almost another approximately around at by exactly for in just least most nearly of only over roughly
    than under until
    """.split()
)
# Before these, and after these and "of", the number is a time: "a 90s timeout", "a timeout of 90s".
_TIMED = frozenset(
    """
    break clip cooldown countdown delay delays duration elapsed exposure exposures gap hold interval intervals lag later
    limit loop mark pause pauses period remaining rest sample samples silence sleep snippet span sprint timeout timeouts
    timer wait
    """.split()
)
# "the 500s", "her 30s", "two 5s".
_BEFORE_PLURAL = frozenset(
    """
    all any both early eight few five four her high his its late low lower many mid more my nine no old our several six
    some ten the their these those three two upper your
    """.split()
)
# Numbers of one or two digits after these are names: "two size 8s".
_NAMING = frozenset("class grade level mark model series size type".split())
_AFTER_SECONDS = frozenset("ago apart each flat left long straight".split())
_CLAUSE_END = re.compile(r"\s*(?:[,;:.!?)\]](?!\d)|\Z)")
_ALONE_BEFORE = re.compile(r"(?:\A|[:(=~<>≤≥]) ?\Z")
_NAME = re.compile(r"(\S*) ?\b([A-Za-z]+) \Z")
_FOLLOWS_SECONDS = re.compile(r"(?<![\d.])(?:[1-9]|1\d|[2-9][1-9])s (?:and|or|to) \Z")
_NEXT = re.compile(r" ([A-Za-z]+)")
# "30s of video", but "80s of the last century".
_OF_TIMED_THING = re.compile(r" of (?!(?:the|this|that|last|our|my|his|her|their|its|your)\b)[a-z]")


def read_plurals(text: str) -> str:
    """``"1980s"`` -> ``"nineteen eighties"``, ``"F-16s"`` -> ``"F sixteens"``, ``"100s of"`` -> ``"hundreds of"``.

    Only the context distinguishes plurals from seconds. Tens from 20 to 90 and years are decades, and numbers of three
    or more digits are designations, unless a word of time is next to them. Other numbers of one or two digits are
    seconds, unless a plural word precedes them.
    """
    text = _BETWEEN.sub(" to ", text)
    text = _ROUND.sub(lambda match: plural(cardinal(match[1]).removeprefix("one ")), text)
    text = _BITS.sub(lambda match: f"{_plural(match[1])} {match[2]} {_plural(match[3])}", text)
    text = _PRODUCT.sub(lambda match: f"{cardinal(match[1])} by {_plural(match[2])}", text)
    text = _AGENT.sub(_agent, text)
    text = _PENSION.sub(_pension, text)
    text = _LETTERED.sub(lambda match: f"{cardinal(match[1])} {spell(match[2], plural=True)}", text)
    text = _NOTES.sub(lambda match: _plural(match[1]), text)
    text = _PREFIXED.sub(_prefixed, text)
    text = _FROM_TO.sub(_from_to, text)
    return _BARE.sub(_bare, text)


def _plural(digits: str) -> str:
    return plural(year(int(digits)) if len(digits) == 4 and digits[0] != "0" else cardinal(digits))


def _agent(match: re.Match) -> str:
    words = cardinal(match[1])
    return words + ("r" if words.endswith("e") else "er") + match[2]


def _pension(match: re.Match) -> str:
    number, bracket, letter, ending = match.groups()
    if not (bracket or ending) and last_word(before(match)).lower() not in _BEFORE_PLURAL | {"a"}:
        return match[0]
    return f"four oh {cardinal(number[2])} {spell(letter, plural=bool(ending))}"


def _prefixed(match: re.Match) -> str:
    prefix, hyphen, digits, apostrophe = match.groups()
    if prefix == "sub" or (apostrophe and not _is_decade(digits)):
        return match[0]
    if hyphen and prefix[1:].islower() and len(prefix) > 2:
        return f"{prefix}-{_plural(digits)}"  # "mid-1960s"
    if prefix in ("a", "A") and not before(match).endswith("/"):
        prefix = spell(prefix)
    return f"{prefix} {_plural(digits)}"


def _from_to(match: re.Match) -> str:
    first, _, last = match.groups()
    if looks_like_year(first):
        return f"{year(int(first))} to {_plural(last)}"
    if _is_decade(first) and _is_decade(last) and last_word(before(match)).lower() in _BEFORE_PLURAL:
        return f"{_plural(first)} to {_plural(last)}"
    return match[0]


def _bare(match: re.Match) -> str:
    opening, digits, apostrophe = match.groups()
    if apostrophe and not _is_decade(digits):
        return match[0]
    if not opening and not apostrophe and _are_seconds(digits, match):
        return match[0]
    return "two thousands" if digits == "00" else _plural(digits)


def _is_decade(digits: str) -> bool:
    return digits[-1] == "0" and (looks_like_year(digits) or (len(digits) == 2 and digits >= "20"))


def _are_seconds(digits: str, match: re.Match) -> bool:
    preceding, following = before(match), after(match)
    upcoming = _NEXT.match(following)
    next_word = upcoming[1].lower() if upcoming else ""
    previous = last_word(preceding).lower()
    if next_word in _TIMED or _follows_duration_word(preceding):
        return True
    if previous in _BEFORE_PLURAL or looks_like_year(digits) or digits in ("0", "00"):
        return False
    if next_word in _AFTER_SECONDS or _FOLLOWS_SECONDS.search(preceding):
        return True
    if (len(digits) < 3 or digits[-1] == "0") and _OF_TIMED_THING.match(following):
        return True
    if previous in _AROUND and _ends_phrase(next_word, following):
        return previous != "of" or last_word(preceding.rstrip()[:-2]).lower() in _TIMED
    if len(digits) > 2 or _is_decade(digits):
        return bool(_ALONE_BEFORE.search(preceding) and _CLAUSE_END.match(following) and not following.startswith(","))
    return previous not in _NAMING and not _follows_name(preceding)


def _follows_duration_word(preceding: str) -> bool:
    words = preceding.lower().split()[-4:]
    while words and words[-1] in _FILLERS:
        words.pop()
    return bool(words) and words[-1].strip(":=(") in _DURATION_WORDS


def _ends_phrase(next_word: str, following: str) -> bool:
    if _CLAUSE_END.match(following):
        return True
    return next_word in CLOSED_CLASS and not re.match(r" (?:and|or|to) (?:the )?'?\d{2,4}s\b", following)


def _follows_name(preceding: str) -> bool:
    """``"Falcon 9s"``, ``"iPhone 6s"``; a word that is capitalised because it begins a sentence is no name."""
    name = _NAME.search(preceding)
    if not name or name[2].islower() or name[2].lower() in SENTENCE_STARTERS:
        return False
    starts_sentence = not name[1] or name[1].endswith((".", "!", "?", ":"))
    return not starts_sentence or not name[2][1:].islower()
