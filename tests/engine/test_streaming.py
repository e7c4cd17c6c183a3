"""Audio while the decoder still runs: the same as the whole, in bounded memory, from any number of threads."""

import itertools
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import FastglowError, Synthesizer
from fastglow.engine.streaming import MAX_CHUNK_FRAMES, growing
from fastglow.voices import Voice

from .conftest import UNSTOPPED

pytestmark = [pytest.mark.filterwarnings(UNSTOPPED), pytest.mark.filterwarnings("ignore::UserWarning")]

WORDS = "one two; sea, of three ships. Who (ever) went home? Nine! A b c".split()


@pytest.fixture(scope="module")
def synthesizer(voice_folder):
    voice = Voice.load(voice_folder)
    return Synthesizer.from_voice(voice, device="cpu", vocoder="waveglow", denoise=0.1, level=-20.0)


def assert_streamed_is_whole(synthesizer, text, chunk_frames, **delivery):
    whole = synthesizer.synthesize(text, **delivery).audio
    chunks = list(synthesizer.stream(text, chunk_frames=chunk_frames, **delivery))
    assert all(chunk.dtype == np.float32 and len(chunk) for chunk in chunks)
    streamed = np.concatenate([np.zeros(0, np.float32), *chunks])
    assert streamed.shape == whole.shape
    np.testing.assert_allclose(streamed, whole, atol=1e-5, rtol=0)


@settings(max_examples=15)
@given(
    n_words=st.integers(0, 25),
    choice=st.integers(0, 2**32),
    chunk_frames=st.sampled_from([1, 2, 7, 16, 45, 300]),
    delivery=st.fixed_dictionaries(
        {"seed": st.integers(-(2**63), 2**63 - 1)},
        optional={
            "sentence_silence": st.floats(0, 0.1),
            "normalize": st.booleans(),
            "volume": st.floats(0, 3),
            "trim_silence": st.booleans(),
        },
    ),
)
def test_streamed_is_whole(synthesizer, n_words, choice, chunk_frames, delivery):
    words = random.Random(choice).choices(WORDS, k=n_words)
    assert_streamed_is_whole(synthesizer, " ".join(words), chunk_frames, **delivery)


@pytest.mark.parametrize("speed", [0.7, 1.6])
@pytest.mark.parametrize("vocoder", ["griffin-lim", "waveglow"])
def test_streamed_is_whole_at_other_speeds(voice_folder, vocoder, speed):
    synthesizer = Synthesizer.from_voice(voice_folder, device="cpu", vocoder=vocoder)
    text = "Nine ships went home. Who ever saw them again?"
    whole = synthesizer.synthesize(text, 5, speed=speed).audio
    found = np.concatenate(list(synthesizer.stream(text, 5, chunk_frames=3, speed=speed)))
    assert found.shape == whole.shape
    # WaveGlow's chunks are rounded otherwise, which a phase vocoder amplifies where it divides by small magnitudes.
    allowed = 0.01 if vocoder == "waveglow" else 0
    assert np.linalg.norm(found - whole) <= allowed * np.linalg.norm(whole)
    plain, other = (len(synthesizer.synthesize(text, seed=5, sentence_silence=0.0, speed=s).audio) for s in (1, speed))
    assert abs(other - plain / speed) <= 2


def test_chunks_grow_to_a_limit():
    assert list(itertools.islice(growing(16), 8)) == [16, 32, 64, 128, 256, 512, 512, 512]
    assert list(itertools.islice(growing(1), 3)) == [1, 2, 4]
    assert list(itertools.islice(growing(2 * MAX_CHUNK_FRAMES), 3)) == [2 * MAX_CHUNK_FRAMES] * 3


def test_streams_of_one_synthesizer_may_be_interleaved(synthesizer):
    texts = ["Nine ships went home, and three.", "Who ever saw them? One, two.", "A b c."]
    expected = [np.concatenate(list(synthesizer.stream(text, 3, chunk_frames=2))) for text in texts]
    streams = [synthesizer.stream(text, 3, chunk_frames=2) for text in texts]
    found = [[] for _ in texts]
    for round_ in itertools.zip_longest(*streams):
        synthesizer.synthesize("One.", 1)
        for chunks, chunk in zip(found, round_, strict=True):
            chunks.extend([] if chunk is None else [chunk])
    for chunks, audio in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(chunks), audio)


def test_twenty_threads_on_one_synthesizer(synthesizer):
    texts = ["Nine ships.", "Who ever went home? Three!", "One, two; three."]
    expected = [synthesizer.synthesize(text, 5).audio for text in texts]
    failures = []

    def work(i):
        for j in range(2):
            text, audio = texts[(i + j) % 3], expected[(i + j) % 3]
            if i % 2:
                found = synthesizer.synthesize(text, 5).audio
            else:
                found = np.concatenate(list(synthesizer.stream(text, 5, chunk_frames=1 + i)))
            if found.shape != audio.shape or np.abs(found - audio).max() > 1e-5:
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("arguments", [{"chunk_frames": 0}, {"volume": -1}, {"sentence_silence": 99}, {"speed": 0.0}])
def test_bad_arguments_are_refused_at_the_call(synthesizer, arguments):
    (name,) = arguments
    with pytest.raises(FastglowError, match=f"^{name}="):
        synthesizer.stream("Hello.", 1, **arguments)


def test_a_text_with_nothing_to_speak_streams_nothing(synthesizer):
    for text in ("", "?!", "  \n"):
        assert list(synthesizer.stream(text, 1)) == []
