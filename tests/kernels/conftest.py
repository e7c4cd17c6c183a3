"""Fixtures of the operations' tests: inputs, and a Triton backend that must launch kernels."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastglow.kernels import backend

from .checks import DEVICE, launch_counter, strided


@pytest.fixture(params=["contiguous", "strided"])
def leaf(request):
    """`leaf(2, 3)`: random float64 values that require gradients, contiguous or as `checks.strided` lays them."""

    def make(*shape: int) -> Tensor:
        x = torch.randn(*shape, dtype=torch.float64)
        return (strided(x) if request.param == "strided" else x).requires_grad_()

    return make


@pytest.fixture
def device() -> str:
    """Where the kernels run: the GPU if there is one, else the interpreter on the CPU."""
    return DEVICE


@pytest.fixture
def allow_tf32() -> Iterator[Callable[[], None]]:
    """`allow_tf32()`: products of float32 may take TF32 until the end of the test. monkeypatch cannot undo it."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def poison(monkeypatch) -> None:
    """Memory that a kernel does not write is NaN."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "new_empty", _poisoned(Tensor.new_empty))


@pytest.fixture
def triton_backend(request, poison) -> Iterator[None]:
    """Forces the Triton backend on poisoned memory, and fails if the test launched no kernel."""
    launches = launch_counter()
    with backend.use_backend("triton"):
        yield
    assert launches() > 0, "no kernel was launched"


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_poisoned(*args, **kwargs) -> Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    return allocate_poisoned
