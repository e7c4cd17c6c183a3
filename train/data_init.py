"""Initial weights of WaveGlow that fit the data, as Glow's (Kingma & Dhariwal 2018, section 3.1).

Neither changes the model: only where its training begins.
"""

import torch
from torch import Tensor

from fastglow.models import WaveGlow
from fastglow.modules import InvertibleConv1x1
from fastglow.modules.module_lists import modules_of_type

from .manifest import PreparedDataset
from .packing import mel_spectrogram

N_ITEMS = 100
"""That statistics are computed from; more hardly change them."""

_LEAST_DEVIATION = 1e-3  # of a mel channel without sound


@torch.no_grad()
def fit_to_data(model: WaveGlow, dataset: PreparedDataset) -> None:
    """Has the upsampling interpolate mels whose channels are scaled to mean 0 and variance 1, and the first 1x1
    convolution scale the audio to variance 1.

    By default the upsampling mixes channels at random, of log-mels whose means are far from 0, and noise of variance 1
    begins as audio of variance 1: training must first find what two statistics say.
    """
    recordings = [torch.from_numpy(dataset.samples(item).copy()) for item in dataset.items["train"][:N_ITEMS]]
    spectrogram = mel_spectrogram(dataset.audio)  # data sets may lack mels, which WaveGlow's training does not read
    mels = torch.cat([spectrogram(samples[None].float() / 2**15)[0] for samples in recordings], dim=1).double()
    mean, deviation = mels.mean(dim=1), mels.std(dim=1).clamp(min=_LEAST_DEVIATION)
    power = torch.cat(recordings).double().div(2**15).square().mean()
    upsample = model.upsample
    assert upsample.bias is not None
    kernel = interpolation(upsample.kernel_size[0], upsample.stride[0])
    upsample.weight.zero_()
    upsample.weight[range(len(mean)), range(len(mean))] = (kernel / deviation[:, None]).to(upsample.weight)
    upsample.bias.copy_(-mean / deviation)
    first, *_ = modules_of_type(InvertibleConv1x1, model.convinv)
    first.conv.weight.div_(power.sqrt().clamp(min=2.0**-15))


def interpolation(kernel_size: int, stride: int) -> Tensor:
    """The transposed convolution's kernel, float64 [kernel_size], that fades from each frame to the next within a
    stride; the samples over any position add up to 1. Without room to fade, each frame holds for its stride."""
    position = torch.arange(kernel_size, dtype=torch.float64) + 0.5
    kernel = torch.minimum(position, 2 * stride - position).clamp(min=0) / stride
    total = torch.stack([kernel[phase::stride].sum() for phase in range(stride)])
    return kernel / total.repeat(-(-kernel_size // stride))[:kernel_size]
