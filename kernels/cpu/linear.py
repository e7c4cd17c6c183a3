"""Linear layers of a recurrent network on a CPU: their weights are packed once, for products of a few rows each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .processor import packs


@dataclass(frozen=True)
class Linear:
    """
    Attributes:
        product: x [M, K] -> [M, N], both of `dtype`.
        dtype: float32 or bfloat16.
        n_bytes: of the weights, which every product reads.
    """

    product: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    n_bytes: int


PACKED_FOR_ROWS = 8
"""oneDNN then takes blocks that are as fast for one row, and in float32 1.5 times as fast for eight."""

INT8_LARGEST = 127

INT8_COLUMNS = 16
"""PyTorch's product reads so many columns at a time, aligned and past the end."""


def packed_linear(weight: Tensor, bias: Tensor) -> Linear:
    """F.linear on oneDNN's blocked weights, which a matrix-vector product reads twice as fast as plain ones.

    Args:
        weight: [N, K], float32 or bfloat16.
        bias: [N], rounded to the weight's dtype.
    """
    weight, bias = weight.contiguous(), bias.to(weight.dtype)
    if not packs(weight.dtype):
        return Linear(lambda x: F.linear(x, weight, bias), weight.dtype, weight.nbytes)
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
    product = torch.ops.mkldnn._linear_pointwise.default
    return Linear(lambda x: product(x, blocks, bias, "none", [], ""), weight.dtype, weight.nbytes)


def int8_linear(weight: Tensor, bias: Tensor) -> Linear:
    """F.linear in bfloat16 on weights of 8 bits, with a scale for each row.

    Args:
        weight: [N, K]; rounded to multiples of its row's scale: a 127th of the largest magnitude, in bfloat16.
        bias: [N], rounded to bfloat16.
    """
    smallest = torch.finfo(torch.float32).tiny  # for a row of zeros
    scales = (weight.float().abs().amax(1) / INT8_LARGEST).clamp(min=smallest).to(torch.bfloat16)
    levels = (weight.float() / scales.float().unsqueeze(1)).round().to(torch.int8)
    bias, padding = bias.to(torch.bfloat16), -weight.shape[1] % INT8_COLUMNS
    levels = F.pad(levels, (0, padding))

    def product(x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(F.pad(x, (0, padding)) if padding else x, levels, scales).add_(bias)

    return Linear(product, torch.bfloat16, levels.nbytes)
