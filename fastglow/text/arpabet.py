"""Where ``{HH AH0 L OW1}`` groups lie in a text: from a ``{`` to the next ``}``, line breaks included.

A ``{`` with no ``}`` after it, and a ``}`` with no ``{`` before it, are ordinary characters.
"""

from collections.abc import Callable


def arpabet_spans(text: str) -> list[tuple[int, int]]:
    """``(start, end)`` of every group, braces included, in order; one pass over the text."""
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
    """Cut a text into ``(piece, is_group)``; a group's piece is what stands between its braces."""
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
    """Apply ``rewrite`` to what lies outside the groups, piece by piece."""
    return "".join(f"{{{piece}}}" if group else rewrite(piece) for piece, group in split_arpabet(text))
