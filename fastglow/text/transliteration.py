"""Converts Unicode text to ASCII with ``unidecode``'s tables, which load on first use."""

from fastglow.text.unspeakable import is_silent

# A brace would begin or end an unintended ARPAbet group.
_NO_BRACES = str.maketrans("{}", "()")


def ascii_of(character: str) -> str:
    """The ASCII form of a non-ASCII character; empty if it has none (emoji, lone surrogates ...)."""
    if "\ud800" <= character <= "\udfff":
        return ""
    from unidecode import unidecode

    # unidecode drops U+0085, a line end, which would join the words on both sides.
    return unidecode(character).translate(_NO_BRACES) or (" " if character.isspace() else "")


def to_ascii(text: str, dropped: list[str]) -> str:
    """Transliterates; appends the characters without an ASCII form, except silent ones, to ``dropped``."""
    if text.isascii():
        return text
    table = {}
    for character in dict.fromkeys(text):
        if not character.isascii():
            table[ord(character)] = ascii_of(character)
            if not table[ord(character)] and not is_silent(character):
                dropped.append(character)
    return text.translate(table)
