"""Pace, pauses and pitch of speech, to compare a voice's reading with recordings of the same sentences."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastglow.audio import MelConfig
from fastglow.audio.mel import MIN_MAGNITUDE

from .mel_measures import active_frames
from .word_errors import words_of

LEAST_PAUSE = 0.12
"""Seconds. Shorter silences are closures of stops."""
LOWEST, HIGHEST = 60.0, 500.0
"""Hz, of a voice's pitch."""
FINAL = 0.2
"""Seconds of voiced speech at the end that tell a question's pitch from a statement's."""

_WINDOW, _HOP = 3 / LOWEST, 0.01  # seconds
_VOICED = 0.5  # the least autocorrelation
_OCTAVE_COST = 0.02  # an octave of lag, or multiples of the period would be as good as it
_QUIET = 0.03  # of the largest amplitude
_CLOSING = " \u00a0\u202f\"'”’)]»!"
_FLOOR = np.log(MIN_MAGNITUDE) + 0.01  # of the mel of silence


class Utterance(NamedTuple):
    """A sentence as it was spoken.

    Attributes:
        text: its words; one that ends in a question mark is a question.
        audio: [N], float.
        mel: its log-mel [C, frames].
    """

    text: str
    audio: np.ndarray
    mel: np.ndarray


def measure(utterances: Sequence[Utterance], config: MelConfig) -> dict[str, float]:
    """Medians over utterances; NaN where there is nothing to measure.

    Returns:
        words_a_second: between the first and the last sound, without pauses.
        pauses: the mean number of pauses within a sentence.
        pause_seconds: of all pauses, as the mel shows them: its windows reach into them from both sides.
        pitch: an utterance's median, in Hz. Those with less than FINAL seconds of pitch count for neither this nor
            what follows.
        pitch_spread: half the range of the pitch in semitones, from the 16th to the 84th percentile: the standard
            deviation of a normal distribution, untouched by where the voice creaks and the octave is ambiguous.
        statement_end, question_end: pitch of the last FINAL seconds that have one, in semitones over the utterance's
            median.
    """
    rates, counts, lengths, medians, spreads = [], [], [], [], []
    ends: dict[bool, list[float]] = {True: [], False: []}
    for utterance in utterances:
        spoken, pauses = _spoken(utterance.mel, config)
        counts.append(len(pauses))
        lengths += pauses
        if spoken:
            rates.append(len(words_of(utterance.text)) / spoken)
        found = pitch(utterance.audio, config.sampling_rate)
        voiced = 12 * np.log2(found[found > 0])
        final = round(FINAL / _HOP)
        if len(voiced) > final:
            median = float(np.median(voiced))
            medians.append(2 ** (median / 12))
            spreads.append(float(np.diff(np.percentile(voiced, [16, 84]))[0]) / 2)
            ends[is_question(utterance.text)].append(float(np.median(voiced[-final:])) - median)
    return {
        "words_a_second": _median(rates),
        "pauses": float(np.mean(counts)) if counts else float("nan"),
        "pause_seconds": _median(lengths),
        "pitch": _median(medians),
        "pitch_spread": _median(spreads),
        "statement_end": _median(ends[False]),
        "question_end": _median(ends[True]),
    }


def is_question(text: str) -> bool:
    return text.rstrip(_CLOSING).endswith("?")


def pitch(audio: np.ndarray, rate: int) -> np.ndarray:
    """Hz in every 10 ms of audio [N], 0 where there is none.

    The highest peak of the autocorrelation over that of the window (Boersma, "Accurate short-term analysis of the
    fundamental frequency and the harmonics-to-noise ratio of a sampled sound", 1993), without his search for a path.
    `fastglow.audio.excitation.pitch` has only the mel to find it in, and goes on, too high, where voicing fades.
    """
    size, hop = round(_WINDOW * rate), round(_HOP * rate)
    if len(audio) < size:
        return np.zeros(0)
    frames = np.lib.stride_tricks.sliding_window_view(audio.astype(np.float64), size)[::hop]
    window = np.hanning(size)
    lags = np.arange(int(rate / HIGHEST), math.ceil(rate / LOWEST) + 1)
    own = _autocorrelation(window, lags[-1] + 2)
    found = _autocorrelation((frames - frames.mean(axis=1, keepdims=True)) * window, lags[-1] + 2)
    found = found / np.maximum(found[:, :1], np.finfo(float).tiny) / (own / own[0])
    before, at, after = (found[:, lags + step] for step in (-1, 0, 1))
    peak = (at > before) & (at >= after)
    # A parabola through three values: a peak between two lags is higher than at either.
    curvature = np.where(peak, before - 2 * at + after, -1.0)
    height = np.minimum(1.0, at - (before - after) ** 2 / (8 * curvature))
    best = np.where(peak, height - _OCTAVE_COST * np.log2(lags / lags[0]), -np.inf).argmax(axis=1)
    chosen = np.arange(len(best)), best
    loud = np.abs(frames).max(axis=1) >= _QUIET * np.abs(audio).max()
    voiced = peak[chosen] & (height[chosen] > _VOICED) & loud
    shift = (before - after)[chosen] / (2 * curvature[chosen])
    return np.where(voiced, rate / (lags[best] + shift), 0.0)


def _spoken(mel: np.ndarray, config: MelConfig) -> tuple[float, list[float]]:
    """Seconds of speech, and of each pause within it."""
    if not np.any(mel > _FLOOR):
        return 0.0, []
    active = np.flatnonzero(active_frames(mel))
    frame = config.hop_length / config.sampling_rate
    gaps = (np.diff(active) - 1) * frame
    pauses = gaps[gaps >= LEAST_PAUSE].tolist()
    return (active[-1] - active[0] + 1) * frame - sum(pauses), pauses


def _autocorrelation(frames: np.ndarray, lags: int) -> np.ndarray:
    """[..., lags]"""
    size = 2 * frames.shape[-1]
    return np.fft.irfft(np.abs(np.fft.rfft(frames, size)) ** 2, size)[..., :lags]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")
