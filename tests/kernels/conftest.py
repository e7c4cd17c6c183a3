"""What the operations' tests share: inputs, forcing and proving the Triton path, comparison with fp64."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastglow.kernels import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["contiguous", "strided"])
def leaf(request):
    """`leaf(2, 3)`: random float64 numbers that require gradients.

    Strided ones have their dimensions in reverse order in memory, and gaps between the numbers.
    """

    def make(*shape: int) -> Tensor:
        if request.param == "contiguous":
            x = torch.randn(*shape, dtype=torch.float64)
        else:
            x = torch.randn(*reversed(shape), 2, dtype=torch.float64)[..., 0]
            x = x.permute(*reversed(range(x.dim())))
        return x.requires_grad_()

    return make


@pytest.fixture
def device() -> str:
    """Where the kernels run: the GPU if there is one, else the interpreter on the CPU."""
    return DEVICE


@pytest.fixture
def poison(monkeypatch) -> None:
    """Whatever a kernel leaves unwritten is NaN."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty",):
        monkeypatch.setattr(Tensor, name, _poisoned(getattr(Tensor, name)))


@pytest.fixture
def triton_backend(request, poison) -> Iterator[None]:
    """Forces the Triton backend on poisoned memory, and fails if the test launched no kernel."""
    before = backend.launches.total()
    with backend.use_backend("triton"):
        yield
    assert backend.launches.total() > before, "no kernel was launched"


def recorded(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of `step`, which has run once before, and the tensors that its replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    return graph, outputs


def assert_as_exact_as(actual: Tensor, references: Tensor, exact: Tensor, factor: float, cap: float) -> None:
    """The largest error of `actual` is at most `factor` times the largest of PyTorch's own operations, and capped.

    The bound does not depend on how PyTorch's sums come out on this processor: see `rounding.py`.

    Args:
        actual: the kernel's result.
        references: of PyTorch's own operations in the same dtype, as `rounding.drawn` gives them: [runs, *shape].
        exact: of the reference in float64.
        factor: 2 for outputs, 3 for gradients.
        cap: in units of the largest absolute value of `exact`, or of what cancels in it where that is more.
    """
    assert actual.shape == exact.shape == references.shape[1:]
    assert actual.dtype == references.dtype
    assert bool(actual.isfinite().all()), "not finite: unwritten or overflown"
    if not exact.numel():
        return
    error = _largest(actual.to(exact) - exact)
    expected = max(_largest(reference.to(exact) - exact) for reference in references)
    assert error <= factor * expected, f"error {error:.3g}, PyTorch's {expected:.3g}"
    # A few roundings of the size of the result make an error of a few units of roundoff; more is cancellation.
    cancelling = expected / (4 * torch.finfo(actual.dtype).eps / 2)
    scale = max(_largest(exact), cancelling)
    assert error <= cap * scale, f"error {error:.3g} of {scale:.3g}"


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_poisoned(*args, **kwargs) -> Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    return allocate_poisoned
