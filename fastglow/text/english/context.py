"""The text around a match, within bounds that keep the time linear."""

import re

_WINDOW = 48

# Words that usually begin a sentence when they are capitalised in the middle of a text.
SENTENCE_STARTERS = frozenset(
    """
    a after all also although an and another are as at because before both but by can did do does during each
    even every few finally first for from had has have he her here hers his how however i if in is it its just
    later let like many maybe meanwhile more most much my never nevertheless next no nobody nor not nothing now
    of on once one only or other our perhaps she should since so some soon still such that the their them then
    there therefore these they this those though through thus to today together tomorrow too two under until
    very was we well were what when where whether which while who whose why will with would yes yesterday yet
    you your
    """.split()
)

# "no. I left" is not number one.
PRONOUN_I_FOLLOWS = re.compile(r"\s+I(?:\s+[a-z]|['’])")

_LAST_WORD = re.compile(r"(?:\A|[^\w'-])([\w'-]+)[^\w]*\Z")
_NEXT_WORD = re.compile(r"[\s\"'“‘(\[]*([^\W_][\w'-]*)")
_ONLY_CLOSERS = re.compile(r"[\s\"'”’)\]]*\Z")


def before(match: re.Match) -> str:
    """Up to 48 characters that precede a match."""
    return match.string[max(0, match.start() - _WINDOW) : match.start()]


def after(match: re.Match) -> str:
    """Up to 48 characters that follow a match."""
    return match.string[match.end() : match.end() + _WINDOW]


def last_word(text: str) -> str:
    """The last word of a text, without the punctuation after it; empty if there is none."""
    match = _LAST_WORD.search(text)
    return match[1] if match else ""


def next_word(text: str) -> str:
    """The first word of a text, after spaces and opening quotes; empty if something else comes first."""
    match = _NEXT_WORD.match(text)
    return match[1] if match else ""


def ends_sentence(following: str) -> bool:
    """Whether the full stop of an abbreviation also ends its sentence, given the text after it."""
    if _ONLY_CLOSERS.match(following):
        return True
    word = next_word(following)
    return word[:1].isupper() and word.lower() in SENTENCE_STARTERS


def final_stop(match: re.Match) -> str:
    """``"."`` if the match ends in a full stop that also ends its sentence, else an empty string."""
    return "." if match[0].endswith(".") and ends_sentence(after(match)) else ""
