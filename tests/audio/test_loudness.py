from pathlib import Path

import numpy as np
import pytest
import torch

from fastglow import FastglowError
from fastglow.audio import MelConfig, MelSpectrogram, read_audio
from fastglow.audio.loudness import check_volume, mel_level, normalizing_gain, set_level

RATE = 22050
CLIPS = sorted((Path(__file__).parents[1] / "data" / "clips" / "wavs").glob("*.ogg"))


def active_level(audio, rate):
    """RMS of the blocks of 20 ms within 25 dB of the loudest, in dBFS."""
    size = round(0.02 * rate)
    powers = np.mean(audio[: len(audio) // size * size].astype(np.float64).reshape(-1, size) ** 2, axis=1)
    return 10 * np.log10(powers[powers >= powers.max() * 10**-2.5].mean())


def level_from_mel(audio, config):
    log_mel = MelSpectrogram.from_config(config)(torch.from_numpy(audio)[None])[0]
    assert mel_level(log_mel, config) == mel_level(log_mel.numpy(), config)
    return mel_level(log_mel, config)


@pytest.mark.parametrize(
    "config",
    [
        MelConfig(),
        MelConfig(16000, 1024, 200, 800, 80, 40.0, 7600.0),
        MelConfig(22050, 1024, 256, 1024, 100, 0.0, None),
        MelConfig(44100, 2048, 512, 2048, 128, 20.0, 16000.0),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:resampling audio")
@pytest.mark.parametrize("gain", [1.0, 0.03])
def test_the_level_of_recordings_is_read_from_their_mel(config, gain):
    for clip in CLIPS:
        audio = gain * read_audio(clip, config.sampling_rate)[0]
        assert level_from_mel(audio, config) == pytest.approx(active_level(audio, config.sampling_rate), abs=1)


@pytest.mark.parametrize("pause", [0.0, 0.4])
@pytest.mark.parametrize("amplitude", [0.003, 0.3])
@pytest.mark.parametrize("shape", ["sine", "voice", "noise"])
def test_the_level_of_signals_is_read_from_their_mel(shape, amplitude, pause):
    t = np.arange(3 * RATE) / RATE
    for hz in (95.0, 170.0, 240.0):
        noise = np.random.default_rng(int(hz)).normal(0, 0.3, len(t))
        wave = {"sine": np.sin(2 * np.pi * hz * t), "voice": 2 * ((hz * t) % 1) - 1, "noise": noise}[shape]
        audio = (amplitude * wave * (t % 1 >= pause)).astype(np.float32)
        # White noise: of its power, 27 % is above the mel.
        expected = active_level(audio, RATE) - (0.7 if shape == "noise" else 0)
        assert level_from_mel(audio, MelConfig()) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_the_level_of_silence_is_low(frames):
    assert mel_level(np.full((80, frames), np.log(1e-5), np.float32), MelConfig()) < -95


@pytest.mark.parametrize(("level", "decibels"), [(-18.0, 0), (-30.0, 12), (-6.0, -12), (-42.0, 24), (-80.0, 24)])
def test_the_gain_reaches_the_level_within_its_limit(level, decibels):
    assert 20 * np.log10(normalizing_gain(level)) == pytest.approx(decibels)


def speech_like(seconds=1.5, rms=0.03, seed=0, rate=RATE, pauses=True):
    """Noise in syllables of 0.2 s, every third of them a pause; `rms` without the pauses."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    syllable = np.arange(n) * 5 // rate
    audio = rng.normal(0, rms, n) * (syllable % 3 > 0 if pauses else 1)
    return audio.astype(np.float32)


def dbfs(audio):
    """RMS outside the pauses, in dB."""
    audio = audio[audio != 0].astype(np.float64)
    return 10 * np.log10(np.mean(audio**2))


@pytest.mark.parametrize("rms", [0.01, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("seconds", [0.35, 2.3])
@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_speech_of_any_level_gets_the_same_level(rms, seconds, rate):
    audio = speech_like(seconds, rms, rate=rate)
    levelled = set_level(audio, rate)
    assert levelled.dtype == np.float32
    assert dbfs(levelled) == pytest.approx(-18, abs=0.7)
    # By a single factor: the waveform is the same.
    np.testing.assert_allclose(levelled * np.abs(audio).max(), audio * np.abs(levelled).max(), atol=1e-6)


def test_pauses_do_not_matter():
    with_pauses = set_level(speech_like(3), RATE)
    without = set_level(speech_like(3, pauses=False), RATE)
    assert dbfs(with_pauses) == pytest.approx(dbfs(without), abs=0.5)


@pytest.mark.parametrize("peak", [0.5, 1.0, 3.0])
def test_peaks_stay_below_the_ceiling(peak):
    audio = speech_like(rms=0.01)
    audio[len(audio) // 2] = -peak
    levelled = set_level(audio, RATE)
    assert np.abs(levelled).max() == pytest.approx(10 ** (-1 / 20), rel=1e-5)
    assert dbfs(levelled) < -18


@pytest.mark.parametrize("rms", [1e-4, 1e-5, 1e-8])
def test_near_silence_stays_faint(rms):
    levelled = set_level(speech_like(rms=rms), RATE)
    assert dbfs(levelled) == pytest.approx(20 * np.log10(rms) + 24, abs=0.3)


@pytest.mark.parametrize("n", [0, 1, 5, 440, 10000])
def test_silence_and_very_short_audio(n):
    for normalize in (False, True):
        silence = set_level(np.zeros(n, np.float32), RATE, normalize)
        assert silence.shape == (n,)
        assert not silence.any()
        if n:
            click = np.zeros(n, np.float32)
            click[-1] = 0.5
            assert np.isfinite(set_level(click, RATE, normalize)).all()
            assert 0 < np.abs(set_level(click, RATE, normalize)).max() <= 1


@pytest.mark.parametrize("volume", [0.0, 0.25, 1.0, 1.5])
@pytest.mark.parametrize("normalize", [False, True])
def test_volume_is_a_factor(volume, normalize):
    audio = speech_like(rms=0.05)
    plain = set_level(audio, RATE, normalize)
    np.testing.assert_allclose(set_level(audio, RATE, normalize, volume), volume * plain, rtol=1e-6, atol=1e-9)
    if not normalize:
        np.testing.assert_array_equal(plain, audio)


@pytest.mark.parametrize("volume", [3.0, 100.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_volume_too_high_gives_full_scale_and_no_clipping(volume, normalize):
    audio = speech_like(rms=0.2)
    loud = set_level(audio, RATE, normalize, volume)
    assert np.abs(loud).max() == pytest.approx(1, abs=1e-6)
    assert np.abs(loud).max() <= 1
    assert (np.abs(loud) > 0.999).sum() == 1
    np.testing.assert_allclose(loud, audio / np.abs(audio).max(), atol=1e-6)


def test_without_normalizing_audio_above_full_scale_is_scaled_down():
    audio = np.array([0.5, -2.0, 1.0], np.float32)
    np.testing.assert_array_equal(set_level(audio, RATE, normalize=False), [0.25, -1.0, 0.5])


@pytest.mark.parametrize("volume", [-0.1, -1, 100.1, 1e300, float("nan"), float("inf"), "loud", None])
def test_invalid_volumes_are_refused(volume):
    with pytest.raises(FastglowError, match="^volume=.* must be a factor from 0 to 100; 1 keeps the level$"):
        check_volume(volume)


def test_the_input_is_not_modified():
    audio = speech_like()
    kept = audio.copy()
    set_level(audio, RATE, volume=2)
    np.testing.assert_array_equal(audio, kept)
