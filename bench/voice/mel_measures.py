"""How smooth mels are, and how far they are from those of recordings of the same sentences.

Predicted mels are smoother than recorded ones, which is heard as muffled consonants. The timing of synthesis and
recording differs, so the measures are of distributions, except for the distance along the best alignment in time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fastglow.audio import MelConfig
from fastglow.audio.mel import filter_corners

UPPER_HZ = 4000.0
"""From here on speech is the noise of fricatives and bursts."""
ACTIVE_DB = 40.0
"""Frames that are this far below the loudest are pauses."""
LOUDEST = 0.1
"""The part of the frames that are loudest above UPPER_HZ: in English, about a tenth of speech is sibilants."""
N_CEPSTRA = 13
LEAST_FRAMES = 10

_DB = 20 / np.log(10)  # of a natural logarithm of magnitudes


@dataclass(frozen=True)
class Texture:
    """Of a set of mels, or one over another: see `texture`.

    Attributes:
        variance, upper_variance: of the log-mel over time, within utterances, mean over all bands and those above
            UPPER_HZ: the global variance of Toda & Tokuda ("A speech parameter generation algorithm considering
            global variance", 2007).
        laplacian, upper_laplacian: variance of the log-mel's Laplacian over time and bands, by which Ren et al.
            ("Revisiting over-smoothness in text to speech", 2022) measure how sharp a mel is.
        sibilance: level above UPPER_HZ of the tenth of the frames that have most of it, in dB over the level of speech.
    """

    variance: float
    upper_variance: float
    laplacian: float
    upper_laplacian: float
    sibilance: float

    def over(self, other: "Texture") -> dict[str, float]:
        """Ratios, NaN over 0; of sibilance, the difference in dB."""
        own, others = asdict(self), asdict(other)
        ratios = {name: value / others[name] if others[name] else float("nan") for name, value in own.items()}
        return ratios | {"sibilance": self.sibilance - other.sibilance}


def texture(mels: Sequence[np.ndarray], config: MelConfig) -> Texture | None:
    """Means over utterances, of the frames that are no pauses; None if all are shorter than LEAST_FRAMES.

    Args:
        mels: log-mels [n_mel_channels, frames].
    """
    upper = filter_corners(config)[1:-1] >= UPPER_HZ
    found = [_texture(mel.astype(np.float64), upper) for mel in mels if mel.shape[1] >= LEAST_FRAMES]
    return Texture(*np.mean(found, axis=0).tolist()) if found else None


def active_frames(mel: np.ndarray) -> np.ndarray:
    """Which frames of a log-mel [C, frames], one or more, are no pauses: bool [frames]."""
    return _active(np.exp(2 * mel.astype(np.float64)).sum(axis=0))


def cepstral_distortion(mel: np.ndarray, other: np.ndarray) -> float:
    """Mel cepstral distortion in dB (Kubichek, 1993) of log-mels [C, frames] along their best alignment in time.

    Cepstra 1 to 13 of the log-mels, so that the level does not count.
    """
    wanted, found = cepstra(mel), cepstra(other)
    costs = np.sqrt(2 * ((wanted[:, :, None] - found[:, None, :]) ** 2).sum(axis=0)) * (_DB / 2)
    path = warping_path(costs)
    return float(np.mean([costs[i, j] for i, j in path]))


def cepstra(mel: np.ndarray) -> np.ndarray:
    """Coefficients [N_CEPSTRA, frames] of the cosines that add up to a log-mel [C, frames], without the constant."""
    channels = len(mel)
    order, band = np.arange(1, N_CEPSTRA + 1)[:, None], np.arange(channels)
    return 2 / channels * np.cos(np.pi * order * (band + 0.5) / channels) @ mel.astype(np.float64)


def warping_path(costs: np.ndarray) -> list[tuple[int, int]]:
    """The pairs of frames along which the sum of costs [n, m] is lowest, from the first pair to the last.

    Dynamic time warping (Sakoe & Chiba, 1978): each step advances one or both by one frame.
    """
    n, m = costs.shape
    sums = np.full((n + 1, m + 1), np.inf)
    sums[0, 0] = 0.0
    for diagonal in range(n + m - 1):  # of pairs whose indices add up to it, which do not depend on each other
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(sums[i, j], sums[i, j + 1]), sums[i + 1, j])
        sums[i + 1, j + 1] = costs[i, j] + before
    path = [(n - 1, m - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        # The diagonal first: a shorter path of the same cost.
        path.append(min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda pair: sums[pair[0] + 1, pair[1] + 1]))
    return path[::-1]


def _texture(mel: np.ndarray, upper: np.ndarray) -> list[float]:
    """The fields of one utterance's `Texture`; `upper` [C] marks the upper bands."""
    power = np.exp(2 * mel)
    level = power.sum(axis=0)
    active = _active(level)
    variances = mel[:, active].var(axis=1)
    sharpness = _laplacian(mel)[:, active[1:-1]]
    if not upper[1:-1].any():  # mel_fmax is not above UPPER_HZ
        return [variances.mean(), np.nan, sharpness.var(), np.nan, np.nan]
    hiss = np.sort(power[upper].sum(axis=0)[active])[-max(1, round(LOUDEST * active.sum())) :]
    return [
        variances.mean(),
        variances[upper].mean(),
        sharpness.var(),
        sharpness[upper[1:-1]].var(),
        _DB / 2 * (np.log(hiss).mean() - np.log(level[active].mean())),
    ]


def _active(level: np.ndarray) -> np.ndarray:
    """Of powers."""
    return level > level.max() * np.exp(-2 * ACTIVE_DB / _DB)


def _laplacian(mel: np.ndarray) -> np.ndarray:
    """Second differences over bands and frames, added up: [C - 2, frames - 2]."""
    centre = mel[1:-1, 1:-1]
    return mel[:-2, 1:-1] + mel[2:, 1:-1] + mel[1:-1, :-2] + mel[1:-1, 2:] - 4 * centre
