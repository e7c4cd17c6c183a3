"""One layer of WaveGlow's WaveNet (Prenger et al. 2018, section 3; WN in NVIDIA's waveglow/model.py)."""

import torch.nn.functional as F
from torch import Tensor

from .gated_activation import gated_activation


def wavenet_layer(
    h: Tensor,
    conditioning: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    cond_weight: Tensor,
    cond_bias: Tensor,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor,
    dilation: int,
    mask: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Dilated convolution plus conditioning, gate, then the residual and skip 1x1 convolutions.

    Args:
        h: hidden signal, [B, C, T].
        conditioning: [B, D, T].
        in_weight: [2C, C, k] with odd k; in_bias: [2C].
        cond_weight: [2C, D, 1]; cond_bias: [2C].
        res_skip_weight: [2C, C, 1] (residual rows first), or [C, C, 1] in a last layer, which has
            no residual; res_skip_bias: [2C] or [C].
        dilation: step between the taps.
        mask: [B, 1, T], 1 where the signal is and 0 in padding. With it the padding of an item
            stays zero, as it is beyond the ends of an unpadded signal.

    Returns:
        (h of the next layer [B, C, T], or None from a last layer; skip [B, C, T]).
    """
    channels = h.shape[1]
    padding = dilation * (in_weight.shape[2] - 1) // 2
    acts = gated_activation(
        F.conv1d(h, in_weight, in_bias, padding=padding, dilation=dilation),
        F.conv1d(conditioning, cond_weight, cond_bias),
    )
    res_skip = F.conv1d(acts, res_skip_weight, res_skip_bias)
    if res_skip.shape[1] == channels:
        return None, res_skip
    h = res_skip[:, :channels] + h
    return (h if mask is None else h * mask), res_skip[:, channels:]
