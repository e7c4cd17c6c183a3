"""Texts that are not prose, read by the bundled voice."""

import pytest

from fastglow import Synthesizer
from fastglow.engine.remarks import SilentTextWarning
from fastglow.text.unspeakable import UnspeakableTextWarning
from fastglow.voices import DEFAULT_VOICE

READ = [
    "A",
    "I.",
    "7",
    "Hm",
    "42",
    "a",
    "{S}",
    "K",
    "ALL CAPS",
    "no final mark",
    "no no no no no no no no",
    "-1",
    "A B C",
]
SILENT = ["?!", '"', "...", "\N{GRINNING FACE}"]


@pytest.fixture(scope="module")
def voice():
    return Synthesizer.from_voice(DEFAULT_VOICE, device="cpu")


@pytest.mark.parametrize("seed", [0, 1])
def test_short_texts_are_read_at_once(voice, seed):
    for text, speech in zip(READ, voice.synthesize_batch(READ, seed=seed), strict=True):
        (sentence,) = speech.sentences
        assert (sentence.faults, sentence.cut, sentence.stopped) == ([None], False, True), text
        assert all(reading.legible for reading in sentence.readings), text
        # The shortest has one sound and a mark.
        n_symbols = sentence.alignment.shape[1]
        assert 0.04 * n_symbols < speech.seconds < 0.5 + 0.15 * n_symbols, text


@pytest.mark.filterwarnings(f"ignore::{UnspeakableTextWarning.__module__}.UnspeakableTextWarning")
@pytest.mark.parametrize("text", SILENT)
def test_texts_without_letters_are_silent(voice, text):
    with pytest.warns(SilentTextWarning, match="nothing to speak"):
        assert voice.synthesize(text, seed=1).seconds == 0


def test_a_long_text_without_punctuation_is_read_in_parts(voice):
    """The parts keep every word."""
    text = " ".join(["the man who saw the house on the hill went home while the dogs barked at the moon"] * 4)
    sentences = voice.synthesize(text, seed=1).sentences
    assert " ".join(sentence.text for sentence in sentences) == text
    assert len(sentences) > 1
    assert [sentence.fault for sentence in sentences] == [None] * len(sentences)
    assert all(sentence.text.split()[0] in ("the", "who", "while") for sentence in sentences)
