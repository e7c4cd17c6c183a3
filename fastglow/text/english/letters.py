"""Letter names, spelt as words that a voice trained on prose can say."""

_NAMES = {
    "a": "ay",
    "b": "bee",
    "c": "see",
    "d": "dee",
    "e": "ee",
    "f": "eff",
    "g": "jee",
    "h": "aitch",
    "i": "eye",
    "j": "jay",
    "k": "kay",
    "l": "ell",
    "m": "em",
    "n": "en",
    "o": "oh",
    "p": "pee",
    "q": "cue",
    "r": "ar",
    "s": "ess",
    "t": "tee",
    "u": "you",
    "v": "vee",
    "w": "double you",
    "x": "ex",
    "y": "why",
    "z": "zee",
}


def spell(letters: str, plural: bool = False) -> str:
    """``"BBC"`` -> ``"bee bee see"``, plural ``"bee bee sees"``; other characters than ASCII letters are skipped."""
    names = " ".join(_NAMES[letter] for letter in letters.lower() if letter in _NAMES)
    if not plural:
        return names
    return names + ("es" if names.endswith(("ess", "ex", "aitch")) else "s")
