"""Times of words: of attention drawn by hand, and of the bundled voice against its own silence."""

import pickle
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch

from fastglow import Synthesizer
from fastglow.engine.finishing import Finisher
from fastglow.engine.reading import Fault, Reading
from fastglow.engine.word_times import Clock, Word, monotone_path, word_times
from fastglow.text.sequence import Span
from fastglow.voices import DEFAULT_VOICE

from .scripted import ScriptedTacotron2
from .test_finishing import NoiseVocoder
from .test_reading import alignment

RATE, HOP = 22050, 256
STEP = 3 * HOP / RATE  # of the scripted model
# "ab cd, ef."
WORDS = [Span("ab", 0, 2), Span("cd,", 3, 5), Span("ef.", 7, 9)]
UNHURRIED = Clock(0.1, 0.0, 1.0, 100.0)


def times(path, words=WORDS, clock=UNHURRIED, n_symbols=10, **how):
    found = word_times(alignment(path, n_symbols, **how), words, clock)
    return [(word.text, round(word.start, 4), round(word.end, 4)) for word in found]


def test_words_meet_at_a_space_and_end_at_other_marks():
    #       a  b  b  space c  d  d  ,  ,  _  e  f  .  .
    path = [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9, 9]
    assert times(path) == [("ab", 0.0, 0.4), ("cd,", 0.4, 0.8), ("ef.", 1.1, 1.3)]


def test_times_are_of_the_audio_as_heard():
    path = [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9, 9]
    assert times(path, clock=Clock(0.1, 0.2, 2.0, 0.5)) == [("ab", 0.0, 0.1), ("cd,", 0.1, 0.3), ("ef.", 0.45, 0.5)]


def test_glances_away_from_the_path_change_nothing():
    path = np.repeat(np.arange(10), 4)
    expected = times(path)
    for first in range(4, 32, 4):
        for glance in (0, 9):
            noisy = path.copy()
            noisy[first + 1 : first + 3] = glance
            assert times(noisy) == expected


def test_weights_decide_between_two_paths():
    """The largest weight is off the path for as long as on it, but the sum of the logarithms is not the same."""
    weights = np.full((6, 3), 0.02)
    weights[[0, 1, 2, 3, 4, 5], [0, 0, 2, 2, 1, 2]] = 0.5
    weights[2:4, 1] = 0.4
    assert monotone_path(weights).tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(("n_steps", "n_symbols"), [(1, 1), (1, 4), (5, 1), (6, 3), (5, 5), (4, 7)])
def test_the_path_is_the_best_of_all(n_steps, n_symbols):
    generator = np.random.default_rng(n_steps)
    for _ in range(20):
        weights = generator.dirichlet(np.full(n_symbols, 0.3), n_steps)
        scores = np.log(np.maximum(weights, 0.01))
        every = combinations_with_replacement(range(n_symbols), n_steps)
        best = max(scores[np.arange(n_steps), list(path)].sum() for path in every)
        path = monotone_path(weights)
        assert (np.diff(path) >= 0).all()
        assert scores[np.arange(n_steps), path].sum() == pytest.approx(best)


def test_a_small_leap_reads_what_it_passes_over():
    path = [0, 0, 1, 1, 7, 7, 8, 8, 9, 9]  # all of " cd, "
    found = times(path)
    assert [word for word, _, _ in found] == ["ab", "cd,", "ef."]
    assert 0.35 <= found[1][1] < found[1][2] <= 0.45  # within one step
    assert found[2][1:] == (pytest.approx(0.4, abs=0.05), 0.8)


def test_what_is_leapt_over_or_not_reached_has_no_time():
    n = 40
    words = [Span(str(i), 5 * i, 5 * i + 4) for i in range(8)]
    steady = np.repeat(np.arange(n), 2)
    assert len(times(steady, words, n_symbols=n)) == 8
    skips = np.concatenate((steady[:20], steady[50:]))  # from 9 to 25
    assert [word for word, _, _ in times(skips, words, n_symbols=n)] == ["0", "1", "5", "6", "7"]
    late = steady[34:]  # begins at 17
    assert [word for word, _, _ in times(late, words, n_symbols=n)] == ["3", "4", "5", "6", "7"]
    breaks_off = times(steady[:34], words, n_symbols=n)  # within the fourth word
    assert [word for word, _, _ in breaks_off] == ["0", "1", "2", "3"]
    assert breaks_off[-1][2] == 3.4


