"""``english_speech_cleaners`` on examples of every kind and on any text."""

import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.text import UnspeakableTextWarning, symbols
from fastglow.text.cleaners import english_speech_cleaners
from tests.text.english_examples import EXAMPLES


@pytest.mark.parametrize(("written", "spoken"), EXAMPLES)
def test_example(written, spoken):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert english_speech_cleaners(written) == spoken


@pytest.mark.parametrize("written", [written for written, _ in EXAMPLES])
def test_example_cleaned_twice(written):
    once = english_speech_cleaners(written)
    assert english_speech_cleaners(once) == once


SPEAKABLE = {symbol for symbol in symbols if len(symbol) == 1} - {"_"}
SNIPPETS = [snippet for written, _ in EXAMPLES for snippet in written.split()]
JOINTS = [" ", " ", " ", "", ". ", ", ", "-", "/", "'", '"', " (", "_", "\n"]
any_text = st.text(max_size=60) | st.text(st.characters(categories=["Cs", "Cc", "So", "Sc", "Nd", "No", "Ps", "Pe"]))
dense_text = st.text(" '\"-.,:;!?()[]{}/\\$£€%&+=@#*~^|<>°²½…–—_0123456789abcdeisxzABCIVX", max_size=25)
snippet_text = st.lists(st.tuples(st.sampled_from(SNIPPETS), st.sampled_from(JOINTS)), max_size=7).map(
    lambda pairs: "".join(snippet + joint for snippet, joint in pairs)
)


def clean_quietly(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnspeakableTextWarning)
        return english_speech_cleaners(text)


@settings(max_examples=200)
@given(any_text | dense_text | snippet_text)
def test_any_text_becomes_speakable_and_stays_as_it_is(text):
    once = clean_quietly(text)
    without_groups = re.sub(r"\{[^}]*\}", "X", once)
    assert set(without_groups) <= SPEAKABLE
    assert without_groups == without_groups.strip()
    assert "  " not in without_groups
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert english_speech_cleaners(once) == once


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_characters="{}"), max_size=8), min_size=1, max_size=4), any_text)
def test_arpabet_groups_survive_in_order(groups, between):
    between = between.replace("{", "").replace("}", "")
    text = between.join(f"{{{group}}}" for group in groups)
    assert re.findall(r"\{([^}]*)\}", clean_quietly(text)) == groups


def test_long_numbers_do_not_need_names():
    assert english_speech_cleaners("9" * 400) == " ".join(["nine"] * 400)
    assert english_speech_cleaners("3." + "1" * 20) == "three point " + " ".join(["one"] * 20)
    assert english_speech_cleaners("$" + "1" * 5000).endswith("one one")


def test_dropped_characters_are_named_once():
    with pytest.warns(UnspeakableTextWarning) as caught:
        cleaned = english_speech_cleaners("hi 😀 there 😀 \ud800 \x00 } x")
    assert cleaned == "hi there ex"
    assert len(caught) == 1
    message = str(caught[0].message)
    assert all(message.count(code) == 1 for code in ("U+1F600", "U+D800", "U+0000", "U+007D"))
    assert caught[0].filename == __file__


def test_a_placeholder_in_the_text_is_not_taken_for_a_group():
    with pytest.warns(UnspeakableTextWarning, match="U\\+FDD0"):
        assert english_speech_cleaners("a \ufdd0 {B} c") == "a {B} see"


def test_dropped_characters_are_handed_to_a_list():
    dropped = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert english_speech_cleaners("a😀b", dropped) == "a bee"
    assert dropped == ["😀"]


PATHOLOGICAL = "a|1|.|{|(|1,11|1.|A.|a-|'|www.|a@|$1-|1/|Dr. |\u0300\u0316".split("|") + ["\n "]


@pytest.mark.parametrize("unit", PATHOLOGICAL)
def test_long_monotonous_text(unit):
    """A pattern that takes quadratic time would need minutes."""
    clean_quietly(unit * (30_000 // len(unit)))
