"""``english_speech_cleaners``: numbers of every kind, joined at random, are speakable; a second pass changes none."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.text import UnspeakableTextWarning, symbols
from fastglow.text.cleaners import english_speech_cleaners

SPEAKABLE = {symbol for symbol in symbols if len(symbol) == 1} - {"_"}
SNIPPETS = (
    "F-16s|747s|401ks|401(k)|4x4s|49ers|$20s|0s|and|1s|100s of|'90s|1980s|20-30s|30s|9.8s|took|the|a|two|Fig.|C.3|"
    "A.1.b|H.265|p.3|v.2|v1.2.3|2.3.4.5|192.168.0.1|ASN.1|Act|II.3|Jan|Jan.|May|-|–|/|Mar|5|2024|Dec '23|$20|€5|12V|"
    "10 km|5 kg|1/2 lb|ticket|bag|run|tall|-a-day|WWII|WW|II|MkII|PartII|3/4ths|1/10th|2/3s|1.000.000|1.234,56|27,50 €|"
    "€ 25,-|3,5 %|1 234,5|1'000'000|Chapter|Track|No.|#|01|007|003|of|S01E03|1m30s|kms|mms|."
).split("|")
JOINTS = ["", "", " ", " ", " ", ". ", ", ", "-", "'", ":", "("]
mixed = st.lists(st.tuples(st.sampled_from(SNIPPETS), st.sampled_from(JOINTS)), max_size=8).map(
    lambda pairs: "".join(snippet + joint for snippet, joint in pairs)
)


def clean_quietly(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnspeakableTextWarning)
        return english_speech_cleaners(text)


@settings(max_examples=300)
@given(mixed)
def test_mixed_numbers_are_words_and_stay_as_they_are(text):
    once = clean_quietly(text)
    assert set(once) <= SPEAKABLE
    assert not set(once) & set("0123456789")
    assert english_speech_cleaners(once) == once


PATHOLOGICAL = "1.1|A.1.b.|1s|F-1s |1 000,|1.000.|1'000|1,1% |€1,-|Jan-|Jan 5-|No. 01, |Part 01 of |$1 a |II|1m1s|1/1th"


@pytest.mark.parametrize("unit", PATHOLOGICAL.split("|"))
def test_long_monotonous_text(unit):
    """A pattern that takes quadratic time would need minutes."""
    assert clean_quietly(unit * (20_000 // len(unit)))
