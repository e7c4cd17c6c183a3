"""How far a vocoder's audio is from the recording whose mel it was given."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import soxr
import torch

from fastglow.train.stft_loss import stft_distance

from .extra import is_installed, missing

RATE = 16_000  # Hz, of PESQ's wide band


# Lags between which a delay is looked for, and the smoothing of the envelopes, over several periods of the voice's
# pitch, in seconds.
_MOST_DELAY, _SMOOTHING = 0.05, 0.03

# None of the scores is defined for less: STOI needs 30 frames, PESQ a quarter of a second.
_LEAST_SECONDS = 0.25


class SpectralDistance(NamedTuple):
    """As of `StftDistance`."""

    log_magnitude: float
    convergence: float


def spectral_distance(recording: np.ndarray, audio: np.ndarray) -> SpectralDistance:
    """`stft_distance` of audio [N] from a recording [N], float in [-1, 1], in float64."""
    found, wanted = (torch.from_numpy(samples).double()[None] for samples in (audio, recording))
    return SpectralDistance(*map(float, stft_distance(found, wanted)))


def perceptual_scores(recording: np.ndarray, audio: np.ndarray, rate: int) -> dict[str, float | None]:
    """Scores of the installed packages; higher is better. None where a score is not defined, as for silence.

    pesq: wide band, ITU-T P.862.2, 1.0 to 4.64. stoi: short-time objective intelligibility (Taal et al., 2011), up to
    1. estoi: its extended form (Jensen & Taal, 2016).
    """
    names = [*(["pesq"] if is_installed("pesq") else []), *(["stoi", "estoi"] if is_installed("pystoi") else [])]
    scores: dict[str, float | None] = dict.fromkeys(names)
    if not (recording.any() and audio.any()) or len(recording) < _LEAST_SECONDS * rate:
        return scores
    wanted, found = (soxr.resample(samples.astype(np.float64), rate, RATE) for samples in (recording, audio))
    if "pesq" in names:
        import pesq

        # Errors are negative scores: no speech in one of them, or too few samples.
        score = float(pesq.pesq(RATE, wanted, found, "wb", on_error=pesq.PesqError.RETURN_VALUES))
        scores["pesq"] = score if score > 0 else None
    if "stoi" in names:
        from pystoi import stoi

        for name, extended in (("stoi", False), ("estoi", True)):
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                try:
                    scores[name] = float(stoi(wanted, found, RATE, extended=extended))
                except RuntimeWarning:  # fewer than 30 frames with speech
                    scores[name] = None
    return scores


def missing_scores() -> list[str]:
    """A line for each package that is not installed."""
    packages: Mapping[str, str] = {"pesq": "PESQ scores", "pystoi": "STOI scores"}
    return [missing(package, purpose) for package, purpose in packages.items() if not is_installed(package)]


def delay(recording: np.ndarray, audio: np.ndarray, rate: int) -> float:
    """Seconds by which audio [N] comes later than a recording [N].

    The lag, of at most 50 ms, at which changes of their envelopes correlate best: phases of the two need not agree.
    """
    n = min(len(recording), len(audio))
    wanted, found = (_envelope(samples[:n], rate) for samples in (recording, audio))
    most = min(round(_MOST_DELAY * rate), len(wanted) - 1)
    size = 2 * len(wanted)
    products = np.fft.irfft(np.fft.rfft(found, size) * np.fft.rfft(wanted, size).conj(), size)
    lags = np.arange(-most, most + 1)
    return float(lags[products[lags].argmax()]) / rate


def _envelope(samples: np.ndarray, rate: int) -> np.ndarray:
    """Changes of the smoothed absolute values: without a mean, which would pull the correlation's peak towards 0."""
    window = np.hanning(round(_SMOOTHING * rate) | 1)
    return np.diff(np.convolve(np.abs(samples.astype(np.float64)), window, mode="same"))
