"""Roman numerals, recognised by the word before them."""

import re

from fastglow.text.english.context import SENTENCE_STARTERS, after, before, ends_sentence
from fastglow.text.numbers import ordinal

HEADINGS = frozenset(
    """
    act apollo appendix art article book bowl canto category ch chapter class division episode exhibit fig figure grade
    group lesson level mark movement number opus page part phase psalm pt rule scene season sec section sonata stage
    step symphony table tier title type unit verse vol volume war
    """.split()
)
_REIGNING = frozenset(
    """
    abdulhamid adrian albert alexander alexius alfonso amenhotep andrew anne baldwin bela benedict boniface boris carl
    carlos casimir catherine celestine charles christian clement cleopatra conrad constantine darius david edmund edward
    elizabeth emmanuel ernest eugene felipe ferdinand francis franz frederick friedrich george gregory gustav haakon
    harald henri henry honorius hugh innocent isabella ivan james john joseph juan julius justinian karl ladislaus leo
    leopold lothair louis ludwig mahmud manuel margaret maria martin mary matthias maximilian mehmed michael murad
    napoleon nicholas olav otto paul pedro peter philip philippe pius ptolemy rama rameses ramesses ramses richard
    robert rudolf rudolph selim seti sigismund sixtus stephen suleiman theodosius thutmose umberto urban valentinian
    victor victoria vladislaus wilhelm william xerxes
    """.split()
)
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
_VALID = re.compile(r"C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_NUMERAL = re.compile(r"(?<![\w.'&-])(?:[IVXLC]{1,8}|[ivxl]{2,8})(?![\w&]|'(?!s\b)|-\w|\.\w)")
_WORLD_WAR = re.compile(r"(?<![A-Za-z'])(?:WW ?(I{1,3}|[123](?!\d))|ww(i{1,3}|[123](?!\d)))(?![A-Za-z])")
_MARK = re.compile(r"\bM[Kk]\.?[ -]?(?=(?:[IVX]{1,5}|\d{1,3})\b)")
# "PartII", "FFVII"; a word in capitals such as HAWAII has a vowel before its numeral.
_GLUED = re.compile(
    r"(?<![A-Za-z])(?:([A-Z][a-z]{2,15})(VI{0,3}|I{2,3}|I[VX])"
    r"|([B-DF-HJ-NP-TV-Z]{2,5}?|[A-Z]{2,5}?(?=VII|III))(VI{2,3}|I{2,3}))(?![A-Za-z0-9])"
)
_PREVIOUS = re.compile(r"(?:\b(\w+)\.? )?\b(\w+)\.? \Z")

# Unambiguous after any word.
_UNMISTAKABLE = re.compile("II|(?!XXX$)[IVX]{3,}")
# These follow "Charles I", unlike "Henry I know".
_AFTER_NUMERAL_I = re.compile(r"[,.;:!?)]|\Z|'s\b| (?:of|was|had|is|and|the|who|died|ruled|became|reigned)\b")
# These follow "the book I", but rarely "Part I".
_AFTER_PRONOUN_I = re.compile(
    r" (?:am|was|have|had|will|would|can|could|shall|should|do|did|think|thought|know|knew|read|wrote|saw|said|love"
    r"|like|want|wanted|found|met|mentioned|told|bought|made|got|never|always|really|ever|once|first|just)\b"
)


def read_roman_numerals(text: str) -> str:
    """``"Henry VIII"`` -> ``"Henry the eighth"``, ``"World War II"``, ``"WWII"`` -> ``"World War 2"``."""
    text = _WORLD_WAR.sub(_world_war, text)
    text = _MARK.sub("Mark ", text)
    text = _GLUED.sub(_glued, text)
    return _NUMERAL.sub(_numeral, text)


def roman_value(numeral: str) -> int:
    """The value of a Roman numeral of at least two capitals; 0 for anything else."""
    return _value(numeral) if len(numeral) > 1 and _VALID.fullmatch(numeral) else 0


def _world_war(match: re.Match) -> str:
    numeral = match[1] or match[2]
    ending = " " * after(match)[:1].isdigit()
    return f"World War {numeral if numeral.isdigit() else _value(numeral)}{ending}"


def _glued(match: re.Match) -> str:
    if not set(match[0]) - set("IVXLCDM"):
        return match[0]  # the numeral is the whole word
    return f"{match[1] or match[3]} {_value(match[2] or match[4])}"


def _numeral(match: re.Match) -> str:
    numeral = match[0]
    if not _VALID.fullmatch(numeral.upper()):
        return numeral
    context = _PREVIOUS.search(before(match))
    earlier, word = (context[1] or "", context[2]) if context else ("", "")
    if _is_number_of(word, numeral, after(match)):
        return str(_value(numeral))
    if _is_reigning(word, numeral, after(match)) or (numeral in ("II", "III", "IV") and _is_full_name(earlier, word)):
        return f"the {ordinal(_value(numeral))}"
    if word == "the" and earlier.lower() in _REIGNING and numeral.isupper():
        return ordinal(_value(numeral))
    is_numbered = len(numeral) > 1 and set(numeral) <= set("IVX") and _is_name(word)
    return str(_value(numeral)) if is_numbered or _UNMISTAKABLE.fullmatch(numeral) else numeral


def _is_name(word: str) -> bool:
    return word[:1].isupper() and word.lower() not in SENTENCE_STARTERS


def _is_full_name(first: str, last: str) -> bool:
    """``"John Smith"``, whose III is "the third", unlike ``"Rocky III"`` and ``"USS Enterprise III"``."""
    return _is_name(first) and _is_name(last) and not first[1:].isupper() and not last.isupper()


def _is_number_of(heading: str, numeral: str, following: str) -> bool:
    if heading.lower() not in HEADINGS:
        return False
    if numeral in "CL":
        return False  # "Appendix C" is a letter
    return len(numeral) > 1 or (heading[0].isupper() and not _AFTER_PRONOUN_I.match(following))


def _is_reigning(name: str, numeral: str, following: str) -> bool:
    if not numeral.isupper() or not name[:1].isupper() or name.lower() not in _REIGNING:
        return False
    if len(numeral) == 1 and following.startswith(". ") and not ends_sentence(following[1:]):
        return False  # an initial: "George V. Higgins"
    return numeral != "I" or bool(_AFTER_NUMERAL_I.match(following))


def _value(numeral: str) -> int:
    values = [_VALUES[letter] for letter in numeral.upper()]
    return sum(-value if value < max(values[i:]) else value for i, value in enumerate(values))
