"""Removes emoji: also joined sequences, flags, keycaps and skin tones."""

import re

# Pictographs of their own blocks, and those of older blocks that are no letters, digits, notes or arrows.
_PICTOGRAPH = (
    "[\U0001f000-\U0001f0ff\U0001f170\U0001f171\U0001f17e\U0001f17f\U0001f18e\U0001f191-\U0001f19a"
    "\U0001f200-\U0001faff\u231a\u231b\u2328\u23cf\u23e9-\u23f3\u23f8-\u23fa\u2600-\u2668\u2670-\u2775\u2794-\u27bf"
    "\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55]"
)
# Signs that are emoji only with the selector U+FE0F. Not the copyright, registered and trade marks, which are spoken.
_SELECTED = (
    "[\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u25ff\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299]\ufe0f"
)
_ONE = (
    rf"(?:[0-9#*]\ufe0f?\u20e3|[\U0001f1e6-\U0001f1ff]{{1,2}}"
    rf"|(?:{_SELECTED}|{_PICTOGRAPH})[\ufe0e\ufe0f]?[\U0001f3fb-\U0001f3ff]?[\U000e0020-\U000e007f]{{0,20}})"
)
_EMOJI = rf"{_ONE}(?:\u200d?{_ONE})*"
_RUN = re.compile(rf"(?P<before>(?:(?<!\s)\s{{1,99}})?){_EMOJI}(?:[ \t]{{0,9}}{_EMOJI})*(?P<after>[ \t]{{0,99}})")
_FIRST = re.compile(rf"\s{{0,99}}{_ONE}")
_CLOSING = frozenset(".,;:!?…)]}\"'”’»")


def without_emoji(text: str) -> str:
    """``"Well done 🎉👍🏽! 1️⃣ is not 1"`` -> ``"Well done! is not 1"``; ``©``, ``™``, ``→`` and ``♯`` stay."""
    return _RUN.sub(_gap, text).replace("\ufe0f", "")


def begins_with_emoji(line: str) -> bool:
    return bool(_FIRST.match(line))


def _gap(match: re.Match) -> str:
    """What remains between the words around emoji: line breaks, or a space."""
    before = match["before"]
    if "\n" in before or match.start() == 0:
        return before
    behind = match.string[match.end() : match.end() + 1]
    return "" if not behind or behind == "\n" or behind in _CLOSING else " "
