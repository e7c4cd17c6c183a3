"""``split_sentences``: where it cuts, where it does not, and that nothing is lost."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.errors import FastglowError
from fastglow.text import split_sentences
from fastglow.text.sentences import halve_sentence

# "|" marks the cuts.
EXAMPLES = [
    "One sentence.",
    "No stop at all",
    "He left. | She stayed! | Did they? | Yes.",
    "i write small. | and i stop often. | no capitals here",
    "Dr. Smith met Mr. and Mrs. Jones. | They talked.",
    "Gen. Lee and Lt. Col. Hays rode. | The new gen. | They left.",
    "Fruit, e.g. Apples, i.e. Malus. | Next.",
    "We met approx. five of them, i.e. all. | Then none.",
    "Apples, pears, etc. are here. | Apples, pears, etc. | They are here.",
    "Smith et al. wrote it. | See fig. 3 and pp. 5-10. | Then stop.",
    "He said no. | Five left. | No. 5 is alive. | Vol. IV is lost.",
    "Acme Inc. Holdings grew. | He works at Acme Inc. | She does too.",
    "It is in the U.S. Navy. | He came to the U.S. | The end.",
    "At 5 p.m. Monday it rained. | It was 5 p.m. | Then it stopped.",
    "J. R. R. Tolkien wrote. | So did George R. R. Martin.",
    "Plan B. | Then plan C. | It was I. | He knew.",
    "On Main St. | The house. | St. Paul is far. | 12 Elm Dr. | It is near.",
    "Jan. 5 was cold. | He sat. | Bob stood.",
    "Pi is 3.14. | It costs $5.50. | In 1984. | Version 1.2.3 is out.",
    "See www.example.com/a.b?c=d. | Or mail a.b@c.org. | Done.",
    'He said "Stop." | Then left.',
    '"Stop!" he said. | "Why?" she asked. | "No..." he began.',
    '"Stop." he said, wrongly. | ‘Go.’ | “Well?” | Yes.',
    "(He left.) | She stayed (until 5 p.m. sharp. Really. Yes!) and slept. | Good.",
    "A smiley :( here. | Then another :(. | And on.",
    "Wait... what? | Oh... | No. | Well… | Yes… but.",
    "Hello . . . world. | Next.",
    "Really?! | No!!! | Why??? | Ok.",
    "Title without a stop\n\n | Text after it.\n \n | And more",
    "A line that is\nwrapped by hand. | Another\rone\r\nhere.",
    "A list:\n | - first item\n | - second item\n | 1. one\n | 2. two. | More",
    "Page one\f | page two\u2029 | page three",
    "Say {HH. AH0! L\n\nOW1} now. | Then {B. } {D}. | Again.",
    "Unclosed {brace. | Still cut. | And { that.",
    "今日は。 | 元気？ | はい",
    "lbs. of it, and 5 oz. of that. | hmm",
    "?! ... | Hm.",
]


@pytest.mark.parametrize("marked", EXAMPLES)
def test_example(marked):
    text = marked.replace(" | ", " ")
    assert split_sentences(text) == [piece.strip() for piece in marked.split(" | ")]


@pytest.mark.parametrize("blank", ["", " ", "\n\n\t\f\u2003"])
def test_blank_text_has_no_sentences(blank):
    assert split_sentences(blank) == []


def test_pieces_without_anything_to_speak_are_returned():
    assert split_sentences("... 😀\n\n\x00") == ["...", "😀", "\x00"]


def test_long_sentences_are_cut_at_clauses_evenly():
    text = "The first clause is here, the second one follows; and the third, which is last, ends it."
    assert split_sentences(text, max_chars=60) == [
        "The first clause is here, the second one follows;",
        "and the third, which is last, ends it.",
    ]


def test_grouped_numbers_are_no_clauses():
    text = "They counted 1,000,000 of them and 2:30 hours"
    assert split_sentences(text, max_chars=30) == ["They counted 1,000,000", "of them and 2:30 hours"]


def test_without_clauses_the_cut_is_at_a_space():
    assert split_sentences("aaaa bbbb cccc dddd", max_chars=10) == ["aaaa bbbb", "cccc dddd"]
    assert split_sentences("aaaa bbbb", max_chars=4) == ["aaaa", "bbbb"]


def test_a_word_that_is_too_long_is_cut_inside():
    assert split_sentences("abcdefghij", max_chars=4) == ["abcd", "efgh", "ij"]


def test_a_long_group_stays_whole():
    group = "{" + "AA1 " * 30 + "}"
    assert split_sentences(f"one two {group} three", max_chars=20) == ["one two", group, "three"]
    assert split_sentences(f"ab{group}cd", max_chars=20) == ["ab", group, "cd"]


def test_parentheses_that_are_too_long_do_not_hold_sentences_together():
    text = "Start (" + "a b c d e go. " * 4 + "end) stop."
    assert split_sentences(text, max_chars=200) == [text]
    assert "a b c d e go." in split_sentences(text, max_chars=40)


@pytest.mark.parametrize("max_chars", [0, -5])
def test_max_chars_must_be_positive(max_chars):
    with pytest.raises(FastglowError, match=f"max_chars={max_chars} must be at least 1"):
        split_sentences("a", max_chars=max_chars)


def squeezed(text):
    return "".join(text.split())


words = st.sampled_from(
    'Dr. Mr. St. e.g. U.S. p.m. 3.14 1. No. etc. J. word Word The "Stop." (a. b!) ( ) {A. B} { } ... … ? ! , ; '
    "\n \n\n www.a.bc\r\n longerwordlongerword 。 — 😀 \ud800".split(" ")
)
any_text = st.text() | st.lists(words, max_size=40).map(" ".join) | st.text(".!?\"'() \n\r{}aA1,")


@settings(max_examples=300)
@given(any_text, st.integers(1, 60) | st.just(200))
def test_nothing_is_lost_and_pieces_are_short(text, max_chars):
    pieces = split_sentences(text, max_chars)
    assert squeezed("".join(pieces)) == squeezed(text)
    assert all(piece and piece == piece.strip() for piece in pieces)
    groups = re.findall(r"\{[^}]*\}", text)
    assert all(len(piece) <= max_chars or re.fullmatch(r"\{[^}]*\}", piece) for piece in pieces)
    joined = "\0".join(pieces)
    assert re.findall(r"\{[^}]*\}", joined) == groups


PATHOLOGICAL = 'a|.|(|)|()|{|{}|!|"|.)|. |a.|A. |1. |,)|(a. |。|…x'.split("|") + ["\n", "\n ", "\r"]


@pytest.mark.parametrize("unit", PATHOLOGICAL)
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    text = unit * (100_000 // len(unit))
    assert squeezed("".join(split_sentences(text))) == squeezed(text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (
            "the cat sat on the mat and the dog lay by the door",
            ["the cat sat on the mat", "and the dog lay by the door"],
        ),
        (
            "they stayed at home\nBECAUSE the rain had not yet ended",
            ["they stayed at home", "BECAUSE the rain had not yet ended"],
        ),
        # Punctuation comes first.
        ("the old cat, the cow and the dog lay by the door", ["the old cat,", "the cow and the dog lay by the door"]),
        # A conjunction that is too far from the middle, or that is none, does not count.
        (
            "he and his sister Andrea walked over the long bridge",
            ["he and his sister Andrea", "walked over the long bridge"],
        ),
    ],
)
def test_a_long_sentence_without_punctuation_is_cut_before_a_conjunction(text, pieces):
    assert split_sentences(text, 40) == pieces


@pytest.mark.parametrize(
    "halves",
    [
        "000000000000 | 0",
        "0 | 000000000000",
        "Call | 441234567890123456 | now",
        "the cat, | and the dog",
        "It costs | $5 million",
        "It has | 12\u00a0345\u00a0678 | parts",
        "The war of | 1914–1918 | ended",
        "{AA AA AA AA AA} | b",
        # What touches a group belongs to its word, and so does the rest of a word after a hyphen at a line end.
        "{AA AA AA}st00000000 | b",
        "c | inter- national | b",
    ],
)
def test_halves_of_several_words_are_whole_words(halves):
    assert halve_sentence(halves.replace(" | ", " ")) == halves.split(" | ")


@pytest.mark.parametrize(
    "halves",
    [
        "https://example.com/2024/05/17/|some-news?id=1&from=there",
        "well-|known",
        "{AA AA}|{BB BB}",
        "{AA AA AA}|st",
        "今日は元|気ですか",
        "3.1415926535897|932384626433832",
        "x" * 50 + "|" + "y" * 50,
        "electroencephalography",
        "441234567890123456",
        "$5,000,000.00",
        "2024/05/17",
        "12:30",
        "12\u00a0345\u00a0678",
        "1914–1918",
        "don't",
        "{AA AA}",
    ],
)
def test_a_word_is_halved_at_its_marks_or_stays_whole(halves):
    assert halve_sentence(halves.replace("|", "")) == halves.split("|")


def test_nothing_has_no_halves():
    assert halve_sentence("") == []


@settings(max_examples=300)
@given(st.lists(st.text("0aA,;:.!?()\"'", min_size=1, max_size=12), max_size=6))
def test_any_words_stay_whole_in_halves(words):
    halves = halve_sentence(" ".join(words))
    if len(words) > 1:
        assert len(halves) > 1
        assert " ".join(halves).split() == words


@settings(max_examples=300)
@given(any_text)
def test_halves_of_any_text_keep_it(text):
    halves = halve_sentence(text)
    assert squeezed("".join(halves)) == squeezed(text)
    assert re.findall(r"\{[^}]*\}", "\0".join(halves)) == re.findall(r"\{[^}]*\}", text)
    assert all(halves)
    if len(halves) == 1:
        assert halves == [text.strip()]
