"""Pace, pauses and pitch of computed speech are those that it was computed with."""

import numpy as np
import pytest

from bench.voice import artefacts, prosody
from bench.voice.copy_synthesis import mel_of
from fastglow.audio import MelConfig, MelSpectrogram

CONFIG = MelConfig()
RATE = CONFIG.sampling_rate
SPECTROGRAM = MelSpectrogram.from_config(CONFIG)


def tone(pitches, rate=RATE, harmonics=12):
    """Harmonics of a pitch in Hz for each sample."""
    phase = 2 * np.pi * np.cumsum(pitches) / rate
    return 0.03 * sum(np.sin(k * phase + k * k) / k for k in range(1, harmonics + 1))


def silence(seconds):
    return np.zeros(round(seconds * RATE))


def spoken(text, *parts):
    audio = np.concatenate(parts).astype(np.float32)
    return prosody.Utterance(text, audio, mel_of(audio, SPECTROGRAM))


def held(pitch, seconds):
    return tone(np.full(round(seconds * RATE), float(pitch)))


@pytest.mark.parametrize("rate", [16000, 22050, 48000])
@pytest.mark.parametrize("pitch", [62.0, 75.0, 131.3, 212.0, 298.8, 428.3, 480.0])
def test_pitch_of_harmonics(rate, pitch):
    """As many as there can be, whose peak lies between two lags."""
    found = prosody.pitch(tone(np.full(rate, pitch), rate, harmonics=int(0.98 * rate / 2 / pitch)), rate)
    np.testing.assert_allclose(found, pitch, rtol=0.002)


@pytest.mark.parametrize("name", ["a", "i", "u"])
def test_pitch_of_vowels(name):
    found = prosody.pitch(artefacts.sounds(CONFIG)[name], RATE)
    np.testing.assert_allclose(found, artefacts.VOWELS[name].pitch, rtol=0.002)


def test_pitch_of_a_glide_follows_it():
    wanted = np.linspace(120, 240, 2 * RATE)
    found = prosody.pitch(tone(wanted), RATE)
    centres = (np.arange(len(found)) * 0.01 + 0.025) * RATE  # of the windows
    np.testing.assert_allclose(found, wanted[centres.astype(int)], rtol=0.01)


def test_silence_and_noise_have_no_pitch():
    noise = np.random.default_rng(1).standard_normal(2 * RATE)
    assert not prosody.pitch(np.zeros(RATE), RATE).any()
    assert (prosody.pitch(noise, RATE) > 0).mean() < 0.02
    assert prosody.pitch(np.zeros(10), RATE).shape == (0,)
    # A pitch whose sound is far below the rest is the room's.
    assert not prosody.pitch(np.concatenate([held(150, 0.5) * 0.01, noise]), RATE)[:40].any()


def test_pauses_within_a_sentence_and_pace():
    parts = silence(0.4), held(200, 1.0), silence(0.3), held(200, 0.5), silence(0.06), held(200, 0.5), silence(0.5)
    found = prosody.measure([spoken("one two three four", *parts)], CONFIG)
    frame = CONFIG.hop_length / RATE
    assert found["pauses"] == 1
    # Windows of 46 ms reach into the pause from both sides.
    assert found["pause_seconds"] == pytest.approx(0.3, abs=0.047 + frame)
    assert found["words_a_second"] == pytest.approx(4 / 2.06, rel=0.06)


def test_ends_of_questions_and_statements():
    rising = np.concatenate([np.full(RATE, 200.0), np.full(RATE // 4, 300.0)])
    falling = np.concatenate([np.full(RATE, 200.0), np.full(RATE // 4, 150.0)])
    pairs = [("Is it?", rising), ("“Is it?”", rising), ("It is.", falling)]
    found = prosody.measure([spoken(text, tone(pitches)) for text, pitches in pairs], CONFIG)
    assert found["question_end"] == pytest.approx(12 * np.log2(300 / 200), abs=0.1)
    assert found["statement_end"] == pytest.approx(12 * np.log2(150 / 200), abs=0.1)
    assert found["pitch"] == pytest.approx(200, rel=0.01)


def test_pitch_spread():
    """Of pitches that are spread evenly over so many semitones, with a creak that halves the pitch of a tenth."""
    semitones = 9.0
    glide = 150 * 2 ** (np.linspace(0, semitones, 3 * RATE) / 12)
    whole = prosody.measure([spoken("It is.", tone(glide))], CONFIG)["pitch_spread"]
    assert whole == pytest.approx(0.34 * semitones, rel=0.03)
    creaking = np.where(np.arange(len(glide)) < 0.9 * len(glide), glide, glide / 2)
    found = prosody.measure([spoken("It is.", tone(creaking))], CONFIG)["pitch_spread"]
    assert found == pytest.approx(whole, rel=0.1)


def test_what_is_not_there_is_nan():
    noise = np.random.default_rng(1).standard_normal(RATE).astype(np.float32)
    found = prosody.measure([spoken("Hush.", noise)], CONFIG)
    assert found["pauses"] == 0 and found["words_a_second"] == pytest.approx(1, rel=0.05)
    names = ("pause_seconds", "pitch", "pitch_spread", "statement_end", "question_end")
    assert all(np.isnan(found[name]) for name in names)
    assert all(np.isnan(value) for value in prosody.measure([], CONFIG).values())
    for seconds in (0, 0.001, 1):
        found = prosody.measure([spoken("Not a word.", silence(seconds))], CONFIG)
        assert found.pop("pauses") == 0 and all(np.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Why?", True),
        ("“Why?”", True),
        ("(Why?)", True),
        ("Why? ", True),
        ("« Pourquoi ? »", True),
        ("Why?!", True),
        ("Why? Because.", False),
        ("", False),
    ],
)
def test_questions(text, question):
    assert prosody.is_question(text) is question
