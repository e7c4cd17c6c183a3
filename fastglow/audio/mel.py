"""Log-mel spectrograms as in the training of Tacotron 2 and WaveGlow."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastglow.audio.config import MelConfig
from fastglow.errors import FastglowError

# Magnitudes below this are silence: log(1e-5) = -11.5 is the lowest value of a log-mel.
MIN_MAGNITUDE = 1e-5

# The Slaney (Auditory Toolbox) mel scale: linear below 1 kHz, 27 steps per factor of 6.4 above.
_HZ_PER_MEL = 200.0 / 3.0
_LOG_START_HZ = 1000.0
_LOG_START_MEL = _LOG_START_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: ArrayLike) -> np.ndarray:
    """Frequency in Hz (scalar or array) on the Slaney mel scale, in fp64."""
    hz = np.asarray(hz, dtype=np.float64)
    log_part = _LOG_START_MEL + np.log(np.maximum(hz, _LOG_START_HZ) / _LOG_START_HZ) / _LOG_STEP
    return np.where(hz < _LOG_START_HZ, hz / _HZ_PER_MEL, log_part)


def mel_to_hz(mel: ArrayLike) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    log_part = _LOG_START_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _LOG_START_MEL) - _LOG_START_MEL))
    return np.where(mel < _LOG_START_MEL, mel * _HZ_PER_MEL, log_part)


def filter_corners(config: MelConfig) -> np.ndarray:
    """Corners of the mel filters [n_mel_channels + 2] in Hz, fp64: filter i spans i to i + 2, its top is at i + 1."""
    low_mel, high_mel = hz_to_mel([config.mel_fmin, config.fmax])
    return mel_to_hz(np.linspace(low_mel, high_mel, config.n_mel_channels + 2))


def mel_filterbank(config: MelConfig) -> np.ndarray:
    """Triangular filters [n_mel_channels, filter_length // 2 + 1], fp64, each of unit area over Hz.

    The same values as `librosa.filters.mel(htk=False, norm="slaney")`: the filters' corners are evenly
    spaced on the Slaney mel scale. Warns about filters so narrow that they contain no FFT bin.
    """
    bins = np.linspace(0.0, config.sampling_rate / 2, config.filter_length // 2 + 1)
    corners = filter_corners(config)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (bins - low) / (centre - low)
    falling = (high - bins) / (high - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))
    empty = int((filters.max(axis=1) == 0).sum())
    if empty:
        warnings.warn(
            f"{empty} of {config.n_mel_channels} mel channels contain no FFT bin and are always silent: "
            "use fewer channels or a longer filter_length",
            stacklevel=2,
        )
    return filters


class MelSpectrogram(nn.Module):
    """Audio [B, N] in [-1, 1] -> log-mel [B, n_mel_channels, N // hop_length + 1].

    As NVIDIA's TacotronSTFT: reflection padding by filter_length // 2, periodic Hann window, magnitude
    (not power), Slaney mel filters, natural log of the magnitude clamped to at least 1e-5. Differentiable
    where the clamp is not active.

    Runs on the audio's device, in fp32 (fp64 for fp64 audio), even if the module is cast or under autocast; fp16 and
    bf16 audio gives fp32 mels. `state_dict()` is empty. Keywords and defaults as for `MelConfig`; the attribute
    `config` has them.

    Near the floor the logarithm turns a rounding error of 1e-7 of the loudest bin into 1e-3 or more, so two correct
    implementations differ by that much. In fp32 on a CPU a direct DFT therefore adds in the order of NVIDIA's code,
    which stays within 1e-4 of its published values; elsewhere an FFT gives mel magnitudes that agree to about 1e-6.

    Raises FastglowError for audio that is not [B, N] floating point, leaves [-1, 1], holds NaN,
    or has fewer than filter_length // 2 + 1 samples.
    """

    def __init__(
        self,
        sampling_rate: int = 22050,
        filter_length: int = 1024,
        hop_length: int = 256,
        win_length: int = 1024,
        n_mel_channels: int = 80,
        mel_fmin: float = 0.0,
        mel_fmax: float | None = 8000.0,
    ):
        super().__init__()
        self.config = MelConfig(
            sampling_rate, filter_length, hop_length, win_length, n_mel_channels, mel_fmin, mel_fmax
        )
        self._filters = torch.from_numpy(mel_filterbank(self.config))
        self._window = centred_hann_window(win_length, filter_length)
        # Not buffers: half() must not round them, and the audio determines device and precision.
        self._constants: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_config(cls, config: MelConfig) -> MelSpectrogram:
        return cls(**config.as_dict())

    def forward(self, audio: Tensor) -> Tensor:
        check_audio(audio, self.config.filter_length)
        peak = audio.detach().abs().max().item()
        # Written so that NaN fails too.
        if not peak <= 1.0:
            raise FastglowError(f"audio peaks at {peak:g}, must be in [-1, 1]: scale it down")
        return self.within_range(audio)

    def within_range(self, audio: Tensor) -> Tensor:
        """As `forward`, for audio that is known to be in [-1, 1]: the host does not wait for a GPU.

        Raises FastglowError as `forward`, except for what depends on the samples.
        """
        config = self.config
        check_audio(audio, config.filter_length)
        audio = audio.to(torch.promote_types(audio.dtype, torch.float32))
        filters, fourier = self._constants_for(audio)
        half = config.filter_length // 2
        padded = F.pad(audio[:, None], (half, half), mode="reflect")[:, 0]
        # [B, frames, filter_length], a view
        frames = padded.unfold(1, config.filter_length, config.hop_length)
        with torch.autocast(audio.device.type, enabled=False):
            if fourier.dim() == 2:
                spectrum = _direct_dft(frames, fourier)
            else:
                spectrum = torch.fft.rfft(frames * fourier)
            mel = torch.matmul(filters, spectrum.abs().transpose(1, 2))
        return torch.log(torch.clamp(mel, min=MIN_MAGNITUDE))

    def _constants_for(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(filters, windowed Fourier basis for fp32 on a CPU or else the window for an FFT)."""
        key = (audio.device, audio.dtype)
        if key not in self._constants:
            # Training cannot use tensors that were made in inference mode.
            with torch.inference_mode(False):
                fourier = self._window
                if audio.device.type == "cpu" and audio.dtype == torch.float32:
                    fourier = _fourier_basis(self.config.filter_length) * self._window.float()[:, None]
                self._constants[key] = (self._filters.to(audio), fourier.to(audio))
        return self._constants[key]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.as_dict().items())


def centred_hann_window(win_length: int, filter_length: int) -> Tensor:
    """A periodic Hann window, zero-padded on both sides to `filter_length` samples, fp64."""
    window = torch.hann_window(win_length, dtype=torch.float64)
    left = (filter_length - win_length) // 2
    return F.pad(window, (left, filter_length - win_length - left))


def _fourier_basis(filter_length: int) -> Tensor:
    """Fourier coefficients [filter_length, filter_length + 2]: the real parts of all bins, then the imaginary parts."""
    basis = np.fft.rfft(np.eye(filter_length))
    return torch.from_numpy(np.hstack([basis.real, basis.imag])).float()


# The BLAS behind NVIDIA's published values adds up blocks of this many products; see MelSpectrogram on why the
# order matters.
_SUM_LENGTH = 192


def _direct_dft(frames: Tensor, basis: Tensor) -> Tensor:
    """frames [B, T, filter_length] @ basis [filter_length, 2 * bins] -> complex [B, T, bins]."""
    products = [
        torch.matmul(frames[..., start : start + _SUM_LENGTH], basis[start : start + _SUM_LENGTH])
        for start in range(0, basis.size(0), _SUM_LENGTH)
    ]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return torch.complex(*total.chunk(2, dim=-1))


def check_audio(audio: Tensor, filter_length: int) -> None:
    """Raises FastglowError unless `audio` is floating point [B, N] and long enough for reflection padding."""
    if audio.dim() != 2:
        raise FastglowError(
            f"audio has shape {list(audio.shape)}, must be [B, N]: pass one clip as audio[None], average stereo first"
        )
    if not audio.is_floating_point():
        raise FastglowError(f"audio has dtype {audio.dtype}, must be floating point in [-1, 1]: scale it first")
    if audio.size(0) == 0:
        raise FastglowError("audio has shape [0, N], must have at least one clip")
    shortest = filter_length // 2 + 1
    if audio.size(1) < shortest:
        raise FastglowError(
            f"audio has {audio.size(1)} samples, must have at least {shortest} for filter_length={filter_length}"
        )
