"""Inputs of the operations' tests."""

import pytest
import torch


@pytest.fixture(params=["contiguous", "strided"])
def leaf(request):
    """`leaf(2, 3)`: random float64 numbers that require gradients.

    Strided ones have their dimensions in reverse order in memory, and gaps between the numbers.
    """

    def make(*shape: int) -> torch.Tensor:
        if request.param == "contiguous":
            x = torch.randn(*shape, dtype=torch.float64)
        else:
            x = torch.randn(*reversed(shape), 2, dtype=torch.float64)[..., 0]
            x = x.permute(*reversed(range(x.dim())))
        return x.requires_grad_()

    return make
