"""Linear layers on weights of 8 bits, half as much to read for a product of few rows as in bfloat16."""

import platform
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import Linear
from .processor import has_onednn

_LARGEST = 127

# Two digits to the base 256, both from -128 to 127, stand for so many steps on either side of zero, and a few more.
_STEPS = 32639

# Makes the number of steps positive, and both digits unsigned; .5 because the conversion to integers cuts off.
_OFFSET = torch.tensor(128 * 257 + 0.5, dtype=torch.float32, device="cpu")

# PyTorch's product reads so many columns at a time, aligned and past the end.
_COLUMNS = 16


def int8_linear(weight: Tensor, bias: Tensor) -> Linear:
    """F.linear on weights of 8 bits, with a scale for each row.

    Args:
        weight: [N, K]; rounded to multiples of its row's scale, a 127th of the largest magnitude.
        bias: [N].
    """
    smallest = torch.finfo(torch.float32).tiny  # for a row of zeros
    weight, bias = weight.float(), bias.float()
    scales = (weight.abs().amax(1) / _LARGEST).clamp(min=smallest)
    return _by_digits(weight, scales, bias) if multiplies_integers() else _in_bfloat16(weight, scales, bias)


def _by_digits(weight: Tensor, scales: Tensor, bias: Tensor) -> Linear:
    """In float32: each row of x becomes two rows of 8 bits, its high and its low digits. Reading the weights takes
    longer than a second row, and sums of integers are exact, so that a row has the same bits in any batch."""
    blocks = _pack(_levels(weight, scales))
    no_offsets = torch.zeros(len(scales), dtype=torch.int64, device="cpu")

    def product(x: Tensor) -> Tensor:
        step = x.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(_STEPS)
        digits = torch.addcmul(_OFFSET, x, step.reciprocal()).to(torch.int32).view(torch.uint8).unflatten(1, (-1, 4))
        rows = torch.cat((digits[:, :, 0], digits[:, :, 1]))
        low, high = _multiply(rows, blocks, scales, no_offsets).chunk(2)
        return torch.addcmul(bias, low.add_(high, alpha=256), step)

    return Linear(product, torch.float32, torch.int8, weight.numel())


def _in_bfloat16(weight: Tensor, scales: Tensor, bias: Tensor) -> Linear:
    """In bfloat16, as is the bias."""
    scales, bias, padding = scales.bfloat16(), bias.bfloat16(), -weight.shape[1] % _COLUMNS
    levels = F.pad(_levels(weight, scales.float()), (0, padding))

    def product(x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(F.pad(x, (0, padding)) if padding else x, levels, scales).add_(bias)

    return Linear(product, torch.bfloat16, torch.int8, levels.numel())


def _levels(weight: Tensor, scales: Tensor) -> Tensor:
    return (weight / scales.unsqueeze(1)).round().to(torch.int8)


@cache
def multiplies_integers() -> bool:
    """Whether oneDNN's products of 8-bit integers are exact, as with AVX512_VNNI or AVX_VNNI.

    Older x86 processors have no fast product that is: sums of two terms end at 16 bits there. Elsewhere than on x86
    nobody has measured it.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not has_onednn():
        return False
    if not all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise")):
        return False
    n = 64
    largest = torch.full((n, n), _LARGEST, dtype=torch.int8, device="cpu")
    rows = torch.full((1, n), 255, dtype=torch.uint8, device="cpu")
    ones = torch.ones(n, dtype=torch.float32, device="cpu")
    zeros = torch.zeros(n, dtype=torch.int64, device="cpu")
    try:
        found = _multiply(rows, _pack(largest), ones, zeros)
    except RuntimeError:  # private operations, which may have changed
        return False
    return bool((found == (255 - 128) * _LARGEST * n).all())


def _pack(levels: Tensor) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(levels, [2, levels.shape[1]])


def _multiply(rows: Tensor, blocks: Tensor, scales: Tensor, no_offsets: Tensor) -> Tensor:
    """(rows - 128) [M, K] uint8 times the weights' scaled levels -> [M, N] float32."""
    return torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, 128, blocks, scales, no_offsets, None, 1.0, 0, torch.float32, "none", [], ""
    )
