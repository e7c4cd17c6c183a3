"""Which words of a text, as written, the words of its cleaned form stand for."""

import re
from collections.abc import Callable, Iterable, Sequence

from fastglow.text.sequence import Span

# A word ends at white space, but not inside a {PHONES} group.
_WORD = re.compile(r"(?:\{[^}]*\}|\S)+")
# The score of a word without a partner. Other scores: see `_likeness`.
_ALONE = -0.25


def written_words(text: str, spoken: Sequence[Span], speak: Callable[[str], Sequence[Span]]) -> list[Span]:
    """The words of a text with the symbols that speak them, in order.

    A word is what stands between white space, with its marks. It has the symbols of all that is spoken for it: of
    `three dollars and fifty cents` for `$3.50`. What is not spoken, such as an emoji, is left out. Words that are not
    spoken one by one, as in `1 000 000`, are joined by spaces and share their symbols.

    Each word is compared with what is spoken for it alone. What context changes, as the order of `$5 million`, goes to
    the word at its place.

    Args:
        text: as written.
        spoken: the words of the cleaned text among its symbols, see `EncodedText.words`.
        speak: the same of a part of the text.
    """
    written = _WORD.findall(text)
    # Most sentences are spoken as they are written, but for a few words. At least one is left for what else is spoken.
    first = _n_equal(written, spoken)
    if first == len(written) < len(spoken):
        first = max(0, first - 1)
    last = _n_equal(written[:first:-1], spoken[:first:-1])
    before = [Span(word, *span[1:]) for word, span in zip(written[:first], spoken, strict=False)]
    ends = len(written) - last, len(spoken) - last
    between = _matched(written[first : ends[0]], spoken[first : ends[1]], speak)
    after = [Span(word, *span[1:]) for word, span in zip(written[ends[0] :], spoken[ends[1] :], strict=True)]
    return before + between + after


def _n_equal(written: Iterable[str], spoken: Iterable[Span]) -> int:
    """How many words at the beginning are spoken as they are written."""
    n = 0
    for word, span in zip(written, spoken, strict=False):
        if _key(word) != _key(span.text):
            break
        n += 1
    return n


def _key(word: str) -> str:
    return "".join(character for character in word.lower() if character.isalnum())


def _matched(written: list[str], spoken: Sequence[Span], speak: Callable[[str], Sequence[Span]]) -> list[Span]:
    if not written or not spoken:
        return []
    keys = [_key(span.text) for span in spoken]
    alone = [[_key(word)] if _key(word) in keys else [_key(span.text) for span in speak(word)] for word in written]
    if not any(alone):  # spoken in this context only
        return [Span(" ".join(written), spoken[0].start, spoken[-1].end)]
    owners = [i for i, words in enumerate(alone) for _ in words]
    pairs = _paired([word for words in alone for word in words], keys)
    # What has no partner belongs to the word before it.
    heard: dict[int, list[Span]] = {}
    owner = owners[next(i for i in pairs if i is not None)]
    for i, span in zip(pairs, spoken, strict=True):
        owner = owner if i is None else owners[i]
        heard.setdefault(owner, []).append(span)
    found: list[Span] = []
    waiting: list[str] = []
    for i, word in enumerate(written):
        if i in heard:
            found.append(Span(" ".join([*waiting, word]), heard[i][0].start, heard[i][-1].end))
            waiting = []
        elif alone[i] and found:
            found[-1] = found[-1]._replace(text=f"{found[-1].text} {word}")
        elif alone[i]:
            waiting.append(word)
    return found


def _paired(some: list[str], others: list[str]) -> list[int | None]:
    """For each of the others the index of its partner, ascending, by global alignment (Needleman & Wunsch, 1970)."""
    scores = [[_ALONE * j for j in range(len(others) + 1)]]
    for word in some:
        above, row = scores[-1], [scores[-1][0] + _ALONE]
        for j, other in enumerate(others):
            row.append(max(above[j] + _likeness(word, other), above[j + 1] + _ALONE, row[j] + _ALONE))
        scores.append(row)
    partners: list[int | None] = [None] * len(others)
    i, j = len(some), len(others)
    while i and j:
        if scores[i][j] == scores[i - 1][j - 1] + _likeness(some[i - 1], others[j - 1]):
            i, j = i - 1, j - 1
            partners[j] = i
        elif scores[i][j] == scores[i - 1][j] + _ALONE:
            i -= 1
        else:
            j -= 1
    return partners


def _likeness(one: str, other: str) -> float:
    return 1.0 if one == other else 0.3 if one[:1] == other[:1] else 0.0
