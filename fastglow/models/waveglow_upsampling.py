"""WaveGlow's upsampling of the mel, with the samples grouped as its flows read them."""

from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow.kernels import backend
from fastglow.modules.parameter_cache import ParameterCache, Refreshable, parameters_of


def group(x: Tensor, n_group: int) -> Tensor:
    """[B, C, N] -> [B, C * n_group, N // n_group], with the samples of a group adjacent.

    Channels-last where the WaveNet layers' kernels run, or their form for training on a CPU, which read it so.
    """
    channels_last = backend.picks_triton("wavenet_layer", x) or backend.trains_on_cpu(x)
    x = x.unfold(2, n_group, n_group)  # [B, C, N // n_group, n_group]
    if channels_last:
        return x.transpose(1, 2).flatten(2).transpose(1, 2)
    return x.transpose(2, 3).flatten(1, 2)


class Upsample(Refreshable, nn.ConvTranspose1d):
    """The reference's transposed convolution, and a matrix product in its place."""

    def __init__(self, n_mel_channels: int, kernel_size: int, stride: int):
        super().__init__(n_mel_channels, n_mel_channels, kernel_size, stride=stride)
        self._folded: ParameterCache[tuple[Tensor, Tensor | None]] = ParameterCache()

    def grouped(self, mel: Tensor, n_group: int) -> Tensor:
        """`group` of the first T * stride samples of `forward`.

        Each frame of the output depends on the last few of the mel: one product of matrices, whose rows come out in
        groups. cuDNN may compute a transposed convolution by atomic additions, in any order. On CPUs it takes half as
        long again or twice as long, and its backward pass an array of eight times the weight's size.

        Args:
            mel: [B, n_mel_channels, T].
            n_group: divides the stride.

        Returns:
            [B, n_mel_channels * n_group, T * stride / n_group].
        """
        dtype = backend.autocast_dtype(mel)
        if torch.is_grad_enabled():
            weight, bias = self._fold(n_group, dtype)
        else:
            fold = partial(self._fold, n_group, dtype)
            weight, bias = self._folded.get(parameters_of(self), fold, n_group, dtype)
        n_taps = weight.shape[1] // self.in_channels
        frames = F.pad(mel, (n_taps - 1, 0)).unfold(2, n_taps, 1).transpose(1, 2).flatten(2)  # [B, T, channels * taps]
        x = F.linear(backend.fitting(frames, weight), weight, bias).view(len(mel), -1, self.out_channels * n_group)
        x = x.transpose(1, 2)
        channels_last = backend.picks_triton("wavenet_layer", x) or backend.picks_cpu(x)
        return x if channels_last else x.contiguous()

    def _fold(self, n_group: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        """([groups * channels * n_group, channels * taps], a bias for each row), the last tap first."""
        (stride,), channels = self.stride, self.out_channels
        n_taps = ceil(self.kernel_size[0] / stride)
        weight = F.pad(self.weight, (0, n_taps * stride - self.kernel_size[0]))
        weight = weight.view(self.in_channels, channels, n_taps, stride // n_group, n_group).flip(2)
        weight = weight.permute(3, 1, 4, 0, 2).reshape(stride * channels, -1)
        weight = weight.to(dtype or weight.dtype)
        if self.bias is None:
            return weight, None
        return weight, self.bias.repeat_interleave(n_group).repeat(stride // n_group).to(weight.dtype)
