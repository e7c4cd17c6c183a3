import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastglow.audio.fade import Fader

from .pieces import SIZES, faded, pieces


def fade(audio, n_in, n_out):
    fader = Fader(n_in, n_out)
    return np.concatenate((fader.push(audio), fader.finish(n_out)))


@pytest.mark.parametrize(("n_in", "n_out"), [(100, 0), (0, 100), (100, 660), (110, 110)])
@pytest.mark.parametrize("n", [1, 2, 3, 150, 221, 5000])
def test_ends_fade_and_the_middle_stays(n, n_in, n_out):
    audio = np.random.default_rng(0).uniform(0.2, 1, n).astype(np.float32)
    kept = audio.copy()
    result = fade(audio, n_in, n_out)
    np.testing.assert_array_equal(audio, kept)
    assert result.dtype == np.float32
    gain = result / audio
    room = n // 2 if n_in and n_out else n
    n_in, n_out = min(n_in, room), min(n_out, room)
    rise, middle, fall = gain[:n_in], gain[n_in : n - n_out], gain[n - n_out :]
    np.testing.assert_array_equal(middle, 1)
    for ramp in (rise, fall[::-1]):
        assert (np.diff(ramp) > 0).all()
        # The ramp is symmetric about its middle, where it is one half.
        np.testing.assert_allclose(ramp + ramp[::-1], 1, atol=1e-6)
        if len(ramp) > 90:
            assert ramp[0] < 1e-3


@given(
    n=st.one_of(st.integers(0, 300), st.integers(0, 20000)),
    n_in=st.sampled_from([0, 1, 40, 110]),
    most=st.sampled_from([0, 1, 110, 661]),
    share=st.floats(0, 1),
    sizes=SIZES,
)
def test_any_pieces_fade_as_the_whole(n, n_in, most, share, sizes):
    audio = np.random.default_rng(n).uniform(-1, 1, n).astype(np.float32)
    kept = audio.copy()
    n_out = round(share * most)
    fader = Fader(n_in, most)
    results = [fader.push(piece) for piece in pieces(audio, sizes)]
    held = n - sum(map(len, results))
    assert held == min(n, max(most, 2 * n_in))
    np.testing.assert_array_equal(np.concatenate((*results, fader.finish(n_out))), faded(audio, n_in, n_out))
    np.testing.assert_array_equal(audio, kept)


def test_without_fades_the_audio_is_unchanged():
    audio = np.array([0.5, -0.25], np.float32)
    np.testing.assert_array_equal(fade(audio, 0, 0), audio)
    assert fade(np.zeros(0, np.float32), 10, 10).shape == (0,)
