"""Further terms of Tacotron 2's loss that keep predicted mels from becoming as smooth as the squared error allows.

The squared error is least at the mean of everything that could have been said; these terms ask for its contrasts.
"""

import torch
from torch import Tensor

from fastglow.modules.convolution import length_mask

# Log-mels of speech lie between the logarithms of the floor and of full scale; SSIM's constants are for that range.
_LOWEST, _RANGE = -11.5, 13.5
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
_WINDOW, _SIGMA = 11, 1.5  # of SSIM, in frames and channels, as in the paper


def l1_loss(mel: Tensor, target: Tensor, lengths: Tensor, upper_band_weight: float = 1.0) -> Tensor:
    """Mean absolute error without padding, all as in `delta_loss`.

    Args:
        upper_band_weight: weight of the highest channel, from which the others' fall linearly to 1 in the lowest.
    """
    n_channels = mel.shape[1]
    weights = torch.linspace(1.0, upper_band_weight, n_channels, device=mel.device, dtype=mel.dtype)
    error = (mel - target).abs() * weights.view(1, -1, 1)
    return _mean(error, lengths)


def delta_loss(mel: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Mean absolute error of the differences between consecutive frames, without padding.

    Args:
        mel, target: log-mels [B, n_mel_channels, T]; lengths: [B] frames.

    Returns:
        scalar; 0 if no item has two frames.
    """
    error = (mel.diff(dim=2) - target.diff(dim=2)).abs()
    return _mean(error, (lengths - 1).clamp(min=0))


def ssim_loss(mel: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """1 - structural similarity (Wang et al. 2004) of log-mels as pictures, mean over the frames without padding.

    Arguments as for `delta_loss`. In float32 at least: variances are differences of nearly equal numbers.
    """
    dtype = torch.promote_types(mel.dtype, torch.float32)
    # The padding of both is the same, whatever the decoder makes of it.
    inside = length_mask(lengths, mel.shape[2]).unsqueeze(1)
    x, y = (torch.where(inside, m.to(dtype) - _LOWEST, 0.0) for m in (mel, target))
    blur = _Blur(x)
    with torch.autocast(mel.device.type, enabled=False):
        mean_x, square_x, product = blur(x), blur(x * x), blur(x * y)
        mean_y, square_y = blur(y), blur(y * y)
    variance = (square_x - mean_x.square()) + (square_y - mean_y.square())
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variance + _C2)
    return _mean(1 - luminance * structure, lengths)


class _Blur:
    """Gaussian means over a window in time and frequency; beyond the edges, the edge goes on.

    As products with band matrices: on a CPU ten times as fast as convolutions of a single channel.

    Args:
        like: maps of the shape, dtype and device of those to blur.
    """

    def __init__(self, like: Tensor):
        offsets = torch.arange(_WINDOW, device=like.device) - _WINDOW // 2
        window = torch.exp(-offsets.square() / (2 * _SIGMA**2)).to(like.dtype)
        window = window / window.sum()

        def band(n: int) -> Tensor:
            columns = (torch.arange(n, device=like.device).unsqueeze(1) + offsets).clamp(0, n - 1)
            return window.new_zeros(n, n).scatter_add(1, columns, window.expand(n, -1))

        self.channels, self.frames = band(like.shape[1]), band(like.shape[2]).T

    def __call__(self, maps: Tensor) -> Tensor:
        """[B, C, T]."""
        return self.channels @ (maps @ self.frames)


def _mean(error: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the channels and the frames within `lengths`, of all items together."""
    inside = length_mask(lengths, error.shape[2]).unsqueeze(1)
    return torch.where(inside, error, 0.0).sum() / (lengths.sum() * error.shape[1]).clamp(min=1)
