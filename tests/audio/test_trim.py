import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastglow.audio.trim import Trimmer

from .pieces import SIZES, speech_like, through

RATE = 22050


def trimmed(audio, rate, threshold):
    """Of the whole array: 20 ms around the blocks of 10 ms that are at least as loud as the threshold."""
    size, kept = round(0.01 * rate), round(0.02 * rate)
    spans = [(i, min(i + size, len(audio))) for i in range(0, len(audio), size)]
    loud = [(a, b) for a, b in spans if np.sqrt(np.mean(audio[a:b].astype(np.float64) ** 2)) >= threshold]
    return audio[max(0, loud[0][0] - kept) : loud[-1][1] + kept] if loud else audio[:0]


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.one_of(st.integers(0, 1000), st.integers(0, 60000)),
    rate=st.sampled_from([8000, 22050, 48000]),
    threshold=st.sampled_from([1e-6, 0.0011, 0.02, 0.3, 1000.0]),
    sizes=SIZES,
)
def test_any_pieces_give_what_the_whole_gives(seed, n, rate, threshold, sizes):
    audio = speech_like(n, seed)
    expected = trimmed(audio, rate, threshold)
    for some in (sizes, (1 << 62,)):
        np.testing.assert_array_equal(through(Trimmer(rate, threshold), audio, some), expected)


@pytest.mark.parametrize("lead", [0, 100, 441, 700, 44100])
@pytest.mark.parametrize("tail", [0, 100, 441, 700, 44100])
def test_sound_stays_with_a_margin_and_pauses_stay(lead, tail):
    rng = np.random.default_rng(0)
    sound = np.concatenate((rng.normal(0, 0.1, 3000), np.zeros(30000), rng.normal(0, 0.1, 2500))).astype(np.float32)
    audio = np.concatenate((np.zeros(lead, np.float32), sound, np.zeros(tail, np.float32)))
    result = through(Trimmer(RATE, 0.001), audio, (777,))
    (at,) = np.flatnonzero(result == sound[0])
    np.testing.assert_array_equal(result[at : at + len(sound)], sound)
    # 20 ms, and what the blocks of 10 ms add.
    block, margin = round(0.01 * RATE), round(0.02 * RATE)
    assert min(lead, margin) <= at <= min(lead, margin + block)
    after = len(result) - at - len(sound)
    assert min(tail, margin) <= after <= min(tail, margin + block)


def test_sound_is_returned_at_once_and_silence_before_it_is_not_kept():
    trimmer = Trimmer(RATE, 0.01)
    for _ in range(50):
        assert len(trimmer.push(np.zeros(1000, np.float32))) == 0
        assert len(trimmer._held) < 0.03 * RATE
    returned = 0
    for i in range(20):
        returned += len(trimmer.push(np.full(1000, 0.5, np.float32)))
        assert returned > 1000 * (i + 1) - round(0.01 * RATE)


@pytest.mark.parametrize("n", [0, 1, 219, 220, 221, 50000])
def test_nothing_remains_of_silence(n):
    assert len(through(Trimmer(RATE, 0.01), np.full(n, 0.005, np.float32), (100,))) == 0
