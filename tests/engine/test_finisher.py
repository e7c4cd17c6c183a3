"""A sentence's way from the vocoder to the listener, in any pieces."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import FastglowError
from fastglow.engine.finishing import CUT_FADE, JOIN_FADE, Finisher
from tests.audio.pieces import SIZES, faded, pieces, speech_like

RATE = 22050
ENDS = [{"is_followed": followed, "cut": cut} for followed in (False, True) for cut in (False, True)]


def finished(audio, ends=ENDS[0], sizes=(1 << 62,), rate=RATE, **options):
    finisher = Finisher(rate, **options)
    results = [finisher.push(piece) for piece in pieces(audio, sizes)]
    results.append(finisher.finish(**ends))
    assert {result.dtype for result in results} == {np.dtype(np.float32)}
    return np.concatenate(results)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.one_of(st.integers(0, 1500), st.integers(0, 30000)),
    rate=st.sampled_from([8000, 22050]),
    gain=st.sampled_from([0.0, 0.3, 1.0, 7.0, 1000.0]),
    ceiling=st.sampled_from([1.0, 10 ** (-1 / 20)]),
    speed=st.sampled_from([1.0, 1, 1.3, 0.7, 3.0]),
    silence=st.sampled_from([None, 0.001, 0.02]),
    follows=st.booleans(),
    ends=st.sampled_from(ENDS),
    sizes=SIZES,
)
def test_any_pieces_give_the_same_bits(seed, n, rate, ends, sizes, **options):
    audio = speech_like(n, seed)
    kept = audio.copy()
    whole = finished(audio, ends, rate=rate, **options)
    np.testing.assert_array_equal(finished(audio, ends, sizes, rate, **options), whole)
    np.testing.assert_array_equal(audio, kept)
    assert (np.abs(whole).astype(np.float64) <= options["ceiling"]).all()
    if options["silence"] is None:
        assert len(whole) == round(n / options["speed"])


@pytest.mark.parametrize("n", [0, 1, 2, 500, 30001])
def test_the_defaults_change_no_bit_and_need_no_package(monkeypatch, n):
    monkeypatch.setitem(sys.modules, "python_stretch", None)
    audio = np.random.default_rng(n).uniform(-1, 1, n).astype(np.float32)
    np.testing.assert_array_equal(finished(audio, sizes=(1000,)), audio)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("n", [1, 50, 700, 1000, 9000])
def test_joins_and_cuts_fade(n, follows, ends):
    audio = np.random.default_rng(n).uniform(-0.5, 0.5, n).astype(np.float32)
    seconds = CUT_FADE if ends["cut"] else JOIN_FADE * ends["is_followed"]
    expected = faded(audio, round(JOIN_FADE * RATE) * follows, round(seconds * RATE))
    np.testing.assert_array_equal(finished(audio, ends, (333,), follows=follows), expected)


def test_a_join_has_no_click():
    """Sentences that begin and end at high values: nothing jumps further than within the input."""
    rng = np.random.default_rng(0)
    audio = (0.5 + 0.2 * np.sin(np.arange(9000) / 7) + rng.normal(0, 1e-3, 9000)).astype(np.float32)
    for cut in (False, True):
        first = finished(audio, {"is_followed": True, "cut": cut}, gain=1.5)
        second = finished(audio[::-1], ENDS[0], gain=1.5, follows=True)
        for silence in (0, 100):
            joined = np.concatenate((first, np.zeros(silence, np.float32), second))
            assert np.abs(np.diff(joined)).max() <= 1.5 * np.abs(np.diff(audio)).max()


@pytest.mark.parametrize("sizes", [(1,), (256,), (3000, 7)])
@pytest.mark.parametrize("rate", [16000, 22050, 48000])
def test_the_delay_is_at_most_40_ms(rate, sizes):
    finisher = Finisher(rate, gain=20.0, follows=True)
    pushed = returned = 0
    for piece in pieces(speech_like(6000, 1), sizes):
        pushed += len(piece)
        returned += len(finisher.push(piece))
        assert pushed - returned <= 0.04 * rate


@pytest.mark.parametrize("gain", [1e-3, 1.0, 50.0])
def test_silence_is_measured_before_the_gain(gain):
    audio = np.concatenate((np.full(5000, 1e-5), np.full(3000, 0.01), np.full(5000, 1e-5))).astype(np.float32)
    result = finished(audio, gain=gain, silence=1e-4)
    assert 3000 + 2 * 441 <= len(result) <= 3000 + 2 * 441 + 2 * 220
    assert len(finished(audio[:5000], gain=gain, silence=1e-4, speed=1.3)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(value):
    finisher = Finisher(RATE)
    finisher.push(np.zeros(100, np.float32))
    with pytest.raises(FastglowError, match="^the vocoder gave samples that are NaN or infinite: use dtype float32"):
        finisher.push(np.array([0.1, value], np.float32))


def test_a_bad_speed_is_refused():
    with pytest.raises(FastglowError, match="^speed=9 must be a factor from 0.5 to 4"):
        Finisher(RATE, speed=9)
