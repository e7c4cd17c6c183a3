"""Stutters, read as the repeated sound, not as the letter's name."""

import re

_ONSET = "bl|br|ch|cl|cr|dr|fl|fr|gl|gr|kn|ph|pl|pr|qu|sc|sh|sk|sl|sm|sn|sp|st|str|sw|th|thr|tr|tw|wh|wr|[a-z]"
_STUTTER = re.compile(
    rf"(?<!\w)(?<!\w['-])(?P<part>{_ONSET})-(?P<more>(?:(?P=part)-){{0,20}})(?P<word>(?P=part)[a-z']*)(?![\w])",
    re.IGNORECASE,
)
# "D-Day", "S-shaped", "t-test": the letter stands for itself.
_DESIGNATIONS = frozenset(
    """
    axis ball balls battery block boy boys channel clamp class clef clip coupe day days deck dimer frame lysine
    methionine mode series shape shaped shapes slot spec tail tape test tests top tube tubes vitamin
    """.split()
)
_VOWELS = {"a": "a", "e": "eh", "i": "ih", "o": "oh", "u": "uh"}
_SILENT = (
    (re.compile("kn|gn|pn"), "nuh"),
    (re.compile("ps"), "suh"),
    (re.compile("wr"), "ruh"),
    (re.compile("who(?!a)"), "huh"),
    (re.compile("wh"), "wuh"),
)
_SOFT_G = re.compile("g(?:e[nmo]|i[an]|y)")


def read_stutters(text: str) -> str:
    """``"Y-you"`` -> ``"yuh-you"``, ``"D-d-don't"`` -> ``"duh-duh-don't"``, ``"I-I'm"``; ``"D-Day"`` stays."""
    return _STUTTER.sub(_stutter, text) if "-" in text else text


def _stutter(match: re.Match) -> str:
    part, word = match["part"].lower(), match["word"].lower()
    if word == part:
        # "I-I", "a-a" are words of one letter; others are sequences of letters.
        return match[0]
    if not match["more"] and len(part) == 1 and word in _DESIGNATIONS:
        return match[0]
    if part == "i" and word.startswith("i'"):
        return match[0]
    times = 1 + len(match["more"]) // (len(part) + 1)
    return f"{_sound(part, word)}-" * times + match["word"]


def _sound(part: str, word: str) -> str:
    if part in _VOWELS:
        return _VOWELS[part]
    for pattern, sound in _SILENT:
        if pattern.match(word):
            return sound
    if part == "c" and word.startswith("ch"):
        return "chuh"
    if part == "c":
        return "suh" if word[1:2] in tuple("eiy") else "kuh"
    if part == "g" and _SOFT_G.match(word):
        return "juh"
    if part in ("q", "qu"):
        return "kwuh"
    if part == "p" and word.startswith("ph"):
        return "fuh"
    return {"x": "zuh", "ph": "fuh"}.get(part, part + "uh")
