"""The audio parameters that a model, its training data and its vocoder must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastglow.errors import FastglowError


@dataclass(frozen=True)
class MelConfig:
    """Parameters of a log-mel spectrogram; defaults as in the published checkpoints.

    Fields: `sampling_rate` [Hz], `filter_length` (FFT size, even) [samples], `hop_length` [samples],
    `win_length` (<= filter_length) [samples], `n_mel_channels`, `mel_fmin` [Hz], `mel_fmax` [Hz].
    `mel_fmax=None` becomes the Nyquist frequency, so that equivalent configs compare equal. Hashable.
    Raises FastglowError for values that give no filterbank.
    """

    sampling_rate: int = 22050
    filter_length: int = 1024
    hop_length: int = 256
    win_length: int = 1024
    n_mel_channels: int = 80
    mel_fmin: float = 0.0
    mel_fmax: float | None = 8000.0

    def __post_init__(self) -> None:
        for name in ("sampling_rate", "filter_length", "hop_length", "win_length", "n_mel_channels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FastglowError(f"{name}={value!r} must be a positive integer")
            if value >= 2**31:
                raise FastglowError(f"{name} has {value.bit_length()} bits, must be below 2^31")
        if self.filter_length % 2:
            raise FastglowError(f"filter_length={self.filter_length} must be even")
        if self.win_length > self.filter_length:
            raise FastglowError(
                f"win_length={self.win_length} must be at most filter_length={self.filter_length}: "
                "make the window no longer than the FFT"
            )
        nyquist = self.sampling_rate / 2
        for name, value in (("mel_fmin", self.mel_fmin), ("mel_fmax", self.fmax)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
                raise FastglowError(f"{name}={value!r} must be a frequency in Hz")
            object.__setattr__(self, name, float(value))
        if not 0 <= self.mel_fmin < self.fmax:
            raise FastglowError(f"mel_fmin={self.mel_fmin:g} must be between 0 and mel_fmax={self.fmax:g} Hz")
        if self.fmax > nyquist:
            raise FastglowError(
                f"mel_fmax={self.fmax:g} must be at most {nyquist:g} Hz, half of sampling_rate={self.sampling_rate}: "
                "lower it or pass None"
            )

    @property
    def fmax(self) -> float:
        """`mel_fmax`, which is never None once the config exists."""
        return self.sampling_rate / 2 if self.mel_fmax is None else self.mel_fmax

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MelConfig:
        """The inverse of `as_dict`; missing fields have their defaults, unknown ones are refused."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise FastglowError(f"unknown audio parameter {name!r}: use {', '.join(known)}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain ints and floats, ready for JSON."""
        return asdict(self)
