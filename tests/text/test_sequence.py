"""``text_to_sequence`` and ``sequence_to_text`` against golden sequences, and on arbitrary text."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.errors import FastglowError
from fastglow.text import UnspeakableTextWarning, cleaner_names, sequence_to_text, symbols, text_to_sequence
from fastglow.text.cleaners import clean
from fastglow.text.sequence import encode

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "data" / "golden" / "text_to_sequence.json").read_text(encoding="utf-8")
)["phrases"]

any_text = (
    st.text()
    | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Co", "Cn", "So", "Mn"]))
    | st.text("{} AHB01hw_~@.,$1\n\t\"'")
)


@pytest.mark.filterwarnings("ignore::fastglow.text.UnspeakableTextWarning")
@pytest.mark.parametrize("phrase", GOLDEN, ids=lambda phrase: phrase["text"][:24])
def test_golden_phrase(phrase):
    assert text_to_sequence(phrase["text"], ["english_cleaners"]) == phrase["sequence"]


@pytest.mark.parametrize("cleaner", cleaner_names())
@settings(max_examples=100)
@given(text=any_text)
def test_any_text_is_accepted(cleaner, text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sequence = text_to_sequence(text, [cleaner])
    assert all(type(index) is int and 0 <= index < len(symbols) for index in sequence)
    assert [warning.category for warning in caught] in ([], [UnspeakableTextWarning])
    assert all(str(warning.message).isprintable() for warning in caught)


@settings(max_examples=100)
@given(st.lists(st.integers(0, len(symbols) - 1)))
def test_sequence_to_text_and_back_is_exact(sequence):
    assert text_to_sequence(sequence_to_text(sequence), []) == sequence


def phones(*names):
    return [symbols.index("@" + name) for name in names]


def letters(text):
    return [symbols.index(letter) for letter in text]


def test_phones_in_braces():
    sequence = text_to_sequence("Go {HH AW1 S}!", ["english_cleaners"])
    assert sequence == letters("go ") + phones("HH", "AW1", "S") + letters("!")
    assert sequence_to_text(sequence) == "go {HH AW1 S}!"
    assert text_to_sequence("{HH}{AW1}{S\n T}", []) == phones("HH", "AW1", "S", "T")


def test_text_after_a_line_break_is_kept():
    assert text_to_sequence("{B}\na\n{D}", ["english_cleaners"]) == phones("B") + letters(" a ") + phones("D")


def test_unbalanced_and_empty_braces():
    with pytest.warns(UnspeakableTextWarning, match=r"'\}' \(U\+007D\)"):
        assert text_to_sequence("a}b{}c", []) == letters("abc")
    with pytest.warns(UnspeakableTextWarning, match=r"'\{' \(U\+007B\)"):
        assert text_to_sequence("{B} {a b", []) == phones("B") + letters(" a b")


def test_full_width_braces_are_not_braces():
    assert text_to_sequence("｛AA｝", ["english_cleaners"]) == letters("(aa)")


def test_unknown_phones_are_dropped_and_named():
    with pytest.warns(UnspeakableTextWarning, match=r"unknown phone '\{QQ\}', unknown phone '\{aa\}'$"):
        assert text_to_sequence("{QQ B aa QQ}", ["english_cleaners"]) == phones("B")


@pytest.mark.parametrize("cleaner", cleaner_names())
def test_one_warning_names_what_was_dropped(cleaner):
    with pytest.warns(UnspeakableTextWarning) as caught:
        text_to_sequence("a 😀 \udfff {XX} 😀", [cleaner])
    assert len(caught) == 1
    assert str(caught[0].message).count("U+1F600") == 1
    assert "U+DFFF" in str(caught[0].message)
    assert "'{XX}'" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_long_list_of_dropped_characters_is_cut():
    with pytest.warns(UnspeakableTextWarning, match=r"U\+4E13\) and 12 more$"):
        text_to_sequence("".join(map(chr, range(0x4E00, 0x4E20))), [])


@pytest.mark.parametrize("silent", ['"', "\ufeff", "\u200d", "\u00ad", "\ufe0f", "\u0301"])
def test_silent_characters_are_dropped_without_a_warning(silent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text_to_sequence(f"a{silent}b", ["basic_cleaners"]) == letters("ab")
        assert text_to_sequence(f"a{silent}b", ["english_cleaners"]) == letters("ab")


def test_pad_symbol_passes_as_in_nvidias_code():
    assert text_to_sequence("a_b", ["english_cleaners"]) == letters("a") + [0] + letters("b")


def test_cleaners_run_in_order():
    assert text_to_sequence("É", ["transliteration_cleaners", "english_cleaners"]) == letters("e")
    with pytest.warns(UnspeakableTextWarning, match="é"):
        assert text_to_sequence("É", ["basic_cleaners"]) == []
    assert text_to_sequence("Ab", []) == letters("Ab")
    assert text_to_sequence("Ab", "basic_cleaners") == letters("ab")


def test_unknown_cleaner():
    with pytest.raises(FastglowError, match=r"'english_cleaner'.*basic_cleaners.*english_speech_cleaners") as error:
        text_to_sequence("a", ["english_cleaner"])
    assert "\n" not in str(error.value)


def test_text_must_be_a_string():
    with pytest.raises(FastglowError, match="not bytes"):
        text_to_sequence(b"a", ["basic_cleaners"])


def test_encoding_names_what_it_drops_without_a_warning():
    ids = {"a": 3, "@HH": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode('A b\N{SNOWMAN}"{HH T}', ["basic_cleaners"], ids=ids) == (
            [3, 5],
            [" ", "b", "\N{SNOWMAN}", "{T}"],
            [("a", 0, 1), ("{HH T}", 1, 2)],
        )
        assert encode("a", pronounce={"a": "HH"}.get, ids=ids) == ([5], [], [("a", 0, 1)])
        assert clean("\N{SNOWMAN}A", ["english_cleaners", "basic_cleaners"]) == ("a", ["\N{SNOWMAN}"])


def test_sequence_to_text_skips_foreign_ids_and_takes_arrays():
    assert sequence_to_text([38, -1, 148, 10**6, 39]) == "ab"
    assert sequence_to_text(np.array([38, 39])) == "ab"
    assert sequence_to_text([]) == ""
