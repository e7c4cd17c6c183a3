"""Line breaks, dashes and dotted days: where ``split_sentences`` cuts, and what the cleaner joins."""

import pytest

from fastglow.text import split_sentences
from fastglow.text.cleaners import english_speech_cleaners

# One item per sentence; a single item continues over the line break.
CUT = [
    ["Milk", "Eggs", "Bread"],
    ["Shopping list:", "2 apples", "3 pears"],
    ["Chapter One", "The Boy Who Lived"],
    ["Roses are red,\nViolets are blue", "Sugar is sweet", "And so are you"],
    ["Mr John Smith", "12 Elm Street", "Springfield"],
    ["a) first", "b) second", "(c) third", "• fourth"],
    [
        "Introduction",
        "This is a long line of text that was wrapped by somebody at some seventy\ncolumns and goes on to here.",
    ],
    [
        "It was in the summer of that year that he first saw how much\n"
        "John Smith and his brother loved the old house on the hill of\n"
        "Elm Street, near the river that runs through it from one\nend to the other."
    ],
    ["This line is wrapped by hand and then\nit goes on in the next one."],
    ["He had come to the house with\nMary and stayed."],
    ["He came on 12. Dec. 2019 and left.", "On the 3. of May he died."],
    ["On Monday, 7. June, it rained.", "He got 5.", "May I go?"],
    ["THE SOFTWARE IS PROVIDED AS IT IS AND WITHOUT ANY EXPRESS OR\nIMPLIED WARRANTIES"],
    ["The trou-\nble is one-\nsided."],
]


@pytest.mark.parametrize("sentences", CUT)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_cut(sentences, line_end):
    text = "\n".join(sentences).replace("\n", line_end)
    assert split_sentences(text) == [sentence.replace("\n", line_end) for sentence in sentences]


READ = [
    ("trou-\nble", "trouble"),
    ("under-\r\nstanding", "understanding"),
    ("hap-\n  pened", "happened"),
    ("self-\nish", "selfish"),
    ("trou\u00ad\nble", "trouble"),
    ("one-\nsided", "one-sided"),
    ("twenty-\nfive", "twenty-five"),
    ("well-\nknown", "well-known"),
    ("blue-\neyed", "blue-eyed"),
    ("mother-in-\nlaw", "mother-in-law"),
    ("Anglo-\nSaxon", "anglo-saxon"),
    ("two-\nand three-day", "two and three-day"),
    ("wait —\nwhat", "wait, what"),
    ("wait --\nwhat", "wait, what"),
    ("on 12. Dec. 2019", "on the twelfth of december, twenty nineteen"),
    ("the 3. of May", "the third of may"),
    ("since 24. August 1914", "since the twenty-fourth of august, nineteen fourteen"),
    ("He got 5. May I go?", "he got five. may i go?"),
    ("it─and", "it, and"),
    ("it━and", "it, and"),
    ("it⸺and ⸻ so", "it, and, so"),
    ("it〜and", "it, and"),
    ("it－and", "it, and"),
    ("5〜10", "five to ten"),
    ("one-sided", "one-sided"),
]


@pytest.mark.parametrize(("written", "spoken"), READ)
def test_read(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken


@pytest.mark.parametrize("unit", ["A\n", "a-\n", "A \n", "the\nA", "1\n\r", "a-b-", "-\n", "5. May ", "on 5. "])
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    text = unit * (60_000 // len(unit))
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
    english_speech_cleaners(text, [])
