import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastglow.audio.limiter import Limiter

from .pieces import SIZES, pieces, speech_like, through

RATE = 22050
CEILING = 10 ** (-1 / 20)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.one_of(st.integers(0, 50), st.integers(0, 40000)),
    rate=st.sampled_from([8000, 22050, 24000, 48000]),
    ceiling=st.sampled_from([1.0, CEILING, 0.1]),
    level=st.sampled_from([0.01, 0.3, 3.0]),
    sizes=SIZES,
)
@example(seed=932410, n=40000, rate=24000, ceiling=CEILING, level=3.0, sizes=[500])  # cut where the gain reaches 1
def test_any_pieces_give_the_same_bits_below_the_ceiling(seed, n, rate, ceiling, level, sizes):
    audio = speech_like(n, seed, level)
    whole = through(Limiter(rate, ceiling), audio)
    np.testing.assert_array_equal(through(Limiter(rate, ceiling), audio, sizes), whole)
    assert whole.shape == audio.shape
    magnitude = np.abs(whole).astype(np.float64)
    assert (magnitude <= ceiling).all()
    # It only lowers, and never turns the wave round.
    assert (magnitude <= np.abs(audio)).all()
    assert (np.sign(whole) * np.sign(audio) >= 0).all()
    loud = np.flatnonzero(np.abs(audio) > ceiling)
    if not len(loud):
        np.testing.assert_array_equal(whole, audio)
        return
    first, last = loud[0] - round(0.008 * rate), loud[-1] + round(0.7 * rate)
    np.testing.assert_array_equal(whole[: max(0, first)], audio[: max(0, first)])
    np.testing.assert_array_equal(whole[last:], audio[last:])


@given(sizes=SIZES, rate=st.sampled_from([8000, 22050, 44100]))
@example(sizes=[1], rate=22050)
def test_it_holds_back_no_more_than_its_delay(sizes, rate):
    limiter = Limiter(rate, 1.0)
    assert limiter.delay <= 0.008 * rate
    audio = speech_like(3000, 1)
    pushed = returned = 0
    for piece in pieces(audio, sizes):
        pushed += len(piece)
        returned += len(limiter.push(piece))
        assert pushed - limiter.delay <= returned <= pushed


@pytest.mark.parametrize("excess", [1.0001, 1.1, 2.0, 100.0, 1e6])
@pytest.mark.parametrize("at", [0, 1, 500, 11000, 21999])
def test_an_isolated_peak_comes_to_the_ceiling_by_a_smooth_gain(excess, at):
    """The samples around it are quiet, and show the gain."""
    audio = np.full(44000, 0.25, np.float32)
    audio[at] = -excess * CEILING
    limited = through(Limiter(RATE, CEILING), audio)
    assert limited[at] == pytest.approx(-CEILING, rel=1e-6)
    gain = (limited / audio).astype(np.float64)
    before, after = gain[: at + 1], gain[at:]
    # Down within 5 ms (and a block on either side), no steeper than a raised cosine of 5 ms.
    np.testing.assert_array_equal(before[: max(0, at - round(0.008 * RATE))], 1)
    assert (np.diff(before) <= 1e-7).all()
    assert -np.diff(before).min(initial=0) <= (1 - 1 / excess) * np.pi / 2 / (0.005 * RATE) + 1e-6
    # Up again, halfway within 35 to 70 ms, and exactly 1 in the end.
    assert (np.diff(after) >= -1e-7).all()
    if excess > 1.05:
        half = np.flatnonzero(after >= (1 + 1 / excess) / 2)[0] / RATE
        assert 0.035 < half < 0.07
    np.testing.assert_array_equal(after[round(0.7 * RATE) :], 1)


@pytest.mark.parametrize("values", [[], [0.0], [5.0], [-1e6], [3.0, -300.0], [0.5, 0.25], [1e30, 1e30]])
@pytest.mark.parametrize("ceiling", [1.0, CEILING])
def test_tiny_inputs(values, ceiling):
    audio = np.array(values, np.float32)
    for sizes in ((1,), (2,)):
        limited = through(Limiter(RATE, ceiling), audio, sizes)
        assert limited.shape == audio.shape
        assert (np.abs(limited).astype(np.float64) <= ceiling).all()
        if not (np.abs(audio) > ceiling).any():
            np.testing.assert_array_equal(limited, audio)


def test_a_steady_tone_40_db_too_high_stays_a_tone():
    t = np.arange(RATE) / RATE
    tone = (100 * CEILING * np.sin(2 * np.pi * 300 * t)).astype(np.float32)
    limited = through(Limiter(RATE, CEILING), tone)[2000:-2000]
    spectrum = np.abs(np.fft.rfft(limited * np.hanning(len(limited)))) ** 2
    peak = int(spectrum.argmax())
    assert peak * RATE / len(limited) == pytest.approx(300, abs=2)
    # Distortion, which clipping would bring to 20 %.
    assert 1 - spectrum[peak - 3 : peak + 4].sum() / spectrum.sum() < 1e-3
    assert np.abs(limited).max() > 0.9 * CEILING


def test_the_input_is_not_modified_and_the_output_is_not_its_memory():
    audio = speech_like(5000, 3, 5.0)
    kept = audio.copy()
    limiter = Limiter(RATE, 1.0)
    first = limiter.push(audio[:2500])
    copy = first.copy()
    audio_first = audio[:2500].copy()
    audio[:2500] = 7
    limiter.push(audio[2500:])
    limiter.flush()
    np.testing.assert_array_equal(first, copy)
    np.testing.assert_array_equal(audio_first, kept[:2500])
    np.testing.assert_array_equal(audio[2500:], kept[2500:])
