"""How the symbols of a sentence end, for every table and cleaner."""

import pytest

from fastglow.engine.frontend import Frontend
from fastglow.text import symbols, text_to_sequence
from fastglow.text.unspeakable import UnspeakableTextWarning

MARKS = [*"_-!'(),.:;? "]
TABLES = {
    148: symbols,
    38: [*MARKS, *"abcdefghijklmnopqrstuvwxyz"],
    96: [*MARKS, *(s for s in symbols if s.startswith("@"))],
}


def read(text, n_symbols=148, cleaner="english_cleaners", lexicon=None):
    """The symbols of a text, phones without their mark."""
    frontend = Frontend([cleaner], n_symbols, lexicon)
    return "".join(TABLES[n_symbols][i].replace("@", " ") for i in frontend.encode(text).symbols)


@pytest.mark.parametrize("n_symbols", [38, 148])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello", "hello."),
        ("Open the window", "open the window."),
        ("'Maybe'", "'maybe.'"),
        ('"Maybe"', "maybe."),
        ("(perhaps)", "(perhaps.)"),
        ("the ('last') one", "the ('last') one."),
        ("('last')", "('last.')"),
        ("Wait -", "wait."),
        ("Wait - - ", "wait."),
        ("as follows:", "as follows."),
        ("again (", "again."),
        ("the dogs'", "the dogs.'"),
        ("under_", "under."),
    ],
)
def test_a_sentence_without_a_final_mark_gets_one(text, expected, n_symbols):
    assert read(text, n_symbols) == expected


@pytest.mark.parametrize("n_symbols", [38, 148])
@pytest.mark.parametrize(
    "text",
    ["hello.", "hello!", "really?", "well,", "one;", "oh...", "what?!", "(perhaps.)", "(perhaps).", "'no!'", "'no'!"],
)
def test_a_sentence_with_a_final_mark_is_unchanged(text, n_symbols):
    assert read(text, n_symbols) == text


def test_trailing_marks_after_the_final_mark_are_removed():
    assert read("wait, -") == "wait,"
    assert read("'wait! ' - ") == "'wait!'"
    assert read("so.) (") == "so.)"


@pytest.mark.parametrize("text", ["{HH AH0 L OW1}", "{Y EH1 S} -", "{N OW1}:"])
@pytest.mark.parametrize("n_symbols", [96, 148])
def test_phones_get_a_final_mark(text, n_symbols):
    phones = text.split("}")[0].strip("{ ")
    assert read(text, n_symbols) == f" {phones}."


def test_words_of_a_lexicon_get_a_final_mark(cmudict):
    assert read("Hello", 96, lexicon=cmudict) == " HH AH0 L OW1."
    assert read("'Hello'", 148, "english_speech_cleaners", cmudict) == " HH AH0 L OW1."
    # Symbols that the table lacks are dropped: the mark follows the rest.
    with pytest.warns(UnspeakableTextWarning):
        assert read("the qxq", 96, lexicon=cmudict) == " DH AH0."


@pytest.mark.parametrize("text", ["Hello \N{GRINNING FACE}", "\N{GRINNING FACE} hello", "hello \N{SNOWMAN} -"])
def test_a_text_with_dropped_symbols_gets_a_final_mark(text):
    with pytest.warns(UnspeakableTextWarning):
        assert read(text).strip() == "hello."


def test_what_was_dropped_is_returned():
    with pytest.warns(UnspeakableTextWarning):
        encoded = Frontend(["basic_cleaners"], 38).encode("a \N{SNOWMAN} b {AH0 QQ}")
    assert encoded.dropped == ["\N{SNOWMAN}", "{AH0}", "{QQ}"]
    assert Frontend(["basic_cleaners"], 148).encode("a b {AH0}").dropped == []


@pytest.mark.parametrize("text", ["", " ", "...", "!", "- - -", "()", "''", "_", "?!", ":"])
@pytest.mark.parametrize("n_symbols", [38, 96, 148])
def test_punctuation_alone_gives_no_symbols(text, n_symbols):
    for cleaner in ("english_cleaners", "basic_cleaners", "english_speech_cleaners"):
        assert read(text, n_symbols, cleaner) == ""


def test_the_number_of_symbols_up_to_the_last_sound():
    frontend = Frontend(["english_cleaners"], 38)
    for text, expected in (("hello", 5), ("(well.)", 5), ("a - b!", 5), ("i", 1), ("", 0), ("...", 0)):
        assert frontend.encode(text).n_sounding == expected


def test_text_to_sequence_adds_no_mark():
    ids = text_to_sequence("Hello", ["english_cleaners"])
    assert [symbols[i] for i in ids] == [*"hello"]


def test_ending_is_idempotent():
    frontend = Frontend(["basic_cleaners"], 148)
    for text in ("hello", "(so)", "wait, -", "a:", "'b.' -", "c"):
        once = frontend.ended(text_to_sequence(text, []))
        assert once and frontend.ended(once) == once
