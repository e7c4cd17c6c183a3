"""The texts that are spoken."""

from hypothesis import given
from hypothesis import strategies as st

from fastglow.benchmark.texts import FEWEST_CHARACTERS, SENTENCES, text_of
from fastglow.text import split_sentences


@given(st.integers(FEWEST_CHARACTERS, 3000), st.integers(0, 20))
def test_a_text_has_its_length_and_ends_as_a_sentence(n_characters, first):
    text = text_of(n_characters, first)
    assert len(text) == n_characters
    assert text[0].isupper() and text.endswith(".") and text == " ".join(text.split())


def test_the_texts_of_a_batch_differ_and_repeat():
    texts = [text_of(128, first) for first in range(3 * len(SENTENCES))]
    assert len(set(texts)) == len(SENTENCES)
    assert all(split_sentences(text) == [text] for text in texts)


def test_sentences_are_read_whole():
    assert split_sentences(" ".join(SENTENCES)) == list(SENTENCES)
