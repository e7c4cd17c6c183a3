"""Distances of audio from a recording against their closed forms."""

import numpy as np
import pytest
import torch

from bench.voice import distances
from bench.voice.distances import delay, perceptual_scores, spectral_distance
from bench.voice.extra import is_installed
from fastglow.train.stft_loss import RESOLUTIONS

RATE = 22050


@pytest.fixture
def noise():
    """Speech-like: noise whose level changes, far above the floor."""
    random = np.random.default_rng(2)
    level = 0.05 + 0.2 * np.abs(np.sin(np.arange(RATE) / 1500))
    return (level * random.uniform(-1, 1, RATE)).astype(np.float32)


def test_equal_audio_has_no_distance(noise):
    assert spectral_distance(noise, noise) == (0, 0)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3])
def test_a_factor(noise, factor):
    """Its logarithm in every bin; the part of the norm that it adds or takes."""
    distance = spectral_distance(noise, noise * np.float64(factor))
    assert distance.log_magnitude == pytest.approx(abs(np.log(factor)), rel=0.01)  # some bins are at the floor
    assert distance.convergence == pytest.approx(abs(1 - factor), rel=1e-6)


def test_the_sign_does_not_count(noise):
    assert spectral_distance(noise, -noise) == pytest.approx((0, 0), abs=1e-12)


def test_each_resolution_has_its_share(noise):
    """Against magnitudes by NumPy's FFT."""
    other = np.roll(noise, 37)
    wanted = []
    for size, hop, win in RESOLUTIONS:
        window = np.zeros(size)
        window[(size - win) // 2 : (size - win) // 2 + win] = torch.hann_window(win, dtype=torch.float64)
        frames = [
            np.abs(np.fft.rfft([window * padded[i : i + size] for i in range(0, len(noise) + 1, hop)]))
            for padded in (np.pad(samples.astype(np.float64), size // 2) for samples in (noise, other))
        ]
        recorded, copied = (np.maximum(magnitudes, 1e-7**0.5) for magnitudes in frames)
        wanted.append(
            (
                np.abs(np.log(recorded) - np.log(copied)).mean(),
                np.linalg.norm(recorded - copied) / np.linalg.norm(recorded),
            )
        )
    assert spectral_distance(noise, other) == pytest.approx(np.mean(wanted, axis=0), rel=1e-6)


@pytest.mark.parametrize("samples", [-700, -1, 0, 1, 300])
def test_a_delay_is_found_whatever_the_phases(noise, samples):
    """A copy whose samples are independent of the recording's, with the same envelope."""
    clip = np.pad(noise, 2000)
    later = np.roll(clip, samples)
    assert delay(clip, later, RATE) == samples / RATE
    assert delay(clip, -later, RATE) == samples / RATE
    smooth = np.exp(-((np.arange(RATE) - RATE / 2) ** 2) / (2 * 800.0**2))
    random = np.random.default_rng(1)
    copies = [(smooth * np.sign(random.uniform(-1, 1, RATE))).astype(np.float32) for _ in range(2)]
    assert delay(copies[0], np.roll(copies[1], samples), RATE) == pytest.approx(samples / RATE, abs=2 / RATE)


@pytest.mark.parametrize("samples", [2, 100, 700])
def test_of_a_very_short_clip(noise, samples):
    assert delay(noise[:samples], noise[:samples], RATE) == 0
    scores = perceptual_scores(noise[:samples], noise[:samples], RATE)
    assert set(scores.values()) <= {None}


def test_missing_packages_are_named(monkeypatch, noise):
    monkeypatch.setattr(distances, "is_installed", lambda package: False)
    assert perceptual_scores(noise, noise, RATE) == {}
    lines = distances.missing_scores()
    assert [line.split(" need ")[0] for line in lines] == ["PESQ scores", "STOI scores"]
    assert all("[evaluation]" in line for line in lines)


@pytest.mark.skipif(not is_installed("pystoi"), reason="needs pystoi (the extra `evaluation`)")
def test_stoi(noise):
    same = perceptual_scores(noise, noise, RATE)
    assert same["stoi"] == pytest.approx(1, abs=1e-6) and same["estoi"] == pytest.approx(1, abs=1e-6)
    disturbed = noise + np.random.default_rng(0).normal(0, 0.1, len(noise)).astype(np.float32)
    worse = perceptual_scores(noise, disturbed, RATE)
    assert worse["stoi"] < 0.95 and worse["estoi"] < worse["stoi"]
    assert perceptual_scores(noise[:2000], noise[:2000], RATE)["stoi"] is None


@pytest.mark.skipif(not is_installed("pesq"), reason="needs pesq (the extra `evaluation`)")
def test_pesq():
    from fastglow.audio import read_audio

    clip, rate = read_audio("tests/data/clips/wavs/arctic_a0379_1592708291.ogg")
    assert perceptual_scores(clip, clip, rate)["pesq"] == pytest.approx(4.644, abs=1e-3)  # the scale's highest
    disturbed = clip + np.random.default_rng(0).normal(0, 0.02, len(clip)).astype(np.float32)
    assert perceptual_scores(clip, disturbed, rate)["pesq"] < 3
    assert perceptual_scores(np.zeros_like(clip), np.zeros_like(clip), rate)["pesq"] is None
