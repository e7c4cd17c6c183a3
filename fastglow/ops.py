"""The operations as functions of tensors, for models that are written elsewhere.

They are differentiable once. `fastglow.kernels.backend` says which implementation runs. Those of Triton are PyTorch
operators, `torch.ops.fastglow.<op>`, so that torch.compile(fullgraph=True) and torch.export go through every function;
the references are PyTorch's own operations, which a compiler fuses. An exported program runs on any device; where one
with Triton's operators is loaded, `import fastglow.ops` comes first.
"""

import torch
from torch import Tensor

from fastglow.errors import FastglowError
from fastglow.kernels import (
    affine_coupling,
    affine_coupling_inverse,
    gated_activation,
    invertible_conv1x1,
    invertible_conv1x1_inverse,
    location_attention,
    lstm_cell,
    wavenet_layer,
)

__all__ = [
    "affine_coupling",
    "affine_coupling_inverse",
    "fused_add_tanh_sigmoid_multiply",
    "gated_activation",
    "invertible_conv1x1",
    "invertible_conv1x1_inverse",
    "location_attention",
    "lstm_cell",
    "wavenet_layer",
]


def fused_add_tanh_sigmoid_multiply(input_a: Tensor, input_b: Tensor, n_channels: int | Tensor) -> Tensor:
    """tanh of the first half of the channels of input_a + input_b, times the sigmoid of the second half.

    Drop-in for the function of this name in NVIDIA's WaveGlow and in jaywalnut310's Glow-TTS and VITS.

    Args:
        input_a, input_b: [B, 2C, T], float32, float16 or bfloat16 for the kernel; B and T of either may be 1, to
            broadcast.
        n_channels: C, an integer or an integer tensor of one element, which is not read on a GPU or in compiled code:
            that would wait for the device.

    Returns:
        [B, C, T], in the dtype that the inputs promote to.

    Raises:
        FastglowError: shapes that do not fit, or n_channels is not half of the channels.

    Source: van den Oord et al. 2016, "WaveNet", section 2.3.
    """
    if input_a.numel() < input_b.numel():
        input_a, input_b = input_b, input_a
    known = not isinstance(n_channels, Tensor) or not (n_channels.is_cuda or torch.compiler.is_compiling())
    if known and input_a.dim() == 3 and 2 * int(n_channels) != input_a.shape[1]:
        raise FastglowError(f"n_channels={int(n_channels)} must be half of the {input_a.shape[1]} channels of input_a")
    if input_a.dim() == input_b.dim() == 3 and any(input_a.shape[dim] == 1 != input_b.shape[dim] for dim in (0, 2)):
        B, T = (input_b.shape[dim] if input_a.shape[dim] == 1 else input_a.shape[dim] for dim in (0, 2))
        input_a = input_a.expand(B, -1, T)
    return gated_activation(input_a, input_b)
