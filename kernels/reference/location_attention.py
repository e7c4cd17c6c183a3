"""Location-sensitive attention in PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolution import windows

NORMALIZATIONS = ("softmax", "sigmoid")


def location_attention(
    query: Tensor,
    memory: Tensor,
    processed_memory: Tensor,
    attention_weights_cat: Tensor,
    query_weight: Tensor,
    location_conv_weight: Tensor,
    location_dense_weight: Tensor,
    v_weight: Tensor,
    mask: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    v_bias: Tensor | None = None,
    sharpening: float = 1.0,
    normalization: str = "softmax",
) -> tuple[Tensor, Tensor]:
    """Chorowski et al. 2015; Attention in NVIDIA's tacotron2/model.py. Arguments as `kernels.location_attention`."""
    kernel_size = location_conv_weight.shape[2]
    attention_weights_cat = attention_weights_cat.to(location_conv_weight.dtype)
    # The convolution as a product with its windows: convolution routines are slow with two input channels.
    around = windows(attention_weights_cat, kernel_size)  # [B, 2, T, k]
    location = F.linear(around.transpose(1, 2).flatten(2), location_conv_weight.flatten(1))  # [B, T, F]
    location = F.linear(location, location_dense_weight)  # [B, T, A]
    return context_and_weights(
        F.linear(query, query_weight).unsqueeze(1) + location + processed_memory, memory, v_weight, mask,
        lengths=lengths, v_bias=v_bias, sharpening=sharpening, normalization=normalization,
    )  # fmt: skip


def context_and_weights(
    hidden: Tensor,
    memory: Tensor,
    v_weight: Tensor,
    mask: Tensor | None,
    *,
    lengths: Tensor | None,
    v_bias: Tensor | None,
    sharpening: float,
    normalization: str,
) -> tuple[Tensor, Tensor]:
    """(context, weights) from the sums under the tanh, `hidden` [B, T, A]."""
    energies = F.linear(torch.tanh(hidden), v_weight, v_bias).squeeze(2)  # [B, T]
    if sharpening != 1.0:
        energies = sharpening * energies
    if lengths is not None:
        beyond = torch.arange(memory.shape[1], device=lengths.device) >= lengths.unsqueeze(1)
        mask = beyond if mask is None else mask | beyond
    if normalization == "sigmoid":
        weights = torch.sigmoid(energies)
        if mask is not None:
            weights = weights.masked_fill(mask, 0.0)
        total = weights.sum(dim=1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1.0)
    elif mask is None:
        weights = F.softmax(energies, dim=1)
    else:
        # With -inf, the softmax of an item that is all padding and its gradient would be NaN.
        weights = F.softmax(energies.masked_fill(mask, torch.finfo(energies.dtype).min), dim=1)
        weights = weights.masked_fill(mask, 0.0)
    return torch.bmm(weights.unsqueeze(1), memory).squeeze(1), weights
