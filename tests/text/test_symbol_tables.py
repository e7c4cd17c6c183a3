import pytest

from fastglow.text import symbols
from fastglow.text.symbol_tables import FOREIGN, NVIDIA, TABLES, find_table, rows_by_symbol

# torchaudio/pipelines/_tts/utils.py, as printed by its get_chars() and the head and tail of its get_phones().
TORCHAUDIO_CHARACTERS = "_-!'(),.:;? abcdefghijklmnopqrstuvwxyz"
TORCHAUDIO_PHONES_HEAD = ["_", "-", "!", "'", "(", ")", ",", ".", ":", ";", "?", " ", "AA", "AA0", "AA1", "AA2", "AE"]
TORCHAUDIO_PHONES_TAIL = ["V", "W", "Y", "Z", "ZH"]


def test_sizes_tell_the_known_tables():
    assert {len(table.symbols): table.name for table in TABLES} == {
        38: "torchaudio-characters",
        96: "torchaudio-phones",
        148: NVIDIA,
    }
    assert "".join(find_table(38).symbols) == TORCHAUDIO_CHARACTERS
    phones = [symbol.removeprefix("@") for symbol in find_table(96).symbols]
    assert phones[:17] == TORCHAUDIO_PHONES_HEAD
    assert phones[-5:] == TORCHAUDIO_PHONES_TAIL
    assert list(find_table(148).symbols) == symbols
    assert [find_table(n) for n in (1, 37, 154, 200)] == [None] * 4


def test_a_name_counts_more_than_the_size():
    assert list(find_table(64, NVIDIA).symbols) == symbols[:64]
    assert list(find_table(38, NVIDIA).symbols) == symbols[:38]
    assert list(find_table(200, NVIDIA).symbols) == symbols
    assert find_table(148, FOREIGN) is None
    assert find_table(148, "another") is None


@pytest.mark.parametrize(("n_symbols", "phones"), [(38, False), (96, True), (148, True)])
def test_phones(n_symbols, phones):
    assert find_table(n_symbols).has_phones is phones


def test_rows_by_symbol():
    assert rows_by_symbol("abc", "cxa") == [(2, 0), (0, 2)]
    assert rows_by_symbol("abc", "xyz") == []
