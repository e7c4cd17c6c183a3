"""The source of speech: its pitch in a log-mel, pulses, noise, and the phase of the vocal tract."""

import numpy as np
import pytest
import torch

from fastglow.audio import MelConfig, MelSpectrogram, excitation, griffin_lim
from fastglow.audio.excitation import mix, pitch, pulses, tract_phase
from fastglow.audio.mel import filter_corners

CONFIG = MelConfig()
RATE = CONFIG.sampling_rate


def harmonics(hz, rate=RATE):
    """Samples of a sum of harmonics up to 7 kHz, falling by 6 dB an octave; `hz` [N] is the pitch."""
    phase = 2 * np.pi * np.cumsum(hz) / rate
    tone = sum(np.where(k * hz < 7000, np.sin(k * phase + k), 0) / k for k in range(1, 60))
    return torch.from_numpy(0.2 * tone / np.abs(tone).max()).float()


def log_mel_of(audio, config=CONFIG):
    return MelSpectrogram.from_config(config)(audio[None])[0]


@pytest.mark.parametrize("hz", [75.0, 110.0, 147.3, 200.0, 291.0, 420.0])
def test_pitch_of_a_steady_voice(hz):
    found = pitch(log_mel_of(harmonics(np.full(RATE, hz))).numpy(), CONFIG)
    assert found.shape == (87,)
    # A candidate is 2 % from the next.
    np.testing.assert_allclose(found[3:-3], hz, rtol=0.01)


def test_pitch_follows_a_glide():
    hz = np.geomspace(110, 280, 2 * RATE)
    found = pitch(log_mel_of(harmonics(hz)).numpy(), CONFIG)
    frames = np.arange(len(found)) * CONFIG.hop_length
    np.testing.assert_allclose(found[4:-4], hz[np.minimum(frames, len(hz) - 1)][4:-4], rtol=0.02)


