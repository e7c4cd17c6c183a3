"""Streams of utterances that go wrong, with a model whose utterances are scripted."""

import tracemalloc
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import Synthesizer
from fastglow.engine.attempts import MAX_ATTEMPTS
from fastglow.engine.remarks import FaultySpeechWarning
from fastglow.engine.seeds import attempt_seed, sentence_seed
from fastglow.engine.vocoders import Context

from .conftest import make_waveglow
from .scripted import ScriptedTacotron2, reading

SEED, LONG = 5, "a b c d e f g h i j k l m n o p q r s t u v w x y z"
N_LONG = len(LONG) + 1


def synthesizer(script):
    model = ScriptedTacotron2(script, max_decoder_steps=600)
    return Synthesizer(model, "waveglow", make_waveglow(), text_cleaners=["basic_cleaners"], level=-20.0, device="cpu")


def scripted(*paths, i_sentence=0):
    """The attempts at one of the text's sentences; all else is read correctly."""
    order = [attempt_seed(sentence_seed(SEED, i_sentence), attempt) for attempt in range(MAX_ATTEMPTS)]

    def script(symbols, seed):
        is_scripted = seed in order and len(symbols) == N_LONG
        return paths[min(order.index(seed), len(paths) - 1)] if is_scripted else reading(len(symbols))

    return script


def streamed(speaker, text, **options):
    return np.concatenate(list(speaker.stream(text, SEED, **options)))


RIGHT = reading(N_LONG)
RUNS_ON = [*RIGHT, None]
LATE_SKIP = [*RIGHT[:50], *RIGHT[80:]]
EARLY_SKIP = [*RIGHT[:4], *RIGHT[34:]]
STUCK = [*RIGHT[:60], None]
LONG_PAUSE = [*RIGHT[:70], *[34] * 45, *RIGHT[70:]]
BREAKS_OFF = RIGHT[:60]


def test_a_right_sentence_is_heard_before_it_is_decoded():
    speaker, ended = synthesizer(scripted(RIGHT)), []
    pieces = speaker.acoustic.pieces

    def watched(*arguments):
        for piece in pieces(*arguments):
            ended.append(piece.ended)
            yield piece

    speaker.acoustic.pieces = watched
    chunks = speaker.stream(LONG, SEED, chunk_frames=8)
    first = next(chunks)
    assert ended and not any(ended)
    whole = speaker.synthesize(LONG, SEED).audio
    np.testing.assert_allclose(np.concatenate([first, *chunks]), whole, atol=1e-5, rtol=0)


def test_closing_early_ends_the_decoder():
    speaker, closed = synthesizer(scripted(RIGHT)), []
    pieces = speaker.acoustic.pieces

    def watched(*arguments):
        try:
            yield from pieces(*arguments)
        finally:
            closed.append(True)

    speaker.acoustic.pieces = watched
    chunks = speaker.stream(LONG, SEED, chunk_frames=8)
    next(chunks)
    assert not closed
    chunks.close()
    assert closed


@pytest.mark.parametrize(
    "paths",
    [
        [RUNS_ON],  # cut at the end of the text
        [STUCK],  # cut after the last progress
        [EARLY_SKIP, RIGHT],  # seen before anything is spoken
        [EARLY_SKIP, RUNS_ON, RIGHT],
        [EARLY_SKIP],  # in every attempt: in parts
        [LATE_SKIP],  # in every attempt: spoken with a warning
    ],
    ids=["runs on", "stuck", "early skip", "two faults", "always early", "always late"],
)
@pytest.mark.parametrize("chunk_frames", [1, 16, 200])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fault_that_no_chunk_precedes_or_none_could_mend_is_as_in_the_whole(paths, chunk_frames):
    speaker = synthesizer(scripted(*paths))
    whole = speaker.synthesize(LONG, SEED).audio
    found = streamed(speaker, LONG, chunk_frames=chunk_frames)
    assert found.shape == whole.shape
    np.testing.assert_allclose(found, whole, atol=1e-5, rtol=0)


