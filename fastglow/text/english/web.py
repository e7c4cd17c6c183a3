"""Web addresses, e-mail addresses and file names, read part by part."""

import re

from fastglow.text.english.acronyms import is_spelt
from fastglow.text.english.letters import spell
from fastglow.text.numbers import number, spell_digits, year

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_TOP_LEVEL = r"(?:COM|NET|ORG|co\.uk|com|org|net|edu|gov|mil|info|biz|io|ai|dev|app|tv|eu|uk|de|fr|ch|ca)"
_EXTENSIONS = (
    "bat bin bmp cc cfg cpp css csv dll doc docx exe gif gz h hpp html htm ini jpeg jpg js json log md mp3 mp4 ogg pdf "
    "php png ppt pptx py rb rs rtf sh sql svg tar toml ts tsv txt wav xls xlsx xml yaml yml zip"
)

_EMAIL = re.compile(rf"(?<![\w.+%-])([\w.+%-]{{1,64}})@((?:{_LABEL}\.){{1,6}}[A-Za-z]{{2,24}})(?![\w-])")
_URL = re.compile(r"(?<!\w)(?:(?:https?|ftp)://|(?=www\.\w))[^\s\"<>(){}\[\]\ufdd0]+", re.IGNORECASE)
_DOMAIN = re.compile(rf"(?<![\w@.-])(?:{_LABEL}\.){{1,6}}{_TOP_LEVEL}(?![\w-]|\.\w)(?:/[^\s\"<>(){{}}\[\]\ufdd0]*)?")
_FILE = re.compile(rf"(?<![\w@.-])[\w-]{{1,64}}\.(?:{_EXTENSIONS.replace(' ', '|')})(?![\w-]|\.\w)")

_BARE_EXTENSION = re.compile(rf"(?<![\w.])\.(?=(?:NET|{_EXTENSIONS.replace(' ', '|')})(?!\w))")
_SCHEME = re.compile(r"\w+://")
_TRAILING = re.compile(r"[.,;:!?'*_]+\Z")
_PART = re.compile(r"[A-Za-z]+|[0-9]+|.", re.DOTALL)
_DELIMITERS = {
    ".": "dot",
    "/": "slash",
    "-": "dash",
    "_": "underscore",
    "?": "question mark",
    "=": "equals",
    "&": "and",
    "#": "hash",
    "%": "percent",
    ":": "colon",
    "~": "tilde",
    "@": "at",
    "+": "plus",
    ",": "comma",
    ";": "semicolon",
    "!": "exclamation mark",
    "*": "star",
    "$": "dollar",
    "|": "bar",
    "\\": "backslash",
    "^": "caret",
}
# Parts that are spelt, although they look like words.
_SPELT_PARTS = frozenset("edu io ai uk eu tv de fr ch ca".split())


def read_addresses(text: str) -> str:
    """``"www.example.com/path"`` -> ``"double you double you double you dot example dot com slash path"``.

    Schemes such as ``http://`` are not read. E-mail: ``"user at example dot com"``.
    """
    if "." not in text and "/" not in text:
        return text
    text = _EMAIL.sub(lambda match: _read(match[0]), text)
    text = _URL.sub(_url, text)
    text = _DOMAIN.sub(_url, text)
    text = _FILE.sub(lambda match: _read(match[0]), text)
    return _BARE_EXTENSION.sub("dot ", text)


def _url(match: re.Match) -> str:
    address = _SCHEME.sub("", match[0], count=1)
    trailing = _TRAILING.search(address[-8:])
    end = len(address) - len(trailing[0]) if trailing else len(address)
    return _read(address[:end].rstrip("/")) + address[end:]


def _read(address: str) -> str:
    return " ".join(filter(None, map(_read_part, _PART.findall(address))))


def _read_part(part: str) -> str:
    if part[0] in "0123456789":
        if len(part) == 4 and "1100" <= part < "2100":
            return year(int(part))
        return number(part) if len(part) < 4 else spell_digits(part)
    if not part.isalpha():
        return _DELIMITERS.get(part, "")
    if part.lower() in _SPELT_PARTS or is_spelt(part.upper(), shouted=True):
        return spell(part)
    return part.lower()
