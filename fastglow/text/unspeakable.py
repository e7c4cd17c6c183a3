"""The warning that names the characters that were dropped because they cannot be spoken."""

import unicodedata
import warnings
from collections.abc import Iterable

_MAX_NAMED = 20
# Invisible format characters and combining marks: without them the text sounds the same.
_SILENT_CATEGORIES = frozenset({"Cf", "Mn", "Me"})


class UnspeakableTextWarning(UserWarning):
    """Some characters or phones of the text could not be spoken and were dropped."""


def is_silent(character: str) -> bool:
    """Whether a character is dropped without a warning, because it has no sound of its own.

    True for the double quotation mark, combining marks and invisible format characters (zero-width joiners, byte
    order marks, soft hyphens, variation selectors).
    """
    return character == '"' or unicodedata.category(character) in _SILENT_CATEGORIES


def warn_dropped(dropped: Iterable[str], stacklevel: int) -> None:
    """Warns once, naming each dropped item once; items of more than one character are phones in braces."""
    distinct = list(dict.fromkeys(dropped))
    if not distinct:
        return
    named = ", ".join(_name(item) for item in distinct[:_MAX_NAMED])
    if len(distinct) > _MAX_NAMED:
        named += f" and {len(distinct) - _MAX_NAMED} more"
    warnings.warn(f"dropped what cannot be spoken: {named}", UnspeakableTextWarning, stacklevel + 1)


def _name(item: str) -> str:
    if len(item) > 1:
        return f"unknown phone {ascii(item)}"
    code = f"U+{ord(item):04X}"
    return f"{item!r} ({code})" if item.isprintable() else code
