"""The error of a result, beside the error that PyTorch's own operations make in the same dtype."""

from typing import NamedTuple

import torch
from torch import Tensor


class Error(NamedTuple):
    """Largest absolute errors of a result.

    Attributes:
        actual: of the result.
        pytorchs: of PyTorch's operations in the same dtype.
        largest: absolute value of the exact result.
        scale: the same, or that of the terms that cancel in it if they are larger.
    """

    actual: float
    pytorchs: float
    largest: float
    scale: float

    @classmethod
    def of(cls, actual: Tensor, references: Tensor, exact: Tensor) -> "Error":
        """
        Args:
            actual: the result, finite.
            references: of PyTorch's own operations in its dtype, as `rounding.perturbed` gives them: [runs, *shape].
            exact: of the reference in float64.
        """
        if not exact.numel():
            return cls(0.0, 0.0, 0.0, 0.0)
        pytorchs = max(_largest(reference.to(exact) - exact) for reference in references)
        # Without cancellation the error is a few units of roundoff of the result; a larger one comes from larger terms.
        cancelling = pytorchs / (4 * torch.finfo(actual.dtype).eps / 2)
        largest = _largest(exact)
        return cls(_largest(actual.to(exact) - exact), pytorchs, largest, max(largest, cancelling))

    @property
    def ratio(self) -> float:
        """The error as a multiple of PyTorch's; 0 where both are exact."""
        if self.pytorchs:
            return self.actual / self.pytorchs
        return float("inf") if self.actual else 0.0


def _largest(x: Tensor) -> float:
    return x.abs().max().item()
