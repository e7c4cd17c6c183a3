"""Sentences of a text that arrives in pieces, such as the answer of a language model."""

import re

from fastglow.text.sentences import split_sentences

# Longer sentences are cut before their end is known. The engine cuts one of more than 200 evenly once it is whole.
_MAX_CHARS = 400
# A tag or a script that nobody closes is handed out as it is.
_MOST_HELD = 10_000
_WHOLE_WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)
_BLANK_LINE = re.compile(r"\s*\n\s*\n")


class GrowingText:
    """Hands out each sentence of a growing text once what follows cannot change where it ends.

    That is when the first word of the next sentence is complete, or at a blank line. The sentences are those of
    `split_sentences`, of up to 400 characters, but list items and verses are told by the lines that are there, and a
    parenthesis or tag may be cut while its end is not there.
    """

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> list[str]:
        """The sentences that this piece of the text completes; it may begin and end inside a word."""
        self._held += text
        if len(self._held) > _MOST_HELD:
            return self.finish()
        words = _WHOLE_WORDS.match(self._held)
        if not words:
            return []
        sentences = split_sentences(words[0], _MAX_CHARS)
        if _BLANK_LINE.match(self._held, words.end()):
            self._held = self._held[words.end() :].lstrip()
        else:
            self._held = self._held[words.end() - len(sentences.pop()) :]
        return sentences

    def finish(self) -> list[str]:
        """The rest of the text in sentences; then a new text may begin."""
        held, self._held = self._held, ""
        return split_sentences(held, _MAX_CHARS)
