"""Hiss, buzz and clicks of known strength are measured as such."""

import numpy as np
import pytest

from bench.voice import artefacts
from fastglow.audio import MelConfig

CONFIG = MelConfig()
RATE, HOP = CONFIG.sampling_rate, CONFIG.hop_length


@pytest.fixture(scope="module")
def sounds():
    return artefacts.sounds(CONFIG)


def hiss(audio, level):
    """White noise of so many dBFS, as long as audio."""
    return np.random.default_rng(1).standard_normal(len(audio)) * 10 ** (level / 20)


def test_computed_sounds_have_no_artefacts(sounds):
    assert list(sounds) == ["silence", "a", "i", "u"]
    measured = artefacts.measure_all(sounds, CONFIG)
    assert measured["silence"] == {"level": -120, "noise": None, "buzz": 0, "click": 0}
    for name in "aiu":
        assert sounds[name].dtype == np.float32 and np.abs(sounds[name]).max() < 1
        assert measured[name]["level"] == pytest.approx(artefacts.SPEECH_DB, abs=0.5)
        assert measured[name]["noise"] < -70 and measured[name]["buzz"] < 0.5


@pytest.mark.parametrize("name", ["a", "i", "u"])
def test_a_vowel_has_its_pitch_and_is_loudest_at_the_first_formant(sounds, name):
    vowel, audio = artefacts.VOWELS[name], sounds[name].astype(np.float64)
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
    hz = np.fft.rfftfreq(len(audio), 1 / RATE)
    lowest = hz[(power * (hz < 1.5 * vowel.pitch)).argmax()]
    assert lowest == pytest.approx(vowel.pitch, abs=1)
    assert abs(hz[power.argmax()] - vowel.formants[0]) < vowel.pitch


@pytest.mark.parametrize("level", [-60.0, -40.0])
def test_hiss(sounds, level):
    measured = artefacts.measure("silence", hiss(sounds["silence"], level), CONFIG)
    assert measured["level"] == pytest.approx(level, abs=0.2)
    noisy = artefacts.measure("a", sounds["a"] + hiss(sounds["a"], level), CONFIG)
    # White noise lies beside the harmonics but for 30 Hz around each.
    vowel = artefacts.VOWELS["a"]
    between = 10 * np.log10(1 - 30 / vowel.pitch)
    assert noisy["noise"] == pytest.approx(level + between - artefacts.SPEECH_DB, abs=0.3)


@pytest.mark.parametrize("depth", [1.0, 6.0])
def test_buzz(sounds, depth):
    """Noise whose first and second half of each frame differ by so many dB."""
    audio = hiss(sounds["silence"], -40.0)
    louder = np.arange(len(audio)) // (HOP // 2) % 2
    measured = artefacts.measure("silence", audio * 10 ** (depth / 20 * louder), CONFIG)
    assert measured["buzz"] == pytest.approx(depth, abs=1.0)


def test_clicks(sounds):
    audio = hiss(sounds["silence"], -60.0)
    quiet = artefacts.measure("silence", audio, CONFIG)["click"]
    audio[len(audio) // 2] += 0.1
    assert artefacts.measure("silence", audio, CONFIG)["click"] > 5 * quiet


def test_summary(sounds):
    measured = artefacts.measure_all(sounds, CONFIG)
    assert artefacts.summary(measured) == {
        "silence": -120,
        "vowel_noise": pytest.approx(np.mean([measured[name]["noise"] for name in "aiu"])),
        "buzz": max(of["buzz"] for of in measured.values()),
        "click": max(of["click"] for of in measured.values()),
    }


@pytest.mark.parametrize("hop", [275, 300])
def test_any_hop(hop):
    config = MelConfig(hop_length=hop)
    audio = hiss(np.zeros(round(artefacts.SECONDS * RATE)), -40.0)
    louder = np.arange(len(audio)) // (hop // 2) % 2
    assert artefacts.measure("silence", audio, config)["buzz"] < 1
    assert artefacts.measure("silence", audio * (1 + louder), config)["buzz"] > (3 if hop % 2 == 0 else 0)
