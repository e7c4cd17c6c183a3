"""Abbreviations, each with the context in which it has its meaning."""

import re

from fastglow.text.english.context import (
    PRONOUN_I_FOLLOWS,
    SENTENCE_STARTERS,
    after,
    before,
    ends_sentence,
    final_stop,
    next_word,
)

# Written out before any full stop; these never end a sentence.
TITLES = {
    "adm": "admiral",
    "capt": "captain",
    "cmdr": "commander",
    "cpl": "corporal",
    "dr": "doctor",
    "drs": "doctors",
    "lt": "lieutenant",
    "messrs": "messers",
    "mlle": "mademoiselle",
    "mme": "madame",
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "mssrs": "messers",
    "prof": "professor",
    "profs": "professors",
    "pvt": "private",
    "sgt": "sergeant",
    "supt": "superintendent",
}
# Titles and places only when capitalised and before a capitalised name: "Gen. Lee", not "the new gen."
BEFORE_NAME = {
    "col": "colonel",
    "ft": "fort",
    "fr": "father",
    "gen": "general",
    "gov": "governor",
    "hon": "honorable",
    "maj": "major",
    "mt": "mount",
    "pres": "president",
    "pt": "point",
    "rep": "representative",
    "rev": "reverend",
    "sen": "senator",
    "st": "saint",
}
# Only before a number: "No. 5", "p. 12", but "He said no."
BEFORE_NUMBER = {
    "apt": "apartment",
    "art": "article",
    "c": "circa",
    "ca": "circa",
    "ch": "chapter",
    "eq": "equation",
    "est": "established",
    "ext": "extension",
    "fig": "figure",
    "figs": "figures",
    "no": "number",
    "nos": "numbers",
    "p": "page",
    "pp": "pages",
    "pt": "part",
    "rm": "room",
    "sec": "section",
    "ste": "suite",
    "tel": "telephone",
    "ver": "version",
    "vol": "volume",
    "vols": "volumes",
}
# Only after a capitalised name or an ordinal: "Main St.", "42nd Ave."
STREETS = {
    "ave": "avenue",
    "blvd": "boulevard",
    "cir": "circle",
    "ct": "court",
    "dr": "drive",
    "hwy": "highway",
    "ln": "lane",
    "pkwy": "parkway",
    "pl": "place",
    "rd": "road",
    "sq": "square",
    "st": "street",
}
# Anywhere; these can end a sentence.
GENERAL = {
    "approx": "approximately",
    "appt": "appointment",
    "assn": "association",
    "asst": "assistant",
    "ave": "avenue",
    "blvd": "boulevard",
    "bros": "brothers",
    "cf": "compare",
    "co": "company",
    "corp": "corporation",
    "dept": "department",
    "esp": "especially",
    "esq": "esquire",
    "etc": "et cetera",
    "govt": "government",
    "hwy": "highway",
    "inc": "incorporated",
    "incl": "including",
    "jr": "junior",
    "ltd": "limited",
    "misc": "miscellaneous",
    "sr": "senior",
    "univ": "university",
    "viz": "namely",
    "vs": "versus",
}
# After a number these are feet, seconds and pints.
_ALSO_UNITS = frozenset("ft pt sec".split())
# With inner full stops; the last one may be missing.
_PHRASES = {
    "e.g": "for example",
    "i.e": "that is",
    "a.k.a": "also known as",
}

_PHRASE = re.compile(rf"\b({'|'.join(map(re.escape, _PHRASES))})\b\.?", re.IGNORECASE)
_ET_AL = re.compile(r"\bet al\b\.?")
_DOTTED = re.compile(r"(?<![A-Za-z'])(?<!\w-)([A-Za-z]{1,6})\.(?!\w)")
_BARE_TITLE = re.compile(r"\b(Mrs?|Ms|Drs?|Prof|St|Sgt|Capt|Lt)(?= [A-Z])")
_BARE_NUMBER = re.compile(r"\b(pp|Nos?|Vols?|Figs?|Ch)(?= ?\d)")
_BARE_STREET = re.compile(r"(?<=[a-z] )(St|Ave|Blvd|Rd)(?=,|\Z)")
_VERSUS = re.compile(r"(?<![A-Za-z'])(?<![A-Za-z]-)(?i:vs)(?![A-Za-z']|-[A-Za-z])|(?<=[a-z] )v\.(?= [A-Z])")
_WITH = re.compile(r"(?<![\w/])w/(o(?![\w/]))? ?")
_AND_OR = re.compile(r"\band/or\b", re.IGNORECASE)

