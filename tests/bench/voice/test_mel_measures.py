"""Smoothness of mels and their distance against closed forms and brute force."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.voice.mel_measures import (
    N_CEPSTRA,
    UPPER_HZ,
    cepstra,
    cepstral_distortion,
    texture,
    warping_path,
)
from fastglow.audio import MelConfig
from fastglow.audio.mel import filter_corners, mel_filterbank

CONFIG = MelConfig()
CENTRES = filter_corners(CONFIG)[1:-1]
UPPER = CENTRES >= UPPER_HZ


@pytest.fixture
def mel():
    """Log-mel [80, 200], without a pause."""
    return np.random.default_rng(4).normal(-5, 0.7, (80, 200))


def lowest_cost(costs):
    @functools.cache
    def to(i, j):
        if i == j == 0:
            return costs[0][0]
        before = [to(a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
        return costs[i][j] + min(before)

    return to(len(costs) - 1, len(costs[0]) - 1)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_the_best_path(n, m, seed):
    costs = np.random.default_rng(seed).integers(0, 4, (n, m)).astype(float)
    path = warping_path(costs)
    assert path[0] == (0, 0) and path[-1] == (n - 1, m - 1)
    steps = {(b[0] - a[0], b[1] - a[1]) for a, b in zip(path, path[1:], strict=False)}
    assert steps <= {(0, 1), (1, 0), (1, 1)}
    assert sum(costs[pair] for pair in path) == lowest_cost(costs.tolist())


def test_cepstra_are_the_amplitudes_of_cosines():
    bands = np.pi * (np.arange(80) + 0.5) / 80
    mel = (3 + 0.5 * np.cos(2 * bands) - 0.25 * np.cos(13 * bands) + 4 * np.cos(20 * bands))[:, None]
    wanted = np.zeros(N_CEPSTRA)
    wanted[[1, 12]] = 0.5, -0.25
    np.testing.assert_allclose(cepstra(mel)[:, 0], wanted, atol=1e-12)


def test_cepstral_distortion_is_the_distance_of_envelopes_in_decibels(mel):
    """A cosine of amplitude a in the log-mel is a deviation of a / sqrt(2) nepers, RMS, and twice in power."""
    ripple = 0.3 * np.cos(5 * np.pi * (np.arange(80) + 0.5) / 80)[:, None]
    flat = np.zeros((80, 7))
    wanted = np.sqrt(np.mean((20 * np.log10(np.exp(ripple))) ** 2))
    assert cepstral_distortion(flat, flat + ripple) == pytest.approx(wanted)
    assert cepstral_distortion(mel, mel + 2.0) == pytest.approx(0, abs=1e-9)  # the level does not count


def test_timing_does_not_count(mel):
    slower = np.repeat(mel, np.random.default_rng(0).integers(1, 4, mel.shape[1]), axis=1)
    assert cepstral_distortion(mel, slower) == pytest.approx(0, abs=1e-9)
    assert cepstral_distortion(mel, mel[:, ::-1]) > 1


def test_bands_are_those_of_the_filters():
    filters = mel_filterbank(CONFIG)
    bins = np.linspace(0, CONFIG.sampling_rate / 2, filters.shape[1])
    np.testing.assert_allclose(CENTRES, filters @ bins / filters.sum(axis=1), atol=30)


def test_what_a_mel_does_not_tell_is_nan(mel):
    """Of a telephone's band, and over silence: without a warning, which is an error here."""
    narrow = texture([mel], MelConfig(mel_fmax=3500.0))
    assert narrow.laplacian > 0 and np.isnan([narrow.upper_variance, narrow.upper_laplacian, narrow.sibilance]).all()
    silence = texture([np.full((80, 30), -11.5)], CONFIG)
    ratios = texture([mel], CONFIG).over(silence)
    assert np.isnan(ratios["variance"]) and np.isfinite(ratios["sibilance"])


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_mel_of_other_contrast(mel, factor):
    """Deviations times a factor: variances times its square."""
    mean = mel.mean(axis=1, keepdims=True)
    ratios = texture([mean + factor * (mel - mean)], CONFIG).over(texture([mel], CONFIG))
    for name in ("variance", "upper_variance"):
        assert ratios[name] == pytest.approx(factor**2)
    flat = np.full((80, 1), -5.0)
    sharp, wanted = (texture([flat + f * (mel - flat)], CONFIG) for f in (factor, 1.0))
    assert sharp.over(wanted)["laplacian"] == pytest.approx(factor**2)
    assert sharp.over(wanted)["upper_laplacian"] == pytest.approx(factor**2)


def test_smoothing_lowers_sharpness_more_than_variance(mel):
    """The mean of two neighbours in time of independent values has half the variance, but less of the sharpness."""
    smooth = (mel[:, 1:] + mel[:, :-1]) / 2
    ratios = texture([smooth], CONFIG).over(texture([mel], CONFIG))
    assert ratios["variance"] == pytest.approx(0.5, abs=0.05)
    # Weights of a Laplacian: 20 over its 5 cells; of the mean's, [-4, 1, 1] * [1, 1] / 2 per row: (1 + 9 + 9 + 1) / 4
    # in the middle one and (1 + 1) / 4 in each of the others.
    assert ratios["laplacian"] == pytest.approx((5 + 2 * 0.5) / 20, abs=0.03)


def test_sibilance_is_the_level_of_strong_upper_bands():
    mel = np.full((80, 100), -6.0)
    mel[UPPER, :10] += 2.0
    weak = mel.copy()
    weak[UPPER, :10] -= 0.5
    found, wanted = texture([weak], CONFIG), texture([mel], CONFIG)

    def level(of):
        power = np.exp(2 * of)
        return 10 * np.log10(power[UPPER, :10].sum(axis=0).mean() / power.sum(axis=0).mean())

    assert wanted.sibilance == pytest.approx(level(mel))
    assert found.over(wanted)["sibilance"] == pytest.approx(level(weak) - level(mel))


def test_pauses_do_not_count(mel):
    silence = np.full((80, 50), -11.5)
    padded = np.concatenate([silence, mel, silence], axis=1)
    alone, among = texture([mel], CONFIG), texture([padded], CONFIG)
    assert among.over(alone)["variance"] == pytest.approx(1)
    assert among.over(alone)["sibilance"] == pytest.approx(0, abs=1e-9)


def test_utterances_too_short_to_judge(mel):
    assert texture([], CONFIG) is None
    assert texture([mel[:, :0], mel[:, :9]], CONFIG) is None
    assert texture([mel[:, :9], mel], CONFIG) == texture([mel], CONFIG)
