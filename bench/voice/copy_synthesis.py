"""Copy synthesis: what a vocoder makes of the mel of a recording, without an acoustic model's errors."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastglow.audio import MelSpectrogram
from fastglow.engine import Synthesizer
from fastglow.engine.vocoders import GriffinLimVocoder, Vocoder
from fastglow.voices import Voice

from .distances import delay, perceptual_scores, spectral_distance


class Copy(NamedTuple):
    """A recording's copy.

    Attributes:
        audio: float32 [N], as long as the recording.
        mel: log-mel of the copy.
        scores: by measure; None where it is not defined.
    """

    audio: np.ndarray
    mel: np.ndarray
    scores: dict[str, float | None]


def vocoders_of(voice: Voice, names: Sequence[str], device: str | None) -> dict[str, Vocoder]:
    """The vocoders of these names; without names, all that the voice has.

    Raises:
        FastglowError: the voice lacks one of them.
    """
    names = names or ["griffin-lim", *(["waveglow"] if voice.waveglow else [])]
    vocoders = {name: Synthesizer.from_voice(voice, device, vocoder=name).vocoder for name in dict.fromkeys(names)}
    for vocoder in vocoders.values():
        if isinstance(vocoder, GriffinLimVocoder):
            vocoder.power = 1.0  # recorded mels need no sharpening
    return vocoders


def mel_of(audio: np.ndarray, spectrogram: MelSpectrogram) -> np.ndarray:
    """Log-mel [n_mel_channels, frames] of audio [N]; a vocoder may leave [-1, 1], which the mel must not."""
    samples = torch.from_numpy(audio).clamp(-1, 1)
    least = spectrogram.config.filter_length // 2 + 1
    if len(samples) < least:
        samples = torch.nn.functional.pad(samples, (0, least - len(samples)))
    return spectrogram(samples[None])[0].numpy()


def copy(recording: np.ndarray, spectrogram: MelSpectrogram, vocoder: Vocoder, device: torch.device, seed: int) -> Copy:
    """The copy of a recording float32 [N] by a vocoder."""
    rate = spectrogram.config.sampling_rate
    mel = mel_of(recording, spectrogram)
    started = time.perf_counter()
    (made,) = vocoder.vocode(torch.from_numpy(mel)[None].to(device), [mel.shape[1]], [seed])
    seconds = time.perf_counter() - started
    # Frames are centred on multiples of the hop, so the last one reaches past the recording's end.
    audio = made[: len(recording)]
    copied = mel_of(audio, spectrogram)
    distance = spectral_distance(recording, audio)
    scores: dict[str, float | None] = {
        **distance._asdict(),
        "log_mel": float(np.abs(copied - mel).mean()),
        **perceptual_scores(recording, audio, rate),
        "delay_ms": 1000 * delay(recording, audio, rate),
        "seconds_per_second": seconds * rate / len(made),
    }
    return Copy(audio, copied, scores)


def mean_scores(copies: Sequence[Copy]) -> dict[str, float | None]:
    """Means over copies, of the scores that are defined; medians of the delay and of the seconds."""
    means: dict[str, float | None] = {}
    for name in copies[0].scores:
        values = [value for one in copies if (value := one.scores[name]) is not None]
        average = np.median if name in ("delay_ms", "seconds_per_second") else np.mean
        means[name] = float(average(values)) if values else None
    return means
