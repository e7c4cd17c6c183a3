"""Sentences that come with the stream are those of the whole."""

import numpy as np
import pytest

from fastglow import Synthesizer
from fastglow.engine import Sentence

from .conftest import UNSTOPPED
from .scripted import reading
from .test_streaming_faults import EARLY_SKIP, LATE_SKIP, LONG, RIGHT, RUNS_ON, SEED, STUCK, scripted, synthesizer

pytestmark = [pytest.mark.filterwarnings(UNSTOPPED), pytest.mark.filterwarnings("ignore::UserWarning")]


def assert_sentences_are_those_of_the_whole(speaker, text, **options):
    delivery = {name: value for name, value in options.items() if name != "chunk_frames"}
    whole = speaker.synthesize(text, SEED, **delivery)
    chunks, sentences, n_samples = [], [], 0
    for part in speaker.stream_sentences(text, SEED, **options):
        if isinstance(part, Sentence):
            sentences.append(part)
            audio = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
            np.testing.assert_array_equal(audio[len(audio) - len(part.audio) :], part.audio)
        else:
            chunks.append(part)
            n_samples += len(part)
    assert not isinstance(part, np.ndarray), "nothing follows the last sentence"
    assert n_samples == len(whole.audio)
    for found, expected in zip(sentences, whole.sentences, strict=True):
        told = [(s.text, s.stopped, s.cut, s.fault) for s in (found, expected)]
        assert told[0] == told[1]
        for name in ("audio", "mel", "alignment"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(np.concatenate(list(speaker.stream(text, SEED, **options))), np.concatenate(chunks))
    return sentences


@pytest.mark.parametrize(
    "paths",
    [[RIGHT], [RUNS_ON], [STUCK], [EARLY_SKIP, RIGHT], [EARLY_SKIP], [LATE_SKIP]],
    ids=["right", "runs on", "stuck", "early skip", "in parts", "always late"],
)
def test_of_a_scripted_voice(paths):
    text = f"{LONG}! Abe came here! {LONG}."
    sentences = assert_sentences_are_those_of_the_whole(
        synthesizer(scripted(*paths)), text, chunk_frames=8, sentence_silence=0.01, trim_silence=True
    )
    assert len(sentences) >= 3


def test_a_first_sentence_that_is_spoken_with_a_fault_says_so():
    parts = list(synthesizer(scripted(LATE_SKIP, RIGHT)).stream_sentences(LONG, SEED, chunk_frames=8))
    assert parts[-1].fault == "skips" and parts[-1].attempts == 1
    np.testing.assert_array_equal(np.concatenate(parts[:-1]), parts[-1].audio)


@pytest.mark.parametrize("vocoder", ["griffin-lim", "waveglow"])
def test_of_a_random_voice(voice_folder, vocoder):
    speaker = Synthesizer.from_voice(voice_folder, device="cpu", vocoder=vocoder, level=-20.0)
    assert_sentences_are_those_of_the_whole(speaker, "Nine ships went home. Who ever saw them? Nobody!")
    assert list(speaker.stream_sentences("?!", 1)) == []


def test_closing_ends_the_work():
    speaker = synthesizer(lambda symbols, seed: reading(len(symbols)))
    parts = speaker.stream_sentences("A b c. D e f. G h i.", SEED)
    while not isinstance(next(parts), Sentence):
        pass
    n_calls = len(speaker.tacotron2.calls)
    parts.close()
    assert list(parts) == [] and len(speaker.tacotron2.calls) == n_calls
