"""Converts text to symbol ids of an acoustic model's table, with a final mark so that decoding stops."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from fastglow.errors import FastglowError
from fastglow.text.lexicon import Pronounce
from fastglow.text.sequence import EncodedText, Span, encode
from fastglow.text.symbol_tables import MARKS, TABLES, find_table
from fastglow.text.unspeakable import warn_dropped
from fastglow.text.written_words import written_words

_FINAL, _CLOSING = ".!?,;", "')"


class AssumedSymbolsWarning(UserWarning):
    """A model's symbol table is unknown; a known table of the same size is assumed."""


class EncodedSentence(NamedTuple):
    """A sentence as an acoustic model reads it.

    Attributes:
        symbols: ids, ended by a mark (see `Frontend.ended`); empty if they hold no letter or phone.
        n_sounding: number of symbols up to the last letter or phone; only marks follow.
        dropped: characters and `{PHONE}`s that the table lacks, which a warning has named.
        words: the spoken ones among the symbols, see `EncodedText.words`.
    """

    symbols: list[int]
    n_sounding: int
    dropped: list[str]
    words: list[Span]


class Frontend:
    """Cleans text and looks up its symbols.

    Args:
        text_cleaners: names, see `fastglow.text.cleaner_names`.
        n_symbols: rows of the model's embedding, which identify the table: 148 for NVIDIA's, 38 for torchaudio's
            characters, 96 for torchaudio's phones (which has no letters).
        lexicon: phones of words, such as a `Lexicon`; without it, phones are written in braces.
        table: name of the table, if the model's checkpoint records it; see `fastglow.text.symbol_tables`.

    Raises:
        FastglowError: no known table has that many symbols, or a lexicon is given and the table has no phones.
    """

    def __init__(
        self,
        text_cleaners: Sequence[str],
        n_symbols: int,
        lexicon: Pronounce | None = None,
        table: str | None = None,
    ):
        known = find_table(n_symbols, table)
        if known is None and table is not None:
            known = find_table(n_symbols)
            if known is not None:
                warnings.warn(
                    f"the table of the model's {n_symbols} symbols is unknown: {known.title} is assumed",
                    AssumedSymbolsWarning,
                    stacklevel=3,
                )
        if known is None:
            raise FastglowError(
                f"no known symbol table has {n_symbols} symbols (known: "
                f"{', '.join(str(len(table.symbols)) for table in TABLES)}): "
                "call Tacotron2.infer with symbol ids of your own"
            )
        if lexicon is not None and not known.has_phones:
            raise FastglowError(f"a model of {n_symbols} symbols reads letters, not ARPAbet: leave the lexicon out")
        self.text_cleaners = tuple(text_cleaners)
        self.lexicon = lexicon
        self._ids = {symbol: i for i, symbol in enumerate(known.symbols)}
        self._marks, self._final, self._closing = (
            frozenset(self._ids[symbol] for symbol in kind if symbol in self._ids) for kind in (MARKS, _FINAL, _CLOSING)
        )

    def encode(self, text: str) -> EncodedSentence:
        """The ids of a sentence. A warning names the symbols that the model lacks, which are dropped."""
        ids, dropped, words = self._encode(text)
        warn_dropped(dropped, stacklevel=2)
        return EncodedSentence(self.ended(ids), self._n_sounding(ids), dropped, words)

    def written_words(self, text: str, spoken: Sequence[Span]) -> list[Span]:
        """A sentence's words as written, with their symbols; see `fastglow.text.written_words`.

        Args:
            text: as for `encode`.
            spoken: the `words` of its result.
        """
        return written_words(text, spoken, lambda part: self._encode(part).words)

    def _encode(self, text: str) -> EncodedText:
        return encode(text, self.text_cleaners, self.lexicon, self._ids)

    def ended(self, ids: Sequence[int]) -> list[int]:
        """A sentence's symbols, ended by a mark that makes the decoder stop; empty if none of them has a sound.

        Decoders learn to stop at the marks that end their training clips: full stops, exclamation and question marks,
        and commas and semicolons where readings were cut at clauses. A sentence with such a mark after its last sound
        keeps it and the closing quotes and brackets that follow; any other sentence gets a full stop there, inside its
        closing quotes and brackets. Trailing spaces, dashes, colons and opening brackets are left out.
        """
        n_sounding = self._n_sounding(ids)
        if not n_sounding:
            return []
        marks = list(ids[n_sounding:])
        n_final = max((i + 1 for i, mark in enumerate(marks) if mark in self._final), default=0)
        # A table of fewer than eight symbols has no full stop.
        final = marks[:n_final] or [self._ids[symbol] for symbol in "." if symbol in self._ids]
        return [*ids[:n_sounding], *final, *(mark for mark in marks[n_final:] if mark in self._closing)]

    def _n_sounding(self, ids: Sequence[int]) -> int:
        return max((i + 1 for i, symbol in enumerate(ids) if symbol not in self._marks), default=0)