def test_repeated_words_are_heard_once_and_in_order():
    n = 40
    words = [Span(str(i), 5 * i, 5 * i + 4) for i in range(8)]
    steady = np.repeat(np.arange(n), 2)
    repeats = np.concatenate((steady[:60], steady[20:]))  # from 29 back to 10
    found = times(repeats, words, n_symbols=n)
    assert [word for word, _, _ in found] == [word.text for word in words]
    bounds = [time for _, *both in found for time in both]
    assert bounds == sorted(bounds)
    assert found[0][1:] == (0.0, 0.9)
    assert found[-1][1:] == (10.9, 11.8)


def test_one_word_and_nothing():
    word = [Span("ab", 0, 2)]
    assert times([0, 1, 2, 2], word, n_symbols=3) == [("ab", 0.0, 0.2)]
    assert times([0, 1, 1, 1], word, n_symbols=3) == [("ab", 0.0, 0.4)]  # never at the mark
    assert times([0], word, n_symbols=3) == [("ab", 0.0, 0.1)]
    assert times([0, 1], [], n_symbols=2) == []
    assert word_times(np.zeros((0, 3), np.float32), word, UNHURRIED) == []


def test_what_the_trimmer_removed_from_the_beginning():
    audio = np.zeros(3 * RATE, np.float32)
    audio[RATE + 1000 : 2 * RATE] = 0.1
    for size in (len(audio), 777):
        finisher = Finisher(RATE, silence=0.01)
        parts = [finisher.push(audio[i : i + size]) for i in range(0, len(audio), size)]
        trimmed = np.concatenate((*parts, finisher.finish(is_followed=False, cut=False)))
        assert finisher.n_trimmed == RATE + 1000 - np.flatnonzero(trimmed)[0] > 0.9 * RATE
    untouched = Finisher(RATE)
    untouched.push(audio)
    assert untouched.n_trimmed == 0


def scripted(script, cleaners="english_cleaners"):
    speaker = Synthesizer(ScriptedTacotron2(script), "griffin-lim", text_cleaners=[cleaners], level=-30, device="cpu")
    speaker.vocoder = NoiseVocoder(lambda n_frames: 0.03)
    return speaker


def slow(symbols, seed):
    return [i for i in range(len(symbols)) for _ in range(5)]


def test_words_of_a_text_in_seconds_of_its_audio():
    speech = scripted(slow).synthesize("Dr. Who - hm. It is $5!", seed=1, sentence_silence=0.5)
    first, second = speech.sentences
    # doctor who - hm.
    assert [word.text for word in first.words] == ["Dr.", "Who", "hm."]
    expected = [(0, 32.5), (32.5, 50), (65, 75)]
    assert [word[1:] for word in first.words] == [pytest.approx(np.array(times) * STEP) for times in expected]
    assert [word.text for word in second.words] == ["It", "is", "$5!"]  # it is five dollars!
    assert second.words[2][1:] == pytest.approx((27.5 * STEP, 90 * STEP))
    assert speech.starts == [0, len(first.audio) + round(0.5 * RATE)]
    for start, sentence in zip(speech.starts, speech.sentences, strict=True):
        np.testing.assert_array_equal(speech.audio[start : start + len(sentence.audio)], sentence.audio)
    begin = speech.starts[1] / RATE
    later = [Word(text, begin + start, begin + end) for text, start, end in second.words]
    assert speech.words == [*first.words, *later]


