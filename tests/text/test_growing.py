"""Sentences of a text that arrives in pieces."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.text import split_sentences
from fastglow.text.growing import GrowingText
from fastglow.text.markdown import without_markdown

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


def all_of(pieces: list[str], clean=str) -> list[str]:
    growing = GrowingText(clean)
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
    assert len("".join(found)) > 300 * len(piece) / 2 - 5_000
    assert len("".join(growing.finish())) <= 5_000


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("**First one. Second one.** Third.", ["First one.", "Second one.", "Third."]),
        ("He *said. It* was _so. Bye._ See [this. One](http://a.b/c) too. End.",
         ["He said.", "It was so.", "Bye.", "See this.", "One too.", "End."]),
        ("Run this:\n\n```sh\nrm a.b. Then c.\n\nls. It works.\n```\n\nIt *is* done. Bye 👋.",
         ["Run this:", "It is done.", "Bye."]),
        ("```\nprint. One. Two.\n\n", []),
        ("# Title\nA list:\n- milk. Two.\n- `eggs`\n\nEnd.", ["Title", "A list:", "milk.", "Two.", "eggs", "End."]),
        ("> Quoted. Twice.\n\n---\n1. One.\n2. Two.", ["Quoted.", "Twice.", "1. One.", "2. Two."]),
    ],
)  # fmt: skip
def test_markdown(text, spoken):
    for size in (1, 3, 7, len(text)):
        found = all_of([text[start : start + size] for start in range(0, len(text), size)], without_markdown)
        assert [one.strip("*") for one in found] == spoken, size


@given(st.text("ab. \n*_`[]()#->|1", max_size=60), st.integers(1, 9))
def test_letters_are_neither_lost_nor_repeated_by_marks_that_disappear(text, size):
    """But for what the whole text says of a piece that was spoken before: a link's address, code."""
    text = text.replace("(", "").replace("`", "")
    found = all_of([text[start : start + size] for start in range(0, len(text), size)], without_markdown)
    assert re.sub(r"[\W_]", "", "".join(found)) == re.sub(r"[\W_]", "", without_markdown(text))
