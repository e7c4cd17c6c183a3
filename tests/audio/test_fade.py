import numpy as np
import pytest

from fastglow.audio.fade import fade


@pytest.mark.parametrize(("n_in", "n_out"), [(100, 0), (0, 100), (100, 660), (110, 110)])
@pytest.mark.parametrize("n", [1, 2, 3, 150, 221, 5000])
def test_ends_fade_and_the_middle_stays(n, n_in, n_out):
    audio = np.random.default_rng(0).uniform(0.2, 1, n).astype(np.float32)
    kept = audio.copy()
    faded = fade(audio, n_in, n_out)
    np.testing.assert_array_equal(audio, kept)
    assert faded.dtype == np.float32
    gain = faded / audio
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


def test_without_fades_the_audio_is_unchanged():
    audio = np.array([0.5, -0.25], np.float32)
    np.testing.assert_array_equal(fade(audio, 0, 0), audio)
    assert fade(np.zeros(0, np.float32), 10, 10).shape == (0,)
