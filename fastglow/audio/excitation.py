"""A voice's source, before the vocal tract shapes it, estimated from a log-mel: pulses and noise.

A log-mel blurs the harmonics above about 2 kHz, and one that a model predicted blurs them further and has no noise at
all. Yet its lower channels still show the pitch. With the pitch, the source-filter model of speech (Fant, 1960; the
pulse-or-noise excitation of Dudley's vocoder, 1939) gives back the fine structure that the mel lacks.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastglow.audio.config import MelConfig
from fastglow.audio.mel import filter_corners

# Candidates of the pitch: 60 to 480 Hz in thirds of a semitone.
_STEPS_PER_OCTAVE = 36
CANDIDATES = 60.0 * 2 ** (np.arange(3 * _STEPS_PER_OCTAVE + 1) / _STEPS_PER_OCTAVE)

# The comb: harmonics up to this frequency and number, each weighted less than the one below.
_COMB_HZ = 1600.0
_COMB_HARMONICS = 8
_COMB_DECAY = 0.85

# Values of the log-mel this far below its maximum are silence; their differences mean nothing.
_RANGE = 8.0

# A frame is voiced if its harmonics stand out by this much [nats], and a path through the frames pays to change:
# for each candidate that it passes, at most for a leap, and for turning voiced or unvoiced.
_VOICED = 0.4
_STEP_COST = 0.035
_LEAP_COST = 1.0
_TURN_COST = 0.5

# Share of noise in the power of a voiced frame's source: the same up to the first frequency [Hz], all from the second.
_BREATH = 0.05
_NOISY_HZ = (4000.0, 9000.0)

# Quefrencies of the spectral envelope end here [s]: before the period of a high voice's pitch.
_ENVELOPE_SECONDS = 0.0025


class _Constants(NamedTuple):
    """Matrices of one `MelConfig`, fp64."""

    comb: np.ndarray  # [candidates, C]: log-mel -> by how much each candidate's harmonics stand out
    phase: np.ndarray  # [C, bins]: log-mel -> minimum phase of the spectral envelope
    noise: np.ndarray  # [bins]: share of noise in the power of a voiced frame


@lru_cache(maxsize=8)
def _constants(config: MelConfig) -> _Constants:
    centres = filter_corners(config)[1:-1]

    def at(hz: np.ndarray) -> np.ndarray:
        """Matrix [..., C] that interpolates between the channels' centres."""
        channels = np.arange(len(centres))
        return np.maximum(0.0, 1.0 - np.abs(np.interp(hz, centres, channels)[..., None] - channels))

    # [candidates, harmonics]
    numbers = np.arange(1, _COMB_HARMONICS + 1)
    harmonics = CANDIDATES[:, None] * numbers
    weights = np.where((harmonics <= _COMB_HZ) | (numbers <= 2), _COMB_DECAY**numbers, 0.0)
    weights /= weights.sum(1, keepdims=True)
    half = CANDIDATES[:, None] / 2
    peaks = at(harmonics) - (at(harmonics - half) + at(harmonics + half)) / 2
    comb = (weights[:, :, None] * peaks).sum(1)

    bins = np.linspace(0.0, config.sampling_rate / 2, config.filter_length // 2 + 1)
    cepstrum = np.fft.irfft(at(bins).T, n=config.filter_length)
    causal = np.zeros(config.filter_length)
    causal[1 : 1 + max(1, round(_ENVELOPE_SECONDS * config.sampling_rate))] = 2.0
    phase = np.fft.rfft(cepstrum * causal).imag

    low, high = _NOISY_HZ
    noise = _BREATH + (1 - _BREATH) * np.clip((bins - low) / (high - low), 0.0, 1.0)
    return _Constants(comb, phase, noise)


def pitch(log_mel: np.ndarray, config: MelConfig) -> np.ndarray:
    """Log-mel [n_mel_channels, T] -> fundamental frequency of each frame [Hz], 0 where unvoiced, fp64 [T].

    A comb takes the difference of the log-mel at a candidate's harmonics and half-way between them, which is near 0
    for half and double the pitch. The best path through the frames (Viterbi, 1967) avoids leaps.
    """
    log_mel = np.ascontiguousarray(log_mel, dtype=np.float64)
    audible = np.maximum(log_mel, log_mel.max() - _RANGE)
    # NumPy's product would start threads of its own, which spin while torch's work.
    score = (torch.from_numpy(_constants(config).comb) @ torch.from_numpy(audible)).numpy()
    state = _best_path(score)
    n, n_frames = score.shape
    # The top of the parabola through three scores is finer than the candidates.
    inner = np.clip(state, 1, n - 2)
    left, middle, right = (score[inner + i, np.arange(n_frames)] for i in (-1, 0, 1))
    curvature = left - 2 * middle + right
    peaked = (state == inner) & (curvature < 0)
    offset = np.where(peaked, np.clip((left - right) / (2 * np.where(peaked, curvature, -1.0)), -0.5, 0.5), 0.0)
    hz = CANDIDATES[np.minimum(state, n - 1)] * 2 ** (offset / _STEPS_PER_OCTAVE)
    return np.where(state < n, hz, 0.0)


def _best_path(score: np.ndarray) -> np.ndarray:
    """Score of each candidate [n, T] -> the candidate of each frame, n where unvoiced, int64 [T].

    The maxima over all steps take two passes, as in a distance transform (Felzenszwalb & Huttenlocher, 2012).
    """
    n, n_frames = score.shape
    # Of the best path to each state, at first of the state alone.
    best = np.column_stack([score.T, np.full(n_frames, _VOICED)])
    ramp = _STEP_COST * np.arange(n)
    for before, now in pairwise(best):
        voiced, unvoiced = before[:n], before[n]
        top = voiced.max()
        up = np.maximum.accumulate(voiced + ramp) - ramp
        down = np.maximum.accumulate((voiced - ramp)[::-1])[::-1] + ramp
        now[:n] += np.maximum(np.maximum(up, down), max(top - _LEAP_COST, unvoiced - _TURN_COST))
        now[n] += max(unvoiced, top - _TURN_COST)
    cost = np.full((n + 1, n + 1), _TURN_COST)
    cost[:n, :n] = np.minimum(np.abs(ramp[:, None] - ramp), _LEAP_COST)
    cost[n, n] = 0.0
    state = np.empty(n_frames, dtype=np.int64)
    state[-1] = best[-1].argmax()
    for t in range(n_frames - 1, 0, -1):
        state[t - 1] = (best[t - 1] - cost[state[t]]).argmax()
    return state


def pulses(hz: np.ndarray, config: MelConfig, n_samples: int) -> np.ndarray:
    """Pitch of each frame [T], 0 where unvoiced -> a train of pulses [n_samples], fp64.

    A pulse has the energy of one period of white noise of variance 1. Between two samples it is shared. Unvoiced frames
    have pulses too, at a pitch between their neighbours', unless no frame is voiced.
    """
    voiced = np.flatnonzero(hz)
    if not len(voiced):
        return np.zeros(n_samples)
    frames = np.arange(n_samples) / config.hop_length
    hz = np.interp(frames, voiced, hz[voiced])
    periods = np.cumsum(hz) / config.sampling_rate
    whole = np.floor(periods)
    before = np.flatnonzero(whole[1:] > whole[:-1])
    share = (whole[before + 1] - periods[before]) / (periods[before + 1] - periods[before])
    level = np.sqrt(config.sampling_rate / hz[before])
    train = np.zeros(n_samples)
    train[before] = (1 - share) * level
    train[before + 1] += share * level
    return train


def mix(hz: np.ndarray, pulses: Tensor, noise: Tensor, config: MelConfig) -> Tensor:
    """Spectrum of the source from the spectra of its pulses and its noise, all complex64 [T, bins]."""
    padded = np.pad((hz > 0).astype(np.float64), 1, mode="edge")
    voicing = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    share = _constants(config).noise
    arrays = (voicing[:, None], np.sqrt(1 - share), np.sqrt(share) - 1)
    voiced, of_pulses, of_noise = (torch.from_numpy(array).to(pulses.device, torch.float32) for array in arrays)
    return voiced * of_pulses * pulses + (1 + voiced * of_noise) * noise


def tract_phase(log_mel: Tensor, config: MelConfig) -> Tensor:
    """Log-mel [T, n_mel_channels] -> minimum phase of its spectral envelope [T, bins], fp32.

    The phase is the Hilbert transform of the log-magnitude (Oppenheim & Schafer, 1975), here by way of its cepstrum,
    which is cut to keep the envelope and no harmonics: a linear map of the log-mel.
    """
    return log_mel @ torch.from_numpy(_constants(config).phase).to(log_mel)