@pytest.mark.parametrize("delivery", [{}, {"trim_silence": True}])
def test_a_stream_and_a_batch_have_the_same_words(delivery):
    speaker = scripted(slow)
    text = "Dr. Who left. [pause:1.5s] It is late."
    speech = speaker.synthesize(text, seed=1, **delivery)
    streamed = [part for part in speaker.stream_sentences(text, seed=1, **delivery) if not isinstance(part, np.ndarray)]
    (batched,) = speaker.synthesize_batch([text], seed=1, **delivery)
    assert [sentence.words for sentence in streamed] == [sentence.words for sentence in speech.sentences]
    assert batched.words == speech.words
    assert [word.text for word in speech.words] == "Dr. Who left. It is late.".split()
    assert speech.words[3].start == pytest.approx(len(speech.sentences[0].audio) / RATE + 1.5, abs=1e-4)


def test_sentences_without_audio_have_a_start_and_no_words():
    speech = scripted(slow).synthesize("Oh. Well. No.", seed=1)
    speech.sentences[1].audio = np.zeros(0, np.float32)
    one, _, three = speech.sentences
    pause = round(0.2 * RATE)
    assert speech.starts == [0, len(one.audio), len(one.audio) + pause]
    np.testing.assert_array_equal(speech.audio[speech.starts[2] :], three.audio)
    assert [word.text for word in speech.words] == ["Oh.", "No."]
    speech.sentences.clear()
    assert (speech.starts, speech.words, len(speech.audio)) == ([], [], 0)


def test_a_pickled_sentence_keeps_its_words_without_the_front_end():
    (sentence,) = scripted(slow).synthesize("Dr. Who left.", seed=1).sentences
    copy = pickle.loads(pickle.dumps(sentence))
    assert [word.text for word in copy.words] == ["Dr.", "Who", "left."]
    assert copy.words == sentence.words
    assert copy.word_source is None


@pytest.mark.filterwarnings("ignore::fastglow.engine.remarks.FaultySpeechWarning")
def test_a_cut_sentence_has_the_words_that_it_says():
    def never_ends(symbols, seed):
        return [*slow(symbols[:9], seed), None]

    (sentence,) = scripted(never_ends).synthesize("one two three.", seed=1).sentences
    assert sentence.cut
    assert [word.text for word in sentence.words] == ["one", "two", "three."]
    assert sentence.words[-1].end == pytest.approx(len(sentence.audio) / RATE)


@pytest.mark.filterwarnings("ignore::fastglow.engine.remarks.FaultySpeechWarning")
def test_illegible_attention_gives_no_words():
    (sentence,) = scripted(lambda symbols, seed: [-1] * 60).synthesize("one two three.", seed=1).sentences
    assert sentence.reading == Reading(Fault.NONE, legible=False)
    assert sentence.words == []


@pytest.fixture(scope="module")
def heart():
    return Synthesizer.from_voice(DEFAULT_VOICE, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("delivery", [{}, {"speed": 1.25, "trim_silence": True}])
def test_the_silence_of_the_bundled_voice_lies_between_words(heart, delivery):
    """At its commas the voice makes pauses, and before its first word and after its last it is silent."""
    text = "When the rain stopped, we walked along the river, and the children played."
    speech = heart.synthesize(text, seed=3, **delivery)
    words = speech.words
    assert [word.text for word in words] == text.split()
    bounds = [time for word in words for time in word[1:]]
    assert bounds == sorted(bounds)
    assert 0 <= bounds[0] and bounds[-1] <= speech.seconds
    block = RATE // 50
    loudness = np.sqrt((speech.audio[: len(speech.audio) // block * block].reshape(-1, block) ** 2).mean(1))
    centres = (np.arange(len(loudness)) + 0.5) * block / RATE
    for i in (3, 8):
        pause, following = (words[i].start + words[i].end) / 2, (words[i + 1].start + words[i + 1].end) / 2
        inside = (centres > pause) & (centres < following)
        quietest = centres[inside][loudness[inside].argmin()]
        assert words[i].end <= quietest <= words[i + 1].start
    spoken = np.any([(centres > word.start) & (centres < word.end) for word in words], axis=0)
    assert (loudness[spoken] ** 2).sum() > 0.9 * (loudness**2).sum()
    assert spoken.mean() < 0.95
