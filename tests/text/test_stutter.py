"""Stutters, and sounds in capitals, in ``english_speech_cleaners``."""

import pytest

from fastglow.text.cleaners import english_speech_cleaners

STUTTERS = [
    ("Y-you", "yuh-you"),
    ("D-d-don't", "duh-duh-don't"),
    ("b-but why", "buh-but why"),
    ("W-w-w-what?", "wuh-wuh-wuh-what?"),
    ("Th-that", "thuh-that"),
    ("St-stop!", "stuh-stop!"),
    ("M-Mary", "muh-mary"),
    ("P-PLEASE", "puh-please"),
    ("c-can c-city", "kuh-can suh-city"),
    ("k-know", "nuh-know"),
    ("E-every", "eh-every"),
    ("A-and", "a-and"),
    ("I-I-I", "i-i-i"),
    ("I-I'm", "i-i'm"),
]
NO_STUTTERS = [
    ("X-ray", "ex-ray"),
    ("T-shirt", "tee-shirt"),
    ("U-turn", "you-turn"),
    ("D-Day", "dee-day"),
    ("e-mail", "ee-mail"),
    ("B-ball", "bee-ball"),
    ("C-section", "see-section"),
    ("S-shaped", "ess-shaped"),
    ("t-test", "tee-test"),
    ("re-read", "re-read"),
]
SOUNDS = (
    "HMMM ARGH SHHH PFFT UGH BRRR PSST HMPH GRRR TSK ZZZ MMM AAARGH EWW AWW OOH UMM PFFFT VROOM NOOOO YESSS".split()
)
SPELT = [
    ("BBC", "bee bee see"),
    ("SSH", "ess ess aitch"),
    ("BRB", "bee ar bee"),
    ("NYPD", "en why pee dee"),
    ("HTML", "aitch tee em ell"),
    ("TTYL", "tee tee why ell"),
    ("XXXL", "ex ex ex ell"),
    ("AAA", "triple ay"),
]


@pytest.mark.parametrize(("written", "spoken"), STUTTERS + NO_STUTTERS + SPELT)
def test_example(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken


@pytest.mark.parametrize("sound", SOUNDS)
def test_sounds_in_capitals_are_those_in_lower_case(sound):
    for written in (sound, sound.capitalize(), sound.lower()):
        assert english_speech_cleaners(f"{written}! He said {written}.") == f"{sound.lower()}! he said {sound.lower()}."


@pytest.mark.parametrize("unit", ["a-", "b-b-", "st-", "HM", "OOH", "Z"])
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    assert english_speech_cleaners(unit * (30_000 // len(unit)))
