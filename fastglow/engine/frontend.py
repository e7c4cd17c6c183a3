"""From text to the symbol ids of whatever table an acoustic model was trained with, ended so that it stops."""

import warnings
from collections.abc import Sequence

from fastglow.errors import FastglowError
from fastglow.text import symbols as NVIDIA_SYMBOLS
from fastglow.text import text_to_sequence
from fastglow.text.lexicon import Pronounce
from fastglow.text.symbol_tables import MARKS, TABLES, find_table
from fastglow.text.unspeakable import warn_dropped

_FINAL, _CLOSING = frozenset(".!?,;"), frozenset("')")


class AssumedSymbolsWarning(UserWarning):
    """A model of an unknown symbol table has as many symbols as a known one, which is taken."""


class Frontend:
    """Cleans text and looks up its symbols.

    Args:
        text_cleaners: names, see `fastglow.text.cleaner_names`.
        n_symbols: rows of the model's embedding, which tell the table: 148 NVIDIA's, 38 torchaudio's
            characters, 96 torchaudio's phones (which reads no letters).
        lexicon: phones of words, such as a `Lexicon`; without it phones stand in braces.
        table: name of the table, where the model's checkpoint tells it; see `fastglow.text.symbol_tables`.

    Raises:
        FastglowError: no known table has that many symbols, or it has no phones for the lexicon.
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
                    f"what the model's {n_symbols} symbols stand for is not known: {known.title} is assumed",
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
            raise FastglowError(f"a model of {n_symbols} symbols reads letters and no ARPAbet: leave the lexicon out")
        self.text_cleaners = tuple(text_cleaners)
        self.lexicon = lexicon
        self._table = known.symbols
        self._ids = {symbol: i for i, symbol in enumerate(self._table)}

    def __call__(self, text: str) -> list[int]:
        """Symbol ids, ended by a mark: see `ended`; none if there is no letter or phone in them.

        Symbols that the model lacks are dropped with a warning.
        """
        sequence = [NVIDIA_SYMBOLS[i] for i in text_to_sequence(text, self.text_cleaners, self.lexicon)]
        warn_dropped([symbol for symbol in sequence if symbol not in self._ids], stacklevel=2)
        marked = ended([symbol for symbol in sequence if symbol in self._ids])
        # A table of fewer than eight symbols has no full stop.
        return [self._ids[symbol] for symbol in marked if symbol in self._ids]

    def n_sounding(self, ids: Sequence[int]) -> int:
        """How many of the symbols there are up to the last letter or phone: what follows are marks."""
        return _n_sounding([self._table[i] for i in ids])


def ended(sequence: Sequence[str]) -> list[str]:
    """A sentence's symbols, ended by a mark that tells the decoder to stop; none if nothing in them has a sound.

    Decoders learn to stop at the marks that end the clips they were trained on: full stops, exclamation and question
    marks, and commas and semicolons where readings were cut at clauses. A sentence that has one of them behind its
    last sound keeps it, with the closing quotes and brackets that follow. Another gets a full stop there, inside the
    closing quotes and brackets. Spaces, dashes, colons and opening brackets that trail behind are left out.
    """
    n_sounding = _n_sounding(sequence)
    if not n_sounding:
        return []
    marks = list(sequence[n_sounding:])
    n_final = max((i + 1 for i, mark in enumerate(marks) if mark in _FINAL), default=0)
    final, closers = marks[:n_final] or ["."], [mark for mark in marks[n_final:] if mark in _CLOSING]
    return [*sequence[:n_sounding], *final, *closers]


def _n_sounding(sequence: Sequence[str]) -> int:
    return max((i + 1 for i, symbol in enumerate(sequence) if symbol not in MARKS), default=0)
