"""Signs read out, and the punctuation that a voice can use made regular."""

import re

from fastglow.text.english.typography import GROUP, MICRO, OHM

# Word, or nothing for signs that only decorate.
_WORDS = {
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
    MICRO: "micro",
    OHM: "ohms",
    "²": "",
    "³": "",
    "*": "",
    "~": "",
    "^": "",
    "|": "",
    "_": "",
    "#": "",
}
_SIGN = re.compile("[" + re.escape("".join(_WORDS)) + "]")

# Applied in turn, before the signs one by one.
_PHRASES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"°C\b", " degrees celsius "),
        (r"°F\b", " degrees fahrenheit "),
        (r"(?:(?<=\b[A-Za-z])|(?<=\d))²", " squared "),
        (r"(?:(?<=\b[A-Za-z])|(?<=\d))³", " cubed "),
        (r"#(?=\d)", " number "),
        (r"#(?=[A-Za-z])", " hashtag "),
        (r"(?<!\w)~ ?(?=[$£€]?\d)", " about "),
        (r"(?<=\d) ?\* ?(?=\d)", " times "),
        (r"(?<=\d) ?/ ?(?=\d)", " over "),
        (r"<=", " less than or equal to "),
        (r">=", " greater than or equal to "),
        (r"!=", " is not equal to "),
        (r"[-=]+> ?", " to "),
        (r"<[-=]+", " "),
        (r"(?<![<>])< ?(?=[\d.-])|(?<=[\w)]) < (?=\w)", " less than "),
        (r"(?<![<>])> ?(?=[\d.-])|(?<=[\w)]) > (?=\w)", " greater than "),
        (r"(?<=\w)/(?=\w)", " slash "),
    ]
]
_BRACKETS = str.maketrans({"[": "(", "]": ")", "<": " ", ">": " ", "/": " ", "`": "'"})
