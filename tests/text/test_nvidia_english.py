"""NVIDIA's cleaners beyond the golden phrases, against expectations derived from their rules."""

import pytest

from fastglow.text.cleaners import basic_cleaners, cleaner_names, english_cleaners, transliteration_cleaners


def test_names():
    assert cleaner_names() == [
        "basic_cleaners",
        "transliteration_cleaners",
        "english_cleaners",
        "english_speech_cleaners",
    ]


def test_basic():
    assert basic_cleaners("ÀB \t\n C 5") == "àb c 5"


def test_transliteration():
    assert transliteration_cleaners("Àb  ЖЫ “x”") == 'ab zhy "x"'


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("£5", "psfive"),
        ("$1.05 $1.5 $2 $0 $.5", "one dollar, five cents one dollar, five cents two dollars zero dollars five cents"),
        ("$1,000.01", "one thousand dollars, one cent"),
        ("$1.2.3", "one point two.three dollars"),
        ("1,234 1,2 1,23", "twelve thirty-four twelve one hundred twenty-three"),
        ("1066 2000 2005 1905 3000", "ten sixty-six two thousand two thousand five nineteen oh five three thousand"),
        ("101st 101", "one hundred and first one hundred one"),
        ("mr.dr.", "misterdr."),
        ("5ft. st.", "fiveft. saint"),
        ("ALL & 5%", "all & five%"),
        ("0007", "seven"),
    ],
)
def test_english(written, cleaned):
    assert english_cleaners(written) == cleaned


@pytest.mark.parametrize(
    "text", ["1" * 37, "0" * 50 + "5", "1" * 5000, "1" * 40 + "st", "$,5", "$" + "1" * 5000 + ".1"]
)
def test_numbers_on_which_the_reference_raises(text):
    cleaned = english_cleaners(text)
    assert cleaned
    assert not set(cleaned) & set("0123456789$")


@pytest.mark.parametrize("cleaner", [basic_cleaners, transliteration_cleaners, english_cleaners])
def test_arpabet_is_left_alone(cleaner):
    assert cleaner("A {HH AW1\n 5} B {X}") == "a {HH AW1\n 5} b {X}"


@pytest.mark.parametrize("unit", ["1", "1,", "1.", "$", "$1", "{", "1st", "mr.", "\u0300"])
def test_long_monotonous_text(unit):
    """A pattern that takes quadratic time would need minutes."""
    english_cleaners(unit * (100_000 // len(unit)), [])


@pytest.mark.parametrize("space", ["\x85", "\u2028", "\u2029", "\xa0", "\u3000", "\u2003", "\x1c", "\x0b"])
@pytest.mark.parametrize("cleaner", [basic_cleaners, transliteration_cleaners, english_cleaners])
def test_every_white_space_keeps_words_apart(cleaner, space):
    assert cleaner(f"One{space}two") == "one two"
