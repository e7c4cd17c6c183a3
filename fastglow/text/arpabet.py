"""Finds ``{HH AH0 L OW1}`` groups in a text: from a ``{`` to the next ``}``, across line breaks.

A ``{`` with no ``}`` after it, and a ``}`` with no ``{`` before it, are ordinary characters.
"""

from collections.abc import Callable


def arpabet_spans(text: str) -> list[tuple[int, int]]:
    """``(start, end)`` of every group, including the braces, in order; takes one pass."""
    spans = []
    start = text.find("{")
    while start >= 0:
        end = text.find("}", start) + 1
        if end == 0:
            break
        spans.append((start, end))
        start = text.find("{", end)
    return spans


def split_arpabet(text: str) -> list[tuple[str, bool]]:
    """Cuts a text into ``(piece, is_group)``; a group's piece is the text between its braces."""
    pieces = []
    position = 0
    for start, end in arpabet_spans(text):
        if start > position:
            pieces.append((text[position:start], False))
        pieces.append((text[start + 1 : end - 1], True))
        position = end
    if position < len(text):
        pieces.append((text[position:], False))
    return pieces


def map_outside_arpabet(rewrite: Callable[[str], str], text: str) -> str:
    """Applies ``rewrite`` to each piece outside the groups."""
    return "".join(f"{{{piece}}}" if group else rewrite(piece) for piece, group in split_arpabet(text))
