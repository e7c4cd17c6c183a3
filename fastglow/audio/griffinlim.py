"""Audio from a log-mel spectrogram, without a neural vocoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil, inf

import torch
import torch.nn.functional as F
from torch import Tensor

from fastglow.audio.config import MelConfig
from fastglow.audio.excitation import mix, pitch, pulses, tract_phase
from fastglow.audio.mel_inversion import MelConstraint, level_above, mel_constraint
from fastglow.audio.stft import Stft, magnitude_of, power_of
from fastglow.errors import FastglowError
from fastglow.parallel import CoreForEach, core_for_each

_TINY = 1e-10

# The source's magnitudes start at least this high: multiplicative updates keep zeros. Its mean is about 20.
_FLOOR = 1e-3

# Updates of the source's magnitudes before the first iteration; more change nothing that can be heard or measured.
_START_UPDATES = 10

# Frames that a CPU's core works on at a time: what an iteration reads and writes of them stays in its cache.
_MOST_FRAMES = 128

# Log-mels and momenta up to here leave room for the squares of the magnitudes. Speech stays below 2, useful momenta
# below 1.
_LARGEST = 30.0
_LARGEST_MOMENTUM = 1e3

# For mels that an acoustic model predicted.
PREDICTED_POWER = 1.2


@torch.no_grad()
def griffin_lim(
    log_mel: Tensor,
    config: MelConfig | None = None,
    n_iter: int = 50,
    momentum: float = 0.99,
    seed: int | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    power: float = 1.0,
) -> Tensor:
    """Log-mel [B, n_mel_channels, T] (or [n_mel_channels, T]) -> audio fp32 [B, T * hop_length] (or [N]).

    Pulses at the pitch that the mel shows, and noise, are where the linear magnitudes and the phases start: they hold
    the harmonics and the roughness that a mel blurs (`fastglow.audio.excitation`). Multiplicative updates under the
    Kullback-Leibler divergence (Lee & Seung, 2001) give the magnitudes the mel, and keep their fine structure. The
    fast Griffin-Lim algorithm (Perraudin, Balazs & Sondergaard, 2013) with `momentum` (0 is Griffin & Lim, 1984)
    then makes the phases consistent, and moves the magnitudes towards those of the spectrum that the momentum leads
    to, still with the given mel. Above mel_fmax, where a mel says nothing, the spectrum goes on from below at a
    falling level.

    T frames give T * hop_length samples, as WaveGlow does: the last frame is repeated, since an inverse STFT alone
    gives one hop less. Items are independent: with `lengths` [B], in frames, each is the same as alone, followed by
    zeros. `seed` fixes every item's noise, on any device; None draws it from torch's global generator.
    `power` > 1 sharpens each frame at equal energy, as Tacotron (Wang et al., 2017) sharpened its magnitudes: use
    `PREDICTED_POWER` for over-smooth predictions; for recorded mels 1 is best. The level follows the mel, so samples
    can slightly exceed [-1, 1]. `config=None` means the defaults of `MelConfig`.

    Raises FastglowError for a mel of another shape or with values that are not finite or too large, for lengths that
    do not match the batch, and for a hop of more than half the window.
    """
    config = config or MelConfig()
    if log_mel.dim() not in (2, 3) or log_mel.size(-2) != config.n_mel_channels or log_mel.size(-1) == 0:
        raise FastglowError(
            f"log_mel has shape {list(log_mel.shape)}, must be [B, {config.n_mel_channels}, T] or "
            f"[{config.n_mel_channels}, T] with T > 0"
        )
    if 2 * config.hop_length > config.win_length:
        raise FastglowError(
            f"hop_length={config.hop_length} must be at most half of win_length={config.win_length}: Griffin-Lim "
            "needs overlapping windows"
        )
    if n_iter < 0 or not 0 <= momentum <= _LARGEST_MOMENTUM or not 0 < power < inf:
        raise FastglowError(
            f"n_iter={n_iter} must be at least 0, momentum={momentum} from 0 to {_LARGEST_MOMENTUM:g}, and "
            f"power={power} above 0 and finite"
        )
    items = log_mel if log_mel.dim() == 3 else log_mel[None]
    frames = [items.size(2)] * len(items) if lengths is None else [int(length) for length in lengths]
    if len(frames) != len(items) or not all(0 <= length <= items.size(2) for length in frames):
        raise FastglowError(f"lengths={frames} must be {len(items)} values between 0 and {items.size(2)} frames")
    audio = torch.zeros(len(items), items.size(2) * config.hop_length, device=items.device)
    with torch.autocast(items.device.type, enabled=False), core_for_each() as for_each:
        for item, length, out in zip(items, frames, audio, strict=True):
            if length:
                out[: length * config.hop_length] = _reconstruct(
                    item[:, :length], config, n_iter, momentum, seed, power, for_each
                )
    return audio if log_mel.dim() == 3 else audio[0]


def _decompress(log_mel: Tensor, power: float) -> Tensor:
    """log-mel [T, C] -> mel magnitudes to the power `power`, at the same energy of each frame."""
    mel = log_mel.exp()
    valid = torch.isfinite(log_mel).all() & (log_mel <= _LARGEST).all()
    if power != 1:
        sharpened = mel**power
        level = sharpened.norm(dim=1, keepdim=True)
        mel = sharpened * (mel.norm(dim=1, keepdim=True) / level.clamp(min=_TINY))
        valid &= torch.isfinite(level).all()
    if not valid:
        raise FastglowError("log_mel has values that are NaN, infinite or too large: pass logarithms of magnitudes")
    return mel


def _source(log_mel: Tensor, stft: Stft, config: MelConfig, seed: int | None) -> Tensor:
    """Log-mel [T, C] -> spectrum of the speaker's source [T, bins] with the phase of the vocal tract."""
    hz = pitch(log_mel.T.cpu().numpy(), config)
    n_samples = stft.end - stft.start
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    noise = torch.randn(n_samples, generator=generator).to(log_mel.device)
    train = torch.from_numpy(pulses(hz, config, n_samples)).to(noise)
    source = mix(hz, stft.forward(stft.pad(train)), stft.forward(stft.pad(noise)), config)
    phase = tract_phase(log_mel, config)
    return source * torch.polar(torch.ones_like(phase), phase)


