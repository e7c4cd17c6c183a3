"""Sentences of a text that arrives in pieces."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.text import split_sentences
from fastglow.text.growing import GrowingText

TEXTS = [
    "One. Two! Three?",
    "Dr. No met J. R. Smith at 5 p.m. The talk ended at 3.50 p.m. on Elm St. It rained.",
    'He said: "Stop." Then he left... and came back. "Why?" she asked.',
    "A list:\n- milk\n- eggs\n- bread\n\nThat is all. Bye.",
    "1. Mix it.\n2. Bake it. Then wait.\n3. Eat it.",
    'Wait. [pause:1.5s] Go on. <break time="500ms"/> Done. {HH AH0 L OW1}. Bye.',
    "I saw it (at No. 5) and left. See example.com/a.b for more. Etc. etc.",
    "  \n leading.  Trailing. \n\n ",
    "",
]


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cuts), len(text)]
    return [text[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


def all_of(pieces: list[str]) -> list[str]:
    growing = GrowingText()
    return [sentence for piece in pieces for sentence in growing.push(piece)] + growing.finish()


@pytest.mark.parametrize("text", TEXTS)
@settings(max_examples=10)
@given(data=st.data())
def test_sentences_do_not_depend_on_the_pieces(text, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=30))
    assert all_of(pieces_of(text, cuts)) == split_sentences(text)
    assert all_of(list(text)) == split_sentences(text)


@settings(max_examples=50)
@given(
    st.lists(
        st.sampled_from(
            "Dr. a The 5 p.m. ok? J. etc. <b> </b> ( ) {AA1} \n \n\n - 1. … word <!-- --> Yes! No.".split(" ")
        ),
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_nothing_is_lost(words, size):
    text = " ".join(words)
    found = all_of([text[start : start + size] for start in range(0, len(text), size)])
    assert re.sub(r"\s", "", "".join(found)) == re.sub(r"\s", "", text)


def test_a_sentence_waits_for_one_whole_word_after_it():
    growing = GrowingText()
    assert growing.push("It is over. The") == []
    assert growing.push("y left at 5 p.m.") == ["It is over."]
    assert growing.push(" T") == []
    assert growing.push("he ") == ["They left at 5 p.m."]
    assert growing.finish() == ["The"]
    assert growing.finish() == []


def test_a_blank_line_ends_a_sentence_at_once():
    growing = GrowingText()
    assert growing.push("One moment.\n") == []
    assert growing.push("\nA") == ["One moment."]
    assert growing.push(" word. Two") == []
    assert growing.finish() == ["A word.", "Two"]


def test_a_sentence_without_end_is_cut():
    growing = GrowingText()
    found = [sentence for _ in range(300) for sentence in growing.push("again and ")]
    assert len(found) > 5 and max(map(len, found)) <= 400
    assert " ".join(found + growing.finish()) == ("again and " * 300).strip()


@pytest.mark.parametrize("piece", ["x" * 99, "<!-- no end ", "<script> a = 1. "])
def test_what_is_held_is_bounded(piece):
    growing = GrowingText()
    found = [sentence for _ in range(300) for sentence in growing.push(piece)]
    assert len("".join(found)) > 300 * len(piece) / 2 - 10_000
    assert len("".join(growing.finish())) <= 10_000
