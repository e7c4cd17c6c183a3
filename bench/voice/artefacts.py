"""Sounds in which a vocoder's faults stand alone: silence, where hiss and clicks are all that is heard, and vowels held
at one pitch, where hiss lies between the harmonics and a buzz of the vocoder's blocks beside them.

The vowels are computed, so that what a copy adds to them is the vocoder's.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastglow.audio import MelConfig

SECONDS = 1.5
SPEECH_DB = -23.0
"""RMS of the vowels, in dBFS: that of speech."""
SILENCE = "silence"


class Vowel(NamedTuple):
    """Means of women's vowels by Peterson & Barney ("Control methods used in a study of the vowels", 1952), in Hz."""

    pitch: float
    formants: tuple[float, float, float]


VOWELS = {
    "a": Vowel(212, (850, 1220, 2810)),
    "i": Vowel(235, (310, 2790, 3310)),
    "u": Vowel(231, (370, 950, 2670)),
}
BANDWIDTHS = (80.0, 100.0, 140.0)  # Hz, of the formants

# Higher formants, in Hz: those of a uniform tube as long as a woman's vocal tract, with wider bands.
HIGHER, SPACING, HIGHER_BANDWIDTH = 3955.0, 1130.0, 0.06

_FADE = 0.05  # seconds
_FLOOR = 1e-12  # of powers whose logarithm is taken
_NEAR_HZ = 15.0  # a harmonic's share of the spectrum, to either side


def sounds(config: MelConfig) -> dict[str, np.ndarray]:
    """The sounds by name, float32 [SECONDS * rate]."""
    n = round(SECONDS * config.sampling_rate)
    vowels = {name: _vowel(vowel, n, config.sampling_rate) for name, vowel in VOWELS.items()}
    return {SILENCE: np.zeros(n, np.float32), **vowels}


def _vowel(vowel: Vowel, n: int, rate: int) -> np.ndarray:
    """Harmonics that fall by 6 dB an octave, as a glottis and the radiation of lips make them, through resonators."""
    seconds = np.arange(n) / rate
    harmonics = vowel.pitch * np.arange(1, int(rate / 2 / vowel.pitch))
    higher = np.arange(HIGHER, rate / 2, SPACING)
    formants = np.append(vowel.formants, higher)[:, None]
    bandwidths = np.append(BANDWIDTHS, HIGHER_BANDWIDTH * higher)[:, None]
    resonances = np.abs(1 - (harmonics / formants) ** 2 + 1j * harmonics * bandwidths / formants**2)
    gains = vowel.pitch / harmonics / resonances.prod(axis=0)
    audio = gains @ np.sin(2 * np.pi * harmonics[:, None] * seconds)
    fade = np.minimum(1, np.minimum(seconds, seconds[-1] - seconds) / _FADE)
    return (audio * fade * 10 ** (SPEECH_DB / 20) / audio.std()).astype(np.float32)


def measure(name: str, audio: np.ndarray, config: MelConfig) -> dict[str, float | None]:
    """What is wrong with a copy [N] of one of the sounds, away from its ends.

    Returns:
        level: RMS in dBFS; in silence, the hiss.
        noise: of vowels, the power between the harmonics over that of the harmonics, in dB; None of silence.
        buzz: depth in dB to which the level swings at the rate of the mel's frames.
        click: the largest jump between two samples' differences over their RMS.
    """
    rate, hop = config.sampling_rate, config.hop_length
    margin = round(2 * _FADE * rate)
    steady = audio[margin:-margin].astype(np.float64)
    jumps = np.diff(steady, 2)
    return {
        "level": _db(float(np.mean(steady**2))),
        "noise": _noise(steady, rate, VOWELS[name].pitch) if name in VOWELS else None,
        "buzz": _buzz(steady, hop),
        "click": float(np.abs(jumps).max() / max(np.sqrt(np.mean(jumps**2)), _FLOOR)),
    }


def measure_all(sounds: Mapping[str, np.ndarray], config: MelConfig) -> dict[str, dict[str, float | None]]:
    """`measure` by name."""
    return {name: measure(name, audio, config) for name, audio in sounds.items()}


def summary(measured: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Of `measure_all`: the level of silence and the vowels' mean noise, and of all sounds the worst buzz and click."""
    values = {key: [value for of in measured.values() if (value := of[key]) is not None] for key in measured[SILENCE]}
    level = measured[SILENCE]["level"]
    assert level is not None
    return {
        "silence": level,
        "vowel_noise": float(np.mean(values["noise"])),
        "buzz": max(values["buzz"]),
        "click": max(values["click"]),
    }


def _db(power: float) -> float:
    return float(10 * np.log10(max(power, _FLOOR)))


def _noise(audio: np.ndarray, rate: int, pitch: float) -> float:
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
    hz = np.fft.rfftfreq(len(audio), 1 / rate)
    harmonic = (np.abs(hz - pitch * np.rint(hz / pitch)) <= _NEAR_HZ) & (hz > pitch / 2)
    return _db(power[~harmonic].sum() / max(power[harmonic].sum(), _FLOOR))


def _buzz(audio: np.ndarray, hop: int) -> float:
    """Of the level's mean course within a frame, highest over lowest: what is not locked to the frames averages out."""
    course = np.mean(audio[: len(audio) // hop * hop].reshape(-1, hop) ** 2, axis=0)
    smooth = np.array([part.mean() for part in np.array_split(course, 8)])
    return _db((smooth.max() + _FLOOR) / (smooth.min() + _FLOOR))