@pytest.mark.parametrize("n_frames", [1, 2, 61])
def test_the_path_is_the_best(n_frames):
    # Frames 20 to 39 suit no candidate.
    score = np.random.default_rng(n_frames).normal(0, 0.5, (109, n_frames)) - 4 * (np.arange(n_frames) // 20 % 2)
    scores = np.vstack([score, np.full(n_frames, excitation._VOICED)])
    n = len(score)
    step, leap, turn = excitation._STEP_COST, excitation._LEAP_COST, excitation._TURN_COST
    costs = np.array(
        [
            [min(step * abs(i - j), leap) if max(i, j) < n else turn * (i != j) for j in range(n + 1)]
            for i in range(n + 1)
        ]
    )

    def gain(path):
        return scores[path, np.arange(n_frames)].sum() - costs[path[:-1], path[1:]].sum()

    best = scores[:, 0]
    for now in scores.T[1:]:
        best = now + (best - costs).max(1)
    path = excitation._best_path(score)
    assert path.shape == (n_frames,) and (path[20:40] == n).all() and (path[:20] < n).all()
    assert gain(path) == pytest.approx(best.max(), rel=1e-12)


def test_pitch_of_another_config():
    config = MelConfig(sampling_rate=16000, filter_length=800, hop_length=200, n_mel_channels=100, win_length=800)
    found = pitch(log_mel_of(harmonics(np.full(16000, 180.0), 16000), config).numpy(), config)
    np.testing.assert_allclose(found[4:-4], 180, rtol=0.01)


def test_noise_and_silence_are_unvoiced():
    noise = 0.1 * torch.randn(4 * RATE, generator=torch.Generator().manual_seed(0)).clamp(-4, 4)
    assert (pitch(log_mel_of(noise).numpy(), CONFIG) > 0).mean() < 0.05
    assert not pitch(np.full((80, 30), np.log(1e-5)), CONFIG).any()


def test_a_voice_turns_on_and_off():
    noise = 0.02 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    found = pitch(log_mel_of(torch.cat([noise, harmonics(np.full(RATE, 150.0)), noise])).numpy(), CONFIG) > 0
    onset, offset = round(RATE / CONFIG.hop_length), round(2 * RATE / CONFIG.hop_length)
    assert found[onset + 3 : offset - 3].all()
    assert found[: onset - 3].mean() < 0.1 and found[offset + 4 :].mean() < 0.1


def test_pitch_of_a_voice_in_noise():
    noise = torch.randn(2 * RATE, generator=torch.Generator().manual_seed(0))
    voice = harmonics(np.full(2 * RATE, 130.0))
    found = pitch(log_mel_of((voice + noise * voice.std() / 2).clamp(-1, 1)).numpy(), CONFIG)
    np.testing.assert_allclose(found[3:-3], 130, rtol=0.03)


def test_pulses_are_a_period_apart_and_have_its_energy():
    train = pulses(np.full(30, 147.0), CONFIG, 29 * CONFIG.hop_length)
    at = np.flatnonzero(train)
    starts = at[np.insert(np.diff(at) > 1, 0, True)]
    level = train[starts] + np.where(train[starts + 1] > 0, train[starts + 1], 0)
    times = starts + train[starts + 1] / level
    np.testing.assert_allclose(np.diff(times), RATE / 147, rtol=1e-9)
    np.testing.assert_allclose(level**2, RATE / 147, rtol=1e-9)


def test_pulses_go_on_through_unvoiced_frames_at_the_pitch_between():
    train = pulses(np.array([100.0] * 20 + [0.0] * 20 + [200.0] * 20), CONFIG, 59 * CONFIG.hop_length)
    starts = np.flatnonzero((train > 0) & (np.insert(train[:-1], 0, 0) == 0))
    middle = (starts > 28 * CONFIG.hop_length) & (starts < 31 * CONFIG.hop_length)
    np.testing.assert_allclose(np.diff(starts[middle]), RATE / 150, rtol=0.1)
    assert not pulses(np.zeros(5), CONFIG, 1024).any()


def test_the_mix_has_pulses_where_voiced_and_noise_elsewhere():
    hz = np.array([0.0] * 4 + [200.0] * 5 + [0.0] * 4)
    train = torch.full((13, 513), 1 + 0j)
    noise = torch.full((13, 513), 0 + 1j)
    mixed = mix(hz, train, noise, CONFIG)
    assert not mixed[:3].real.any() and (mixed[:3].imag == 1).all()
    # Inside a voiced part the power is the sum of both, and the noise takes over with the frequency.
    inside = mixed[5:8]
    torch.testing.assert_close(inside.abs(), torch.ones(3, 513))
    assert (inside.real[:, :100] > 0.9).all() and (inside.imag[:, -90:] == 1).all()
    assert (inside.imag.diff(dim=1) >= 0).all()


def test_tract_phase_is_that_of_a_minimum_phase_filter():
    config = MelConfig(mel_fmax=None, n_mel_channels=200, filter_length=4096, win_length=1024)
    bins = np.linspace(0, np.pi, 2049)
    # A resonance at 2 kHz and a broad dip at 0.
    pole = 0.8 * np.exp(2j * np.pi * 2000 / RATE)
    z = np.exp(-1j * bins)
    response = (1 - 0.7 * z) / ((1 - pole * z) * (1 - pole.conj() * z))
    centres = filter_corners(config)[1:-1]
    log_mel = torch.from_numpy(np.interp(centres, bins * RATE / 2 / np.pi, np.log(np.abs(response)))).float()[None]
    found = tract_phase(log_mel, config)[0].numpy()
    expected = np.angle(response)
    assert np.abs(expected[50:-50]).max() > 0.7
    assert np.abs(found - expected)[50:-50].max() < 0.1


def test_griffin_lim_restores_harmonics_that_the_mel_has_blurred():
    hz = 200
    log_mel = log_mel_of(harmonics(np.full(RATE, float(hz))))
    # As in a prediction: above 1.5 kHz no harmonics, only the envelope.
    log_mel[40:] = torch.nn.functional.avg_pool1d(log_mel[40:].T, 9, 1, 4, count_include_pad=False).T
    audio = griffin_lim(log_mel, seed=0)
    spectrum = torch.stft(audio, 2048, 512, window=torch.hann_window(2048), return_complex=True).abs()[:, 8:-8]
    harmonic = np.arange(2000, 3600, hz)

    def level(frequencies):
        return spectrum[np.round(frequencies * 2048 / RATE).astype(int)].log().mean().item()

    # [nats]: more than 10 dB between a harmonic and the gap
    assert level(harmonic) - level(harmonic + hz / 2) > 1.15
