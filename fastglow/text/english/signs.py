"""Reads signs out and normalises punctuation."""

import re

from fastglow.text.english.typography import GROUP, MICRO, OHM

# Applied in turn, before numbers are written out.
_IN_CONTEXT = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"°C\b", " degrees celsius "),
        (r"°F\b", " degrees fahrenheit "),
        (r"(?:(?<=\b[A-Za-z])|(?<=\b[A-Za-z]{2})|(?<=\d))²", " squared "),
        (r"(?:(?<=\b[A-Za-z])|(?<=\b[A-Za-z]{2})|(?<=\d))³", " cubed "),
        (r"[²³]", ""),
        (MICRO, " micro "),
        (OHM, " ohms "),
        (r"# ?(?=\d)", " number "),
        (r"(?<!\w)#(?=[A-Za-z])", " hashtag "),
        (r"\b([CF])#", r"\1 sharp"),
        (r"(?<!\w)~ ?(?=\d)", " about "),
        (r"(?<=\d) ?\* ?(?=\d)", " times "),
        (r"<=", " less than or equal to "),
        (r">=", " greater than or equal to "),
        (r"!=", " is not equal to "),
        (r"[-=]>", " to "),
        (r"<[-=]", " "),
        (r"<(?= ?[\d.-])|(?<=[\w)]) < (?=\w)", " less than "),
        (r">(?= ?[\d.-])|(?<=[\w)]) > (?=\w)", " greater than "),
    ]
]
_ALONE = {
    "&": "and",
    "+": "plus",
    "=": "equals",
    "@": "at",
    "%": "percent",
    "‰": "per mille",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "≤": "less than or equal to",
    "≥": "greater than or equal to",
    "≠": "is not equal to",
    "≈": "approximately",
    "∞": "infinity",
    "√": "square root of",
    "§": "section",
    "©": "copyright",
    "−": "minus",
    "°": "degrees",
    "\\": "backslash",
}
_SIGN = re.compile("[" + re.escape("".join(_ALONE)) + "]")
_SLASH = re.compile(r"(?<=\w)/(?=\w)")

_UNIT = f"(?:[a-z]+|{GROUP})"
_WORD = re.compile(rf"({_UNIT}(?:['-]{_UNIT})*)")
# From the strongest to the weakest.
_MARKS = re.compile(r"(\?)|(!)|(\.\.\.|\. \. \.)|(\.)|(:)|(;)|(,|[–—]| - |--)")
_SPOKEN_MARKS = ("?", "!", "...", ".", ":", ";", ",")


def read_signs_in_context(text: str) -> str:
    """Signs whose meaning depends on their neighbours: ``"#5"``, ``"~5"``, ``"x < 5"``, ``"2 * 3"``, ``"x²"``."""
    for pattern, words in _IN_CONTEXT:
        text = pattern.sub(words, text)
    return text


def read_signs(text: str) -> str:
    """Every other sign that has a name: ``"R & D"``, ``"a = b"``, ``"he/she"``."""
    text = _SIGN.sub(lambda match: f" {_ALONE[match[0]]} ", text)
    return _SLASH.sub(" slash ", text)


def tidy(text: str) -> str:
    """Lower-case words with at most one mark between two of them: `` ` -- it's (well... "odd"!)`` -> ``it's (well...``.

    Keeps ASCII letters, ``GROUP``, hyphens and apostrophes inside words, and the parentheses and strongest mark of
    each gap between words.
    """
    pieces = _WORD.split(text.lower().replace("[", "(").replace("]", ")"))
    if len(pieces) == 1:
        return ""
    gaps = [_gap(gap) for gap in pieces[0::2]]
    gaps[0] = "(" if gaps[0].endswith("(") else ""
    gaps[-1] = gaps[-1].rstrip(" (")
    pieces[0::2] = gaps
    return "".join(pieces)


def _gap(gap: str) -> str:
    if gap in ("", " "):
        return gap
    found = [match.lastindex for match in _MARKS.finditer(gap) if match.lastindex]
    mark = _SPOKEN_MARKS[min(found) - 1] if found else ""
    return f"{')' * (')' in gap)}{mark} {'(' * ('(' in gap)}"
