"""Any Unicode text in ASCII, by ``unidecode``'s tables."""

from unidecode import unidecode

from fastglow.text.unspeakable import is_silent

# A brace would open or close an ARPAbet group that the writer did not mean.
_NO_BRACES = str.maketrans("{}", "()")


def ascii_of(character: str) -> str:
    """The ASCII form of one non-ASCII character; empty when it has none (emoji, lone surrogates ...)."""
    if "\ud800" <= character <= "\udfff":
        return ""
    # Its table has nothing for U+0085, a line's end: the words on both sides must not grow together.
    return unidecode(character).translate(_NO_BRACES) or (" " if character.isspace() else "")


def to_ascii(text: str, dropped: list[str]) -> str:
    """Transliterate; characters without an ASCII form disappear and, if they are not silent, join ``dropped``."""
    if text.isascii():
        return text
    table = {}
    for character in dict.fromkeys(text):
        if not character.isascii():
            table[ord(character)] = ascii_of(character)
            if not table[ord(character)] and not is_silent(character):
                dropped.append(character)
    return text.translate(table)
