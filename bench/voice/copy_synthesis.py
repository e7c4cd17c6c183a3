"""Copy synthesis: what a vocoder makes of a mel that has a recording's timing: the recording's own, or one that the
acoustic model predicts from it by teacher forcing."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastglow.audio import MelSpectrogram
from fastglow.engine import Synthesizer
from fastglow.engine.vocoders import GriffinLimVocoder, Vocoder

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


def copying(synthesizer: Synthesizer) -> Vocoder:
    """Its vocoder, for mels of recordings: they need no sharpening."""
    vocoder = synthesizer.vocoder
    return GriffinLimVocoder(synthesizer.audio, power=1.0) if isinstance(vocoder, GriffinLimVocoder) else vocoder


def mel_of(audio: np.ndarray, spectrogram: MelSpectrogram) -> np.ndarray:
    """Log-mel [n_mel_channels, frames] of audio [N]; a vocoder may leave [-1, 1], which the mel must not."""
    samples = torch.from_numpy(audio).clamp(-1, 1)
    least = spectrogram.config.filter_length // 2 + 1
    if len(samples) < least:
        samples = torch.nn.functional.pad(samples, (0, least - len(samples)))
    return spectrogram(samples[None])[0].numpy()


@torch.no_grad()
def teacher_forced(synthesizer: Synthesizer, text: str, mel: np.ndarray, seed: int) -> np.ndarray:
    """The acoustic model's log-mel of a text, each frame after the frames of a recording's `mel` before it.

    Args:
        mel: [n_mel_channels, frames].
        seed: of the prenet's dropout.
    """
    model, device = synthesizer.tacotron2, synthesizer.device
    symbols = torch.tensor([synthesizer.frontend.encode(text).symbols], device=device)
    frames = mel.shape[1]
    padding = -frames % model.config.n_frames_per_step
    shown = torch.nn.functional.pad(torch.from_numpy(mel), (0, padding)).to(device, synthesizer.dtype)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        lengths = (torch.tensor([symbols.shape[1]]), torch.tensor([frames], device=device))
        _, predicted, *_ = model((symbols, lengths[0], shown[None], symbols.shape[1], lengths[1]))
    return predicted[0, :, :frames].float().cpu().numpy()


def vocode(mel: np.ndarray, vocoder: Vocoder, device: torch.device, seed: int) -> np.ndarray:
    """Audio float32 [frames * hop_length] of a log-mel [n_mel_channels, frames]."""
    (audio,) = vocoder.vocode(torch.from_numpy(mel)[None].to(device), [mel.shape[1]], [seed])
    return audio


def copy(
    recording: np.ndarray,
    mel: np.ndarray,
    spectrogram: MelSpectrogram,
    vocoder: Vocoder,
    device: torch.device,
    seed: int,
) -> Copy:
    """The copy of a recording float32 [N] that a vocoder makes of `mel`, the recording's or a prediction of it."""
    rate = spectrogram.config.sampling_rate
    wanted = mel_of(recording, spectrogram)
    started = time.perf_counter()
    made = vocode(mel, vocoder, device, seed)
    seconds = time.perf_counter() - started
    # Frames are centred on multiples of the hop, so the last one reaches past the recording's end.
    audio = made[: len(recording)]
    copied = mel_of(audio, spectrogram)
    scores: dict[str, float | None] = {
        **spectral_distance(recording, audio)._asdict(),
        "log_mel": float(np.abs(copied - wanted).mean()),
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
