"""One layer of WaveGlow's WaveNet."""

import torch
from torch import Tensor

from .convolution import conv1d
from .gated_activation import gated_activation


def wavenet_layer(
    h: Tensor,
    conditioning: Tensor | None,
    in_weight: Tensor,
    in_bias: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    dilation: int,
    mask: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Prenger et al. 2018, section 3; WN in NVIDIA's waveglow/model.py. Arguments as `kernels.wavenet_layer`."""
    channels = h.shape[1]
    valid = None
    if lengths is not None:
        positions = torch.arange(h.shape[2], device=h.device)
        valid = (positions < lengths.view(-1, 1)).unsqueeze(1)  # [B, 1, T]
        h = h.masked_fill(~valid, 0.0)
    added = conditioning
    if conditioning is not None and cond_weight is not None:
        added = conv1d(conditioning, cond_weight, cond_bias)
    padding = int(dilation * (in_weight.shape[2] - 1) // 2)  # a tensor in torch.jit.trace, which PyTorch 2.7 refuses
    acts = gated_activation(conv1d(h, in_weight, in_bias, padding=padding, dilation=dilation), added)
    res_skip = conv1d(acts, res_skip_weight, res_skip_bias)
    if res_skip.shape[1] <= channels:
        next_h, new_skip = None, res_skip
    else:
        next_h, new_skip = res_skip[:, :channels] + h, res_skip[:, channels:]
        next_h = next_h if mask is None else next_h * mask
    new_skip = new_skip if skip is None else (skip + new_skip).to(skip.dtype)
    if valid is not None:
        next_h = None if next_h is None else next_h.masked_fill(~valid, 0.0)
        new_skip = new_skip.masked_fill(~valid, 0.0)
    return next_h, new_skip
