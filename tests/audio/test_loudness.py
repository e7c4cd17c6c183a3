from pathlib import Path

import numpy as np
import pytest
import torch

from fastglow import FastglowError
from fastglow.audio import MelConfig, MelSpectrogram, read_audio
from fastglow.audio.loudness import check_volume, mel_level, normalizing_gain

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


@pytest.mark.parametrize("volume", [-0.1, -1, 100.1, 1e300, float("nan"), float("inf"), "loud", None])
def test_invalid_volumes_are_refused(volume):
    with pytest.raises(FastglowError, match="^volume=.* must be a factor from 0 to 100; 1 keeps the level$"):
        check_volume(volume)
