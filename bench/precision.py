"""The precisions of training, by `fastglow train`'s names, and PyTorch's switches for them."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from fastglow.train.precision import tf32

from .environment import device, has_gpu

IEEE = "float32 (IEEE)"
"""Key of the ceiling of float32 products without TF32, on a GPU."""


@dataclass(frozen=True)
class Precision:
    """
    Attributes:
        name: 'off' (float32 in IEEE arithmetic), 'tf32', 'bf16' or 'fp16'.
        dtype: of the matrix products' inputs.
        allows_tf32: for float32 products; None: PyTorch's default.
        loss_error: tolerance of a loss, relative to the larger of it and 1.
        gradient_error: relative tolerance of a gradient's norm.
    """

    name: str
    dtype: torch.dtype
    allows_tf32: bool | None
    loss_error: float
    gradient_error: float

    def autocast(self) -> torch.autocast:
        """For forward and loss."""
        return torch.autocast(device().type, self.dtype, enabled=self.dtype != torch.float32)

    def products(self) -> AbstractContextManager:
        """For all of a step: float32 products in this precision."""
        return nullcontext() if self.allows_tf32 is None else tf32(self.allows_tf32)

    @property
    def ceiling(self) -> str:
        """Of the matrix products: key of `Ceilings.flops_per_second`."""
        if self.dtype != torch.float32:
            return str(self.dtype).removeprefix("torch.")
        return IEEE if self.allows_tf32 is False and has_gpu() else "float32"


# PyTorch's own operations have less than a quarter of these errors.
OFF = Precision("off", torch.float32, False, 1e-4, 1e-3)
TF32 = Precision("tf32", torch.float32, True, 5e-3, 2e-2)
FP16 = Precision("fp16", torch.float16, None, 5e-3, 2e-2)
BF16 = Precision("bf16", torch.bfloat16, None, 2e-2, 1e-1)