def _reconstruct(
    log_mel: Tensor,
    config: MelConfig,
    n_iter: int,
    momentum: float,
    seed: int | None,
    power: float,
    for_each: CoreForEach,
) -> Tensor:
    """Log-mel [C, T] -> audio [T * hop_length]."""
    log_mel = F.pad(log_mel.float()[None], (0, 1), mode="replicate")[0].T.contiguous()
    mel = _decompress(log_mel, power)
    stft = Stft(config, len(log_mel), log_mel.device)
    constraint = mel_constraint(config, log_mel.device)
    source = _source(log_mel, stft, config, seed)
    level = level_above(mel, constraint.filters, config) / stft.window.norm()
    size = _block_size(mel)
    parts = zip(range(0, len(mel), size), source.split(size), mel.split(size), level.split(size), strict=True)
    blocks = [_Block(stft, constraint, *part) for part in parts]
    signal = stft.join(for_each(_Block.start, blocks))
    for _ in range(n_iter):
        signal = stft.join(for_each(partial(_Block.iterate, signal=signal, momentum=momentum), blocks))
    return stft.unpad(signal)


def _block_size(mel: Tensor) -> int:
    """Frames of a block. It depends on the mel only, and so does the order in which samples are added up."""
    n_frames = len(mel)
    if mel.device.type != "cpu" or n_frames <= _MOST_FRAMES:
        return n_frames
    n_blocks = 2 * ceil(n_frames / (2 * _MOST_FRAMES))  # for an even number of cores
    return ceil(n_frames / n_blocks)


class _Block:
    """Successive frames of the spectrum, [frames, bins].

    Args:
        first: number of the first frame.
        source: spectrum of the speaker's source, with the phase of the vocal tract.
        mel: mel magnitudes [frames, C].
        level: of the bins above mel_fmax.
    """

    def __init__(self, stft: Stft, constraint: MelConstraint, first: int, source: Tensor, mel: Tensor, level: Tensor):
        self.stft, self.constraint, self.mel = stft, constraint, mel
        self.frames = slice(first, first + len(mel))
        self.previous = source
        self.magnitude = magnitude_of(source).add_(_FLOOR)
        self.inside, above = self.magnitude.tensor_split([constraint.n_bins], dim=1)  # views
        above *= level[:, constraint.n_bins :]

    def start(self) -> Tensor:
        """The share in the first signal, of the source with the magnitudes that the mel has."""
        for _ in range(_START_UPDATES):
            self.constraint.update(self.inside, self.mel)
        source = self.previous
        self.previous = source * (self.magnitude / magnitude_of(source).clamp_(min=_TINY))
        return self.stft.share(self.previous)

    def iterate(self, signal: Tensor, momentum: float) -> Tensor:
        """The share in the next signal."""
        current = self.stft.forward(signal, self.frames)
        # Proportional to s_i + momentum * (s_i - s_(i-1)).
        ahead = torch.sub(current, self.previous, alpha=momentum / (1 + momentum))
        self.previous = current
        power = power_of(ahead).clamp_(min=_TINY**2)
        inverse = power.rsqrt()
        # Many linear magnitudes have the same mel. These go half-way to those of `ahead`; the update sets their level.
        n_bins = self.constraint.n_bins
        self.inside.addcmul_(power[:, :n_bins], inverse[:, :n_bins], value=1 + momentum)
        self.constraint.update(self.inside, self.mel)
        return self.stft.share(ahead.mul_(inverse.mul_(self.magnitude)))
