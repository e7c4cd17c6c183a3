"""One layer of WaveGlow's WaveNet (Prenger et al. 2018, section 3; WN in NVIDIA's waveglow/model.py)."""

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """Dilated convolution plus conditioning, gate, then the residual and skip 1x1 convolutions.

    Args:
        h: hidden signal, [B, C, T].
        conditioning: [B, D, T], projected by cond_weight; without a cond_weight [B, 2C, T] or [B, 2C, 1], added
            as it is (VITS and Glow-TTS project the conditioning of all layers at once); or absent.
        in_weight: [2C, C, k] with odd k; in_bias: [2C] or absent.
        cond_weight: [2C, D, 1]; cond_bias: [2C]; or absent.
        res_skip_weight: [C + S, C, 1], residual rows first, or [S, C, 1] in a last layer, which has no residual.
            S is C, or less where a linear layer after the skip sum has been folded in; res_skip_bias: one a row.
        dilation: step between the taps.
        mask: [B, 1, T], 1 where the signal is and 0 in padding, multiplied with the next h (as VITS does). With
            it the padding of an item stays zero, as it is beyond the ends of an unpadded signal.
        lengths: [B] integers: what lies beyond an item's length is not read, and zero in the results.
        skip: [B, S, T], sum of the skips of the layers before.

    Returns:
        (h of the next layer [B, C, T], or None from a last layer; skip [B, S, T], added to the given one and of
        its dtype).
    """
    channels = h.shape[1]
    valid = None
    if lengths is not None:
        positions = torch.arange(h.shape[2], device=h.device)
        valid = (positions < lengths.view(-1, 1)).unsqueeze(1)  # [B, 1, T]
        h = h.masked_fill(~valid, 0.0)
    added = conditioning if cond_weight is None else F.conv1d(conditioning, cond_weight, cond_bias)
    padding = dilation * (in_weight.shape[2] - 1) // 2
    acts = gated_activation(F.conv1d(h, in_weight, in_bias, padding=padding, dilation=dilation), added)
    res_skip = F.conv1d(acts, res_skip_weight, res_skip_bias)
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