_NUMBER_FOLLOWS = re.compile(r" ?(?:\d|#|[IVXLC]+\b|(?:[B-Z]|Ay) point )")
_NAME_FOLLOWS = re.compile(r" [A-Z]")
_LETTER_FOLLOWS = re.compile(r" [A-Za-z]")
_ADJACENT_WORD = re.compile(r"(?:\A|[^\w'])([\w']+) \Z")
_ORDINAL_WORD = re.compile(r"\d+(?:st|nd|rd|th)")
# "12 Elm", "on Main": a street name follows.
_ANNOUNCES_STREET = re.compile(r"(?:\d|\b(?:on|at|along|down|up|off|near|corner)) \Z")
_PLACES = frozenset("mount lake port fort cape isle east west north south old new sir lady lord".split())


def expand_abbreviations(text: str) -> str:
    """``"Dr. Smith of Elm Dr."`` -> ``"doctor Smith of Elm drive."``, ``"No. 5"``, ``"e.g."``, ``"Roe v. Wade"``.

    Removes the full stop of an abbreviation, unless it also ends the sentence.
    """
    text = _PHRASE.sub(lambda match: _PHRASES[match[1].lower()], text)
    text = _ET_AL.sub(lambda match: "and others" + final_stop(match), text)
    text = _DOTTED.sub(_dotted, text)
    text = _BARE_NUMBER.sub(lambda match: BEFORE_NUMBER[match[1].lower()], text)
    text = _BARE_TITLE.sub(_bare_title, text)
    text = _BARE_STREET.sub(lambda match: STREETS[match[1].lower()], text)
    text = _VERSUS.sub("versus", text)
    text = _WITH.sub(lambda match: "without " if match[1] else "with ", text)
    return _AND_OR.sub("and or", text)


def _dotted(match: re.Match) -> str:
    word, following = match[1], after(match)
    key = word.lower()
    stop = "." if ends_sentence(following) else ""
    if key in _ALSO_UNITS and before(match)[-2:-1].isdigit():
        return match[0]
    is_number = _NUMBER_FOLLOWS.match(following) and not (key == "no" and PRONOUN_I_FOLLOWS.match(following))
    if key in BEFORE_NUMBER and word != "C" and is_number:
        return BEFORE_NUMBER[key]
    if key in STREETS and _is_street(match):
        return STREETS[key] + stop
    if key in BEFORE_NAME and word[0].isupper() and _NAME_FOLLOWS.match(following):
        return BEFORE_NAME[key]
    if key == "st":
        return "saint" if _LETTER_FOLLOWS.match(following) else "street" + stop
    if key in TITLES:
        return TITLES[key] + ("" if following.strip() else ".")
    return GENERAL[key] + stop if key in GENERAL else match[0]


def _bare_title(match: re.Match) -> str:
    key = match[1].lower()
    if key in STREETS and _is_street(match):
        return STREETS[key]
    return "saint" if key == "st" else TITLES[key]


def _is_street(match: re.Match) -> bool:
    context = before(match)
    name = _ADJACENT_WORD.search(context)
    if not name or name[1].lower() in SENTENCE_STARTERS:
        return False
    if not (name[1][0].isupper() or _ORDINAL_WORD.fullmatch(name[1])):
        return False
    following = after(match)
    if not next_word(following)[:1].isupper() or _ORDINAL_WORD.fullmatch(name[1]):
        return True
    leading = context[: name.start(1)].rstrip()
    if match[1].lower() == "dr" and (not leading or leading[-1] in ".!?"):
        return False  # "Ask Dr. Who"
    if match[0].endswith(".") and ends_sentence(following):
        return True
    return name[1].lower() not in _PLACES and bool(_ANNOUNCES_STREET.search(context[: name.start(1)]))
