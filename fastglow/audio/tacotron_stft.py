"""NVIDIA's call of the log-mel spectrogram."""

from __future__ import annotations

from torch import Tensor

from fastglow.audio.mel import MelSpectrogram


class TacotronSTFT(MelSpectrogram):
    """`MelSpectrogram` with the arguments in the order of NVIDIA's TacotronSTFT, and its `mel_spectrogram`."""

    def __init__(
        self,
        filter_length: int = 1024,
        hop_length: int = 256,
        win_length: int = 1024,
        n_mel_channels: int = 80,
        sampling_rate: int = 22050,
        mel_fmin: float = 0.0,
        mel_fmax: float | None = 8000.0,
    ):
        super().__init__(sampling_rate, filter_length, hop_length, win_length, n_mel_channels, mel_fmin, mel_fmax)

    @property
    def n_mel_channels(self) -> int:
        return self.config.n_mel_channels

    @property
    def sampling_rate(self) -> int:
        """In Hz."""
        return self.config.sampling_rate

    def mel_spectrogram(self, y: Tensor) -> Tensor:
        """Audio [B, N] in [-1, 1] -> log-mel [B, n_mel_channels, N // hop_length + 1]; errors as `MelSpectrogram`."""
        return self(y)
