"""Location-sensitive attention (Chorowski et al. 2015; Attention in NVIDIA's tacotron2/model.py)."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
) -> tuple[Tensor, Tensor]:
    """One attention step.

    Args:
        query: attention LSTM's output, [B, n_query].
        memory: encoder outputs, [B, T, n_memory].
        processed_memory: memory through the memory layer, [B, T, A].
        attention_weights_cat: previous and cumulative weights, [B, 2, T].
        query_weight: [A, n_query].
        location_conv_weight: [F, 2, k] with odd k.
        location_dense_weight: [A, F].
        v_weight: [1, A].
        mask: [B, T] bool, True in padding; absent: nothing is padding.

    Returns:
        (context [B, n_memory], attention weights [B, T]).
    """
    kernel_size = location_conv_weight.shape[2]
    # The convolution as a matrix product over its windows: with two input channels convolution routines are slow.
    windows = F.pad(attention_weights_cat, [(kernel_size - 1) // 2] * 2).unfold(2, kernel_size, 1)  # [B, 2, T, k]
    location = F.linear(windows.transpose(1, 2).flatten(2), location_conv_weight.flatten(1))  # [B, T, F]
    location = F.linear(location, location_dense_weight)  # [B, T, A]
    energies = F.linear(query, query_weight).unsqueeze(1) + location + processed_memory
    energies = F.linear(torch.tanh(energies), v_weight).squeeze(2)  # [B, T]
    if mask is not None:
        energies = energies.masked_fill(mask, -float("inf"))
    weights = F.softmax(energies, dim=1)
    return torch.bmm(weights.unsqueeze(1), memory).squeeze(1), weights
