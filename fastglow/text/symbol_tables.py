"""Symbol tables of published acoustic models: the symbol of each row of the embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastglow.text.symbol_set import PHONE_MARK
from fastglow.text.symbol_set import symbols as NVIDIA_SYMBOLS

# torchaudio's tables (torchaudio/pipelines/_tts): twelve marks, then letters or ARPAbet phones.
MARKS = tuple("_-!'(),.:;? ")
_PHONES = tuple(symbol for symbol in NVIDIA_SYMBOLS if symbol.startswith(PHONE_MARK))

NVIDIA = "nvidia"
FOREIGN = "foreign"
"""The name of all unknown tables, such as coqui's, which differ from model to model."""


@dataclass(frozen=True)
class SymbolTable:
    """`symbols` in the order of the embedding's rows, spelt as in `fastglow.text.symbols`."""

    name: str
    title: str
    symbols: tuple[str, ...]

    @property
    def has_phones(self) -> bool:
        return not set(_PHONES).isdisjoint(self.symbols)


_CHARACTERS = (*MARKS, *"abcdefghijklmnopqrstuvwxyz")
TABLES = (
    SymbolTable("torchaudio-characters", "torchaudio's character table", _CHARACTERS),
    SymbolTable("torchaudio-phones", "torchaudio's phoneme table", MARKS + _PHONES),
    SymbolTable(NVIDIA, "NVIDIA's table", tuple(NVIDIA_SYMBOLS)),
)


def find_table(n_symbols: int, name: str | None = None) -> SymbolTable | None:
    """The table of a model whose embedding has `n_symbols` rows, or None if it is unknown.

    Args:
        n_symbols: rows; without a name, the table of `TABLES` with that many symbols.
        name: of the table, if the checkpoint has it. A model that fastglow trained may have fewer rows than NVIDIA's
            table: they are its first symbols. Rows past the table are never read.
    """
    if name is None:
        return next((table for table in TABLES if len(table.symbols) == n_symbols), None)
    table = next((table for table in TABLES if table.name == name), None)
    return table and SymbolTable(table.name, table.title, table.symbols[:n_symbols])


def rows_by_symbol(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """(row of `source`, row of `target`) for every symbol in both tables."""
    positions = {symbol: row for row, symbol in enumerate(source)}
    return [(positions[symbol], row) for row, symbol in enumerate(target) if symbol in positions]
