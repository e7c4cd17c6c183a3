"""Linear magnitudes from mel magnitudes."""

import numpy as np
import pytest
import torch

from fastglow.audio import MelConfig, griffin_lim
from fastglow.audio.mel import mel_filterbank
from fastglow.audio.mel_inversion import MelConstraint, level_above

CONFIGS = [
    MelConfig(),
    MelConfig(sampling_rate=16000, filter_length=800, hop_length=200, win_length=640, n_mel_channels=40, mel_fmin=50),
]


def divergence(filters, magnitude, mel):
    """Kullback-Leibler divergence of each frame's mel from `mel` [T, C], fp64."""
    ours = magnitude.double() @ filters[:, : magnitude.size(1)].T
    return (mel * (mel / ours).log() - mel + ours).sum(1)


@pytest.mark.parametrize("config", CONFIGS)
def test_no_update_increases_the_divergence(config):
    generator = torch.Generator().manual_seed(0)
    filters = torch.from_numpy(mel_filterbank(config))
    mel = torch.rand(6, config.n_mel_channels, generator=generator, dtype=torch.float64) + 0.01
    constraint = MelConstraint(filters.double())
    magnitude = torch.rand(6, constraint.n_bins, generator=generator, dtype=torch.float64) + 0.01
    values = [divergence(filters, magnitude, mel)]
    for _ in range(20):
        constraint.update(magnitude, mel)
        values.append(divergence(filters, magnitude, mel))
    assert (torch.stack(values).diff(dim=0) <= 1e-12 * values[0]).all()
    assert (values[-1] < 0.1 * values[0]).all()


def test_magnitudes_that_have_the_mel_stay():
    filters = torch.from_numpy(mel_filterbank(MelConfig()))
    constraint = MelConstraint(filters)
    magnitude = torch.rand(3, constraint.n_bins, dtype=torch.float64) * (filters[:, : constraint.n_bins].sum(0) > 0)
    updated = magnitude.clone()
    constraint.update(updated, magnitude @ filters[:, : constraint.n_bins].T)
    torch.testing.assert_close(updated, magnitude)


@pytest.mark.parametrize("n_mel_channels", [1, 31, 32, 33, 63, 80, 127])
@pytest.mark.parametrize("mel_fmin, mel_fmax", [(0.0, None), (300.0, 7000.0)])
def test_an_update_is_that_of_the_whole_filterbank(n_mel_channels, mel_fmin, mel_fmax):
    config = MelConfig(filter_length=2048, n_mel_channels=n_mel_channels, mel_fmin=mel_fmin, mel_fmax=mel_fmax)
    filters = mel_filterbank(config)
    rng = np.random.default_rng(n_mel_channels)
    magnitude, mel = rng.uniform(0.01, 1, (5, filters.shape[1])), rng.uniform(0.01, 1, (5, n_mel_channels))
    # Lee and Seung's formula; bins outside every filter become 0.
    expected = magnitude * ((mel / (magnitude @ filters.T)) @ filters) / np.maximum(filters.sum(0), 1e-30)
    constraint = MelConstraint(torch.from_numpy(filters))
    whole = torch.from_numpy(magnitude)
    inside = whole[:, : constraint.n_bins]  # with a stride, as in griffin_lim
    constraint.update(inside, torch.from_numpy(mel))
    np.testing.assert_allclose(inside, expected[:, : constraint.n_bins], rtol=1e-12)
    assert not expected[:, constraint.n_bins :].any()
    np.testing.assert_array_equal(whole[:, constraint.n_bins :], magnitude[:, constraint.n_bins :])


def test_bins_end_with_the_last_filter():
    filters = torch.zeros(2, 9)
    filters[0, 1:4], filters[1, 3:6] = 1, 1
    constraint = MelConstraint(filters)
    assert constraint.n_bins == 6
    magnitude = torch.ones(1, 6)
    constraint.update(magnitude, torch.ones(1, 2))
    assert magnitude[0, 0] == 0 and magnitude[0, 1] > 0
    assert MelConstraint(torch.zeros(2, 9)).n_bins == 0


def test_the_level_above_is_that_below_and_falls_by_12_db_an_octave():
    config = MelConfig(sampling_rate=44100, filter_length=2048, hop_length=512, win_length=2048)
    filters = torch.from_numpy(mel_filterbank(config)).float()
    bins = np.linspace(0, 22050, 1025)
    # A level of 3 up to mel_fmax, in the second frame of 3e-3.
    mel = torch.stack([(3 * filters).sum(1), (3e-3 * filters).sum(1)])
    level = level_above(mel, filters, config)
    expected = 3 * (8000 / np.maximum(bins, 8000)) ** 2
    np.testing.assert_allclose(level[0], expected, rtol=1e-5)
    np.testing.assert_allclose(level[1], expected / 1000, rtol=1e-5)
    assert not level_above(mel, torch.zeros_like(filters), config).any()


def test_fricatives_reach_above_mel_fmax():
    # Noise of one level at every frequency, as far as a mel can tell.
    filters = mel_filterbank(MelConfig())
    log_mel = torch.from_numpy(np.log(0.5 * filters.sum(1)))[:, None].expand(80, 100).float()
    audio = griffin_lim(log_mel, n_iter=20, seed=0)
    power = (
        torch.stft(audio, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs().square().mean(1).numpy()
    )
    bins = np.linspace(0, 11025, 513)
    below, above = (power[(bins > low) & (bins < high)].mean().item() for low, high in ((6500, 7800), (8300, 10900)))
    falling = np.mean((8000 / bins[(bins > 8300) & (bins < 10900)]) ** 4)
    assert abs(10 * np.log10(above / below / falling)) < 1.5


@pytest.mark.filterwarnings("ignore:.*contain no FFT bin")
def test_filters_without_bins_give_silence():
    config = MelConfig(filter_length=64, hop_length=16, win_length=64, n_mel_channels=2, mel_fmin=1, mel_fmax=100)
    assert not griffin_lim(torch.zeros(2, 10), config, n_iter=3, seed=0).any()
