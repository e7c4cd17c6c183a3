"""Converts Unicode to ASCII and the signs that later steps read, and normalises quotes and spaces."""

import re
import unicodedata

from fastglow.text.transliteration import ascii_of
from fastglow.text.unspeakable import is_silent

# Placeholder of an {ARPAbet} group while the rest is rewritten; a Unicode noncharacter, which no text needs.
GROUP = "\ufdd0"

# Signs that stay until a later step reads them.
MICRO = "\u00b5"
OHM = "\u2126"
_SIGNS = frozenset("$£€¥₹¢₩₽₺₪₫฿₱₿°×÷±≤≥≠≈∞√²³‰§©−–—" + MICRO + OHM)

_REPLACEMENTS = {
    **dict.fromkeys("‘’‚‛′ʼʹ`´", "'"),
    **dict.fromkeys("“”„‟″«»‹›", '"'),
    **dict.fromkeys("‐‑‧", "-"),
    **dict.fromkeys("‒", "–"),
    # Also drawn lines and other scripts' dashes.
    **dict.fromkeys("⁓―⸺⸻─━╌╍┄┅┈┉╴╶╸╺═⎯⎼⎻﹘〜～〰", "—"),
    **dict.fromkeys("•‣▪●◦·†‡®™℠", " "),
    **dict.fromkeys("⁰¹⁴⁵⁶⁷⁸⁹⁺⁻", ""),
    **dict.fromkeys("→⇒➔", " to "),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("∙⋅∗✕✖", "×"),
    "、": ", ",
    "。": ". ",
    "…": "...",
    "№": " No. ",
    "¶": " ",
    "π": "pi",
    "￥": "¥",
    "￡": "£",
    "￠": "¢",
}

# Superscripts are exponents after a digit or a lone letter, footnote marks elsewhere.
_EXPONENT = re.compile(r"(?:(?<=\d)|(?<=\b[A-Za-z]))(?:[⁺⁻]?(?:[⁰¹²³⁴-⁹]{2,}|[⁰¹⁴-⁹])|[⁺⁻][²³])")
_EXPONENT_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", "⁺")
# Greek letters that are units after a number or a space: mu in "5 μm", omega in "3 kΩ".
_MICRO = re.compile(r"(?<=[\d ])\u03bc(?=[AFLVWglms](?![^\W\d_]))")
_OHM = re.compile(r"(?<=[\dkKM ])\u03a9(?!\w)")
# Between numbers, a dash of any length or a tilde is a range; between Latin letters, a full-width hyphen is a dash.
_RANGE = re.compile(r"(?<=\d)(?:[—⁓―⸺⸻─━╌╍┄┅┈┉╴╶╸╺═⎯⎼⎻﹘〜～〰~]|--)(?=[$£€¥₹]?\d)")
_WAVE_BETWEEN_WORDS = re.compile(r"(?<=[A-Za-z])~(?=[A-Za-z])")
_ABOUT = re.compile(r"(?<!\S)[〜～](?=[$£€¥₹]?\d)")
# A rule of signs between words is not spoken.
_RULE = re.compile(r"(?<!\S)(?:={4,}|\+{3,}|~{2,}|#{3,})(?!\S)")
# Spaces that do not break group digits: "1 234 567".
_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d|[.,]\d)")
_GROUP_SPACE = re.compile(r"[\u00a0\u2009\u202f]")
_WIDE_DASH = re.compile(r"(?<=[A-Za-z])－(?=[A-Za-z])")
_ORDINAL_DEGREE = re.compile(r"(?<=\d)º")


def to_signs(text: str, dropped: list[str]) -> str:
    """Reduces text to ASCII, the signs above, ``GROUP`` and single spaces; appends the rest to ``dropped``.

    Compatibility forms (full-width, circled, superscript, fractions, ligatures) become plain characters, other scripts
    are transliterated. Currency signs stay for a later step.
    """
    text = _EXPONENT.sub(lambda match: "^" + match[0].translate(_EXPONENT_DIGITS), text)
    text = _MICRO.sub(MICRO, text)
    text = _OHM.sub(OHM, text)
    text = _GROUPED.sub(lambda match: _GROUP_SPACE.sub(",", match[0]), text)
    text = _WIDE_DASH.sub("—", _ABOUT.sub("~", _RANGE.sub("–", text)))
    text = _WAVE_BETWEEN_WORDS.sub("—", _RULE.sub("—", text))
    text = _ORDINAL_DEGREE.sub("°", text)
    table = {}
    for character in dict.fromkeys(text):
        if not (character.isascii() and character.isprintable()) and character != GROUP:
            plain = _plain(character)
            if plain is None:
                plain = " "
                if not character.isspace():
                    dropped.append(character)
            table[ord(character)] = plain
    return " ".join(text.translate(table).split())


def _plain(character: str) -> str | None:
    """The readable form of one character; ``None`` if it has none."""
    if character in _REPLACEMENTS:
        return _REPLACEMENTS[character]
    if character in _SIGNS:
        return character
    compatible = unicodedata.normalize("NFKC", character)
    if compatible != character:
        if "⁄" in compatible:
            return " " + compatible.replace("⁄", "/")
        return "".join(_plain(part) or "" for part in compatible) or None
    if character.isascii():
        return character if character.isprintable() else None
    return ascii_of(character) or ("" if is_silent(character) else None)


_QUOTED_GAP = re.compile(r'(?<=\w)"(?=\w)')
_SPACE_BEFORE_MARK = re.compile(r" (?=[,;:!?](?!\w)|\.(?![\w.]))")
_AND = re.compile(r"(?<!\w)(?:'n'?|n')(?!\w)")
_EDGE_APOSTROPHE = re.compile(rf"(?<![A-Za-z0-9{GROUP}])'|'(?![A-Za-z0-9])|_")
_MISSING_SPACE = re.compile(
    r"((?<=[A-Za-z)])[,;:!?](?!\d)|(?<=[A-Za-z]{2})\.|(?<=[A-Za-z])\.(?=[A-Za-z]{2}))(?=[A-Za-z(\d$£€¥₹])"
)


def normalize_quotes(text: str) -> str:
    """Removes double quotation marks, spaces before marks and doubled full stops; double hyphens become dashes."""
    text = _QUOTED_GAP.sub(" ", text).replace('"', "")
    text = re.sub(r"(?<!\.)\.\.(?!\.)", ".", re.sub("-{2,}", "—", text))
    return _SPACE_BEFORE_MARK.sub("", text)


def normalize_words(text: str) -> str:
    """Keeps apostrophes inside words only (``'tis`` sounds the same without), and puts a space after every mark."""
    text = _EDGE_APOSTROPHE.sub(" ", _AND.sub("and", text))
    text = " ".join(_MISSING_SPACE.sub(r"\1 ", text).split())
    return _SPACE_BEFORE_MARK.sub("", text)