def test_a_fault_after_the_first_chunk_stays_and_is_said():
    speaker = synthesizer(scripted(LATE_SKIP, RIGHT))
    with pytest.warns(FaultySpeechWarning, match="skips a part of the text in its only attempt: try another seed"):
        found = streamed(speaker, LONG, chunk_frames=8)
    with pytest.warns(FaultySpeechWarning):
        as_it_is = synthesizer(scripted(LATE_SKIP)).synthesize(LONG, SEED).audio
    np.testing.assert_allclose(found, as_it_is, atol=1e-5, rtol=0)
    assert len(speaker.synthesize(LONG, SEED).audio) > len(found)  # which is right


@pytest.mark.parametrize(
    "paths", [[LATE_SKIP, RIGHT], [RUNS_ON, BREAKS_OFF, RIGHT], [STUCK, RIGHT]], ids=["skip", "run on", "stuck"]
)
def test_later_sentences_are_right_before_they_are_heard(paths):
    speaker = synthesizer(scripted(*paths, i_sentence=1))
    text = f"So it is. {LONG.capitalize()}. So it is."
    whole = speaker.synthesize(text, SEED)
    assert [s.attempts for s in whole.sentences] == [1, len(paths), 1]
    np.testing.assert_allclose(streamed(speaker, text, chunk_frames=8), whole.audio, atol=1e-5, rtol=0)


def test_a_decoder_that_runs_on_is_stopped_once_that_is_certain():
    speaker, n_steps = synthesizer(scripted(RUNS_ON)), []
    pieces = speaker.acoustic.pieces

    def watched(*arguments):
        for piece in pieces(*arguments):
            n_steps.append(len(piece.alignment))
            yield piece

    speaker.acoustic.pieces = watched
    with pytest.warns(FaultySpeechWarning, match="goes on past its end"):
        streamed(speaker, LONG, chunk_frames=8)
    assert len(RIGHT) < sum(n_steps) < len(RIGHT) + 70 < speaker.acoustic.max_steps


@settings(max_examples=10)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.booleans()), max_size=3),
    endless=st.booleans(),
    chunk_frames=st.sampled_from([4, 60]),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_happens_a_stream_is_the_whole_of_its_only_attempt(cuts, endless, chunk_frames):
    """Random leaps, repetitions and pauses, the same in every attempt: nothing is spoken that the whole would cut."""
    path = list(RIGHT)
    for start, other, pauses in cuts:
        start = max(start, 20)
        path[start:start] = [path[min(start, len(path) - 1)]] * other if pauses else path[other : other + 20]
    speaker = synthesizer(scripted([*path, None] if endless else path))
    whole = speaker.synthesize(LONG, SEED)
    found = streamed(speaker, LONG, chunk_frames=chunk_frames)
    assert np.isfinite(found).all()
    if len(whole.sentences) == 1:  # and not in parts, into which a stream cannot go back
        assert found.shape == whole.audio.shape
        np.testing.assert_allclose(found, whole.audio, atol=1e-5, rtol=0)


class SilentVocoder:
    context = Context(2, 2)

    def vocode(self, mels, lengths, seeds, first_frame=0):
        return [np.full(256 * length, 0.01, np.float32) for length in lengths]


def test_memory_does_not_grow_with_the_text():
    """10,000 words. What stays grows by less than a hundredth of the audio."""
    speaker = synthesizer(lambda symbols, seed: list(range(0, len(symbols), 4)))
    speaker.vocoder = SilentVocoder()
    speaker.tacotron2.calls = deque(maxlen=1)
    text = "So it is said. " * 2500
    n_samples, memory = 0, []
    tracemalloc.start()
    try:
        for i, chunk in enumerate(speaker.stream(text, SEED, chunk_frames=4)):
            n_samples += len(chunk)
            if i % 800 == 100:
                memory.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(memory) > 3 and n_samples > 2500 * 256
    assert max(memory) - memory[0] < 4 * n_samples / 100
