"""Sentences of a text that arrives in pieces, such as the answer of a language model."""

import re
from collections.abc import Callable

from fastglow.text.sentences import split_sentences

# Longer sentences are cut before their end is known. The engine cuts one of more than 200 evenly once it is whole.
_MAX_CHARS = 400
# Of a paragraph, a list or a tag: a longer one is taken as ended.
_MOST_HELD = 5_000
_WHOLE_WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)
_BLANK_LINE = re.compile(r"\s*\n\s*\n")
# What may end a sentence, with the next word there.
_MAY_END = re.compile(r"[.!?…。！？｡]\S{0,20}\s|\n")
_LETTER = re.compile(r"[^\W_]")
_MARKS = re.compile(r"\A(?:[^\w\s]|_)*")


class GrowingText:
    """Hands out each sentence of a growing text once what follows cannot change where it ends.

    That is when the first word of the next sentence is complete, or at a blank line. The sentences are those of
    `split_sentences`, of up to 400 characters, but list items and verses are told by the lines that are there, and a
    parenthesis or tag may be cut while its end is not there.

    Args:
        clean: what is done with the text before it is split, such as `without_markdown`. It sees the paragraph so far,
            and may take away marks that it left while their partners were not there.
    """

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        self._clean = clean
        self._paragraph, self._said, self._looked = "", "", 0

    def push(self, text: str) -> list[str]:
        """The sentences that this piece of the text completes; it may begin and end inside a word."""
        self._paragraph += text
        if len(self._paragraph) > _MOST_HELD:
            return self.finish()
        words = _WHOLE_WORDS.match(self._paragraph)
        if not words:
            return []
        is_over = _BLANK_LINE.match(self._paragraph, words.end())
        may_end = is_over or len(words[0]) > len(self._said) + _MAX_CHARS or _MAY_END.search(words[0], self._looked)
        self._looked = max(words[0].rfind(" "), words[0].rfind("\n")) + 1
        if not may_end:
            return []
        cleaned = self._clean(words[0]).rstrip()
        sentences = self._rest_of(cleaned)
        # A blank line inside a block of code ends nothing.
        if is_over and self._clean(f"{words[0]}\n\nx").endswith("x"):
            self._begin(self._paragraph[words.end() :].lstrip())
        elif sentences:
            self._said = cleaned[: len(cleaned) - len(sentences.pop())]
        return sentences

    def finish(self) -> list[str]:
        """The rest of the text in sentences; then a new text may begin."""
        sentences = self._rest_of(self._clean(self._paragraph))
        self._begin("")
        return sentences

    def _begin(self, paragraph: str) -> None:
        """A paragraph of which nothing was handed out, nor looked at: `_looked` is where its last whole word begins."""
        self._paragraph, self._said, self._looked = paragraph, "", 0

    def _rest_of(self, cleaned: str) -> list[str]:
        rest = cleaned[len(self._said) :]
        if not cleaned.startswith(self._said):
            # Marks were taken away, letters were not.
            letters = [match.end() for match in _LETTER.finditer(cleaned)]
            n_said = min(len(_LETTER.findall(self._said)), len(letters) + 1)
            rest = _MARKS.sub("", cleaned[[0, *letters, len(cleaned)][n_said] :], count=1)
        return split_sentences(rest, _MAX_CHARS)
