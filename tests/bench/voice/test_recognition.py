"""What the recogniser is given, and what is remembered of it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bench.voice.recognition import MARGIN, PEAK, RATE, Pocketsphinx, Remembering, as_pcm
from fastglow import FastglowError
from fastglow.audio import read_audio

needs_pocketsphinx = pytest.mark.skipif(
    importlib.util.find_spec("pocketsphinx") is None, reason="needs pocketsphinx (the extra `evaluation`)"
)


def tone(hertz, rate, seconds=0.5, peak=0.1):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_samples_are_resampled_scaled_and_padded():
    pcm = as_pcm(tone(440, 22050), 22050)
    assert pcm.dtype == np.int16
    assert not pcm[:MARGIN].any() and not pcm[-MARGIN:].any()
    sound = pcm[MARGIN:-MARGIN]
    assert len(sound) == RATE // 2
    assert np.abs(sound).max() == int(PEAK * 32767)
    middle = slice(RATE // 8, 3 * RATE // 8)
    np.testing.assert_allclose(sound[middle] / 32767, tone(440, RATE, peak=PEAK)[middle], atol=2e-3)


def test_silence_stays_silence():
    assert not as_pcm(np.zeros(100), RATE).any()
    assert len(as_pcm(np.zeros(0), RATE)) == 2 * MARGIN


def test_the_same_samples_are_heard_once(listener, tmp_path):
    path = tmp_path / "transcripts.jsonl"
    remembering = Remembering(listener, path)
    one, other = np.ones(16000, np.int16), np.ones(24000, np.int16)
    assert [remembering.hear(pcm) for pcm in (one, other, one)] == ["how how", "how how how", "how how"]
    assert listener.heard == 2
    assert Remembering(listener, path).hear(other) == "how how how"
    assert listener.heard == 2
    path.write_bytes(path.read_bytes()[:-9])  # killed while it wrote
    again = Remembering(listener, path)
    assert [again.hear(pcm) for pcm in (one, other)] == ["how how", "how how how"]
    assert listener.heard == 3
    listener.name = "listener 2"
    assert Remembering(listener, path).hear(one) == "how how"
    assert listener.heard == 4


def test_a_missing_recogniser_is_named(monkeypatch):
    monkeypatch.setattr("bench.voice.extra.is_installed", lambda package: False)
    with pytest.raises(FastglowError, match=r"^word error rates need pocketsphinx: pip install .*\[evaluation\]"):
        Pocketsphinx()


@needs_pocketsphinx
def test_a_clip_does_not_depend_on_those_before_it():
    wavs = Path("tests/data/clips/wavs")
    clip, other = (
        as_pcm(*read_audio(wavs / f"arctic_{name}.ogg")) for name in ("a0158_1592713801", "a0098_1592746254")
    )
    recogniser = Pocketsphinx()
    alone = recogniser.hear(clip)
    recogniser.hear(other)
    assert recogniser.hear(clip) == recogniser.hear(clip) == alone == alone != ""
