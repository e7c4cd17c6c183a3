"""From text to the symbol ids of whatever table an acoustic model was trained with."""

from collections.abc import Sequence

from fastglow.errors import FastglowError
from fastglow.text import symbols as NVIDIA_SYMBOLS
from fastglow.text import text_to_sequence
from fastglow.text.lexicon import Pronounce
from fastglow.text.symbol_set import PHONE_MARK
from fastglow.text.unspeakable import warn_dropped

# torchaudio's tables (torchaudio/pipelines/_tts): twelve marks, then letters or ARPAbet phones.
_TORCHAUDIO_MARKS = tuple("_-!'(),.:;? ")
_PHONES = tuple(symbol for symbol in NVIDIA_SYMBOLS if symbol.startswith(PHONE_MARK))
_TABLES = {
    len(table): table
    for table in (
        tuple(NVIDIA_SYMBOLS),
        _TORCHAUDIO_MARKS + tuple("abcdefghijklmnopqrstuvwxyz"),
        _TORCHAUDIO_MARKS + _PHONES,
    )
}


class Frontend:
    """Cleans text and looks up its symbols.

    Args:
        text_cleaners: names, see `fastglow.text.cleaner_names`.
        n_symbols: rows of the model's embedding, which tell the table: 148 NVIDIA's, 38 torchaudio's
            characters, 96 torchaudio's phones (which reads no letters).
        lexicon: phones of words, such as a `Lexicon`; without it phones stand in braces.

    Raises:
        FastglowError: no known table has that many symbols, or it has no phones for the lexicon.
    """

    def __init__(self, text_cleaners: Sequence[str], n_symbols: int, lexicon: Pronounce | None = None):
        if n_symbols not in _TABLES:
            raise FastglowError(
                f"no known symbol table has {n_symbols} symbols (known: {', '.join(map(str, sorted(_TABLES)))}): "
                "call Tacotron2.infer with symbol ids of your own"
            )
        if lexicon is not None and not set(_PHONES) & set(_TABLES[n_symbols]):
            raise FastglowError(f"a model of {n_symbols} symbols reads letters and no ARPAbet: leave the lexicon out")
        self.text_cleaners = tuple(text_cleaners)
        self.lexicon = lexicon
        positions = {symbol: i for i, symbol in enumerate(_TABLES[n_symbols])}
        self._ids = [positions.get(symbol) for symbol in NVIDIA_SYMBOLS]

    def __call__(self, text: str) -> list[int]:
        """Symbol ids, perhaps none; symbols that the model lacks are dropped with a warning."""
        sequence = text_to_sequence(text, self.text_cleaners, self.lexicon)
        warn_dropped([NVIDIA_SYMBOLS[i] for i in sequence if self._ids[i] is None], stacklevel=2)
        return [self._ids[i] for i in sequence if self._ids[i] is not None]
