import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow import FastglowError
from fastglow.audio import read_audio
from fastglow.audio.stretch import SPEEDS, TimeStretch, check_speed

from .pieces import SIZES, speech_like, through

RATE = 22050
CLIPS = sorted((Path(__file__).parents[1] / "data" / "clips" / "wavs").glob("*.ogg"))


def sine(hz, seconds, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def rms(audio, n):
    """Of every n samples in a row."""
    sums = np.cumsum(np.concatenate(([0.0], audio.astype(np.float64) ** 2)))
    return np.sqrt(np.maximum(sums[n:] - sums[:-n], 0) / n)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.one_of(st.integers(0, 100), st.integers(0, 50000)),
    rate=st.sampled_from([8000, 22050, 24000]),
    speed=st.one_of(st.sampled_from([*SPEEDS, 2.0]), st.floats(*SPEEDS)),
    sizes=SIZES,
)
def test_any_pieces_give_the_same_bits_and_the_exact_length(seed, n, rate, speed, sizes):
    audio = speech_like(n, seed)
    whole = through(TimeStretch(rate, speed), audio)
    assert whole.shape == (round(n / speed),)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(through(TimeStretch(rate, speed), audio, sizes), whole)


@pytest.mark.parametrize("speed", [0.5, 0.7, 1.3, 2, 4.0])
@pytest.mark.parametrize("hz", [110, 220, 1234])
def test_a_tone_keeps_its_pitch_and_level(hz, speed):
    stretched = through(TimeStretch(RATE, speed), sine(hz, 4))
    inner = stretched[1500:-1500]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner)), 1 << 19))
    assert spectrum.argmax() * RATE / (1 << 19) == pytest.approx(hz, abs=0.3)
    levels = rms(inner, 441) / (0.5 / np.sqrt(2))
    assert np.abs(20 * np.log10(levels)).max() < 1


@pytest.mark.parametrize("speed", [0.7, 1.3, 2.0])
def test_noise_keeps_its_power_where_blocks_join(speed):
    """Two waves that have nothing in common lose half of their power midway through a plain crossfade: 3 dB."""
    noise = np.random.default_rng(0).normal(0, 0.1, 30 * RATE).astype(np.float32)
    stretched = through(TimeStretch(RATE, speed), noise).astype(np.float64)
    block = round(0.4 * RATE)
    n_blocks = len(stretched) // block
    # Of the same place in all blocks: the joins are at the beginning.
    power = np.mean(stretched[block : n_blocks * block].reshape(-1, block) ** 2, axis=0)
    at_joins = np.concatenate((power[-110:], power[:110])).mean()
    assert 10 * np.log10(at_joins / power[1000:-1000].mean()) == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize("speed", [0.7, 1.3, 2.0])
def test_sounds_at_both_ends_survive(speed):
    """Bursts of 30 ms at the very ends; spread over a window, they fill 1 / speed of their time."""
    burst = sine(1000, 0.03) * np.hanning(round(0.03 * RATE)).astype(np.float32)
    audio = np.concatenate((burst, np.zeros(40000, np.float32), burst))
    stretched = through(TimeStretch(RATE, speed), audio).astype(np.float64)
    near = round((0.03 / speed + 0.06) * RATE)
    energy = float(np.sum(burst.astype(np.float64) ** 2))
    for end in (stretched[:near], stretched[-near:]):
        assert np.sum(end**2) * speed > 0.75 * energy
    assert np.abs(stretched[2 * near : -2 * near]).max() < 0.01


@pytest.mark.parametrize("speed", [0.5, 0.7, 1.3, 2.0, 4.0])
def test_sounds_are_where_they_belong(speed):
    """Blocks are shifted by up to 12.5 ms; the shifts do not add up."""
    places = np.arange(20000, 24 * RATE, 25000)
    audio = np.random.default_rng(1).normal(0, 1e-4, 25 * RATE).astype(np.float32)
    burst = sine(700, 0.04) * np.hanning(round(0.04 * RATE)).astype(np.float32)
    for place in places:
        audio[place - len(burst) // 2 :][: len(burst)] += burst
    stretched = through(TimeStretch(RATE, speed), audio)
    for place in places:
        centre = round(place / speed)
        around = np.abs(stretched[centre - 2500 : centre + 2500].astype(np.float64)) ** 2
        middle = np.average(np.arange(-2500, 2500), weights=around)
        assert -0.02 * RATE < middle < 0.01 * RATE


@pytest.mark.parametrize("speed", [0.7, 1.3, 2.0])
@pytest.mark.parametrize("clip", CLIPS[:3], ids=lambda clip: clip.stem)
def test_speech_keeps_its_level(clip, speed):
    audio, rate = read_audio(clip)

    def level(samples):
        """RMS of the blocks of 20 ms within 25 dB of the loudest."""
        size = round(0.02 * rate)
        powers = np.mean(samples[: len(samples) // size * size].astype(np.float64).reshape(-1, size) ** 2, axis=1)
        return 10 * np.log10(powers[powers > powers.max() * 10**-2.5].mean())

    assert level(through(TimeStretch(rate, speed), audio)) == pytest.approx(level(audio), abs=1)


@pytest.mark.parametrize("speed", [0.5, 1.7])
def test_stretches_beside_each_other_do_not_matter(speed):
    audio = speech_like(30000, 5)
    alone = through(TimeStretch(RATE, speed), audio)
    one, other = TimeStretch(RATE, speed), TimeStretch(RATE, 0.5)
    results = []
    for start in range(0, len(audio), 7000):
        other.push(audio[::-1].copy())
        results.append(one.push(audio[start : start + 7000]))
    np.testing.assert_array_equal(np.concatenate((*results, one.flush())), alone)


def test_memory_does_not_grow():
    stretch = TimeStretch(RATE, 1.3)
    for _ in range(40):
        stretch.push(np.zeros(10000, np.float32))
        assert len(stretch._held) < 2 * RATE


@pytest.mark.parametrize("speed", [0, -1, 0.49, 4.01, float("nan"), float("inf"), "fast", None])
def test_bad_speeds_are_refused(speed):
    for refused in (check_speed, lambda value: TimeStretch(RATE, value)):
        with pytest.raises(FastglowError, match="^speed=.* must be a factor from 0.5 to 4; 1 keeps the speed$"):
            refused(speed)


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "python_stretch", None)
    with pytest.raises(FastglowError, match="^speed=1.3 needs python-stretch: run pip install python-stretch$"):
        TimeStretch(RATE, 1.3)
