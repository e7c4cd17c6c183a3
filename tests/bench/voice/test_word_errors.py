"""Edits of words against all ways to align them; rates, ratios and their intervals."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.voice.word_errors import Edit, WordErrors, align, rate_interval, ratio_interval, word_errors, words_of

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


def fewest(reference, heard):
    """(edits, insertions), over every choice of pairs of words, in order, that stand for each other."""
    found = []
    for n in range(min(len(reference), len(heard)) + 1):
        for left in combinations(range(len(reference)), n):
            for right in combinations(range(len(heard)), n):
                wrong = sum(reference[i] != heard[j] for i, j in zip(left, right, strict=True))
                found.append((wrong + len(reference) + len(heard) - 2 * n, len(heard) - n))
    return min(found)


def replay(reference, heard, edits):
    """What the edits make of `reference`, words of `heard` taken where they insert or substitute."""
    i = j = 0
    made = []
    for edit in edits:
        if edit is Edit.KEPT:
            made.append(reference[i])
        elif edit is not Edit.DELETED:
            made.append(heard[j])
        i += edit is not Edit.INSERTED
        j += edit is not Edit.DELETED
    assert (i, j) == (len(reference), len(heard))
    return made


@given(WORDS, WORDS)
def test_edits_are_the_fewest(reference, heard):
    edits = align(reference, heard)
    assert replay(reference, heard, edits) == heard
    assert (len(edits) - edits.count(Edit.KEPT), edits.count(Edit.INSERTED)) == fewest(reference, heard)


def test_kinds_of_errors():
    assert word_errors("the cat sat on the mat", "a cat sat the red mat") == WordErrors(6, 3)
    assert word_errors("one two three", "one two two three") == WordErrors(3, insertions=1)
    assert word_errors("one two three", "three") == WordErrors(3, deletions=2)
    assert word_errors("one two", "") == WordErrors(2, deletions=2)
    assert word_errors("", "well") == WordErrors(0, insertions=1)


def test_words_are_letters_and_apostrophes():
    assert words_of("Don't -- well-read, 3 Times!\n'Tis") == ["don't", "well", "read", "times", "'tis"]


def test_totals():
    total = WordErrors(4, 1, 0, 1) + WordErrors(6, 0, 2, 0)
    assert total == WordErrors(10, 1, 2, 1)
    assert (total.edits, total.rate) == (4, 0.4)
    assert math.isnan(WordErrors().rate)


def test_intervals_of_equal_sentences_are_points():
    rows = [WordErrors(10, 2)] * 7
    assert rate_interval(rows) == (0.2, 0.2, 0.2)
    assert ratio_interval(rows, [WordErrors(10, 1)] * 7) == (2, 2, 2)


def test_the_ratio_pairs_sentences():
    """Sentences of very different difficulty, each twice as wrong in one: no doubt about the ratio."""
    hard = [WordErrors(30, n) for n in (0, 1, 2, 5, 11, 14)]
    assert ratio_interval([WordErrors(30, 2 * row.edits) for row in hard], hard) == (2, 2, 2)


def test_intervals_follow_the_seed_and_the_normal_approximation():
    random = np.random.default_rng(5)
    rows = [WordErrors(20, int(n)) for n in random.binomial(20, 0.3, size=400)]
    interval = rate_interval(rows, seed=1)
    assert interval == rate_interval(rows, seed=1) != rate_interval(rows, seed=2)
    rates = np.array([row.rate for row in rows])
    half = 1.96 * rates.std(ddof=1) / math.sqrt(len(rows))
    assert interval.low == pytest.approx(interval.value - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.value + half, abs=0.1 * half)


def test_ratios_to_a_faultless_baseline():
    faultless, faulty = [WordErrors(5)] * 3, [WordErrors(5, 1)] * 3
    assert ratio_interval(faulty, faultless) == (math.inf,) * 3
    assert ratio_interval(faultless, faultless) == (1, 1, 1)
    assert all(math.isnan(value) for value in ratio_interval([], []))
