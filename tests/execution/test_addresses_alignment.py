"""Tensors at addresses that are not multiples of 16: hints stay true, results are the same.

Not to the bit: PyTorch's own products outside the kernels depend on alignment.
"""

import sys
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from triton.runtime import interpreter

from fastglow.kernels import backend
from fastglow.modules import WN, LSTMCell

from .address_calls import CALLS, Call, results
from .arithmetic import HintError, checked_integers
from .programs import run_programs


@pytest.fixture(autouse=True)
def watched():
    with backend.use_backend("triton"), run_programs(), checked_integers():
        yield


def shifted(x: Tensor) -> Tensor:
    """The same values and strides, one element behind a multiple of 64 bytes."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    buffer = torch.empty(span + 64, dtype=x.dtype)
    first = -buffer.data_ptr() % 64 // x.itemsize + 1
    y = buffer[first:].as_strided(x.shape, x.stride(), first)
    assert y.data_ptr() % 64 == x.itemsize or not x.numel()
    return y.copy_(x.detach())


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_all_tensors_at_odd_addresses(call):
    tensors = call.tensors(torch.float32)
    assert_same(results(call, tensors, lambda name, x: shifted(x)), results(call, tensors))


# Where Triton does not see the addresses at a launch: tables of pointers.
BY_TABLES = [c for c in CALLS if c.name in ("teacher_forced_loop", "weight_norm_packed", "invertible_conv1x1_factors")]


@pytest.mark.parametrize("call", BY_TABLES, ids=str)
def test_each_tensor_of_a_pointer_table_at_an_odd_address(call):
    tensors = call.tensors(torch.float32)
    if "inputs" in tensors:
        tensors["inputs"] = tensors["inputs"][:1]  # one frame, to save time
    expected = results(call, tensors)
    for moved in call.names():
        found = results(call, tensors, lambda name, x, moved=moved: shifted(x) if name == moved else x)
        assert_same(found, expected)


replay = sys.modules["fastglow.kernels.teacher_forced_loop.replay"]


def one(name: str) -> Call:
    return next(call for call in CALLS if call.name == name)


@pytest.mark.parametrize("address_of", ["first", "none"])
def test_a_planted_hint_is_found(monkeypatch, address_of):
    """A loop that looks at the first address only, or at none."""
    addresses = replay._addresses

    def some(tensors):
        return addresses(tensors)[:1] if address_of == "first" else ()

    call = one("teacher_forced_loop")
    tensors = call.tensors(torch.float32)
    real = replay.prepare

    def prepare(*arguments, **constants):
        with monkeypatch.context() as patch:
            patch.setattr(replay, "_addresses", some)
            return real(*arguments, **constants)

    for module in ("forward", "gradients"):
        monkeypatch.setattr(sys.modules[f"fastglow.kernels.teacher_forced_loop.{module}"], "prepare", prepare)
    with pytest.raises((HintError, interpreter.InterpreterError), match="not a multiple of 16"):
        results(call, tensors, lambda name, x: shifted(x) if name == "memory" else x)


def test_a_launch_with_another_alignment_has_another_graph():
    """Launches are keys of the cache of CUDA graphs."""
    keys = []

    def record(frame, *rest):
        keys.append(tuple(x.launch for x in frame))

    call = one("teacher_forced_loop")
    tensors = call.tensors(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fastglow.kernels.teacher_forced_loop.forward"], "run", record)
        for arrange in (lambda name, x: x, lambda name, x: shifted(x) if name == "memory" else x):
            with torch.no_grad():
                call.run(**{name: arrange(name, x) for name, x in tensors.items()})
    aligned, odd = keys
    assert aligned != odd
    different = [a.kernel.__name__ for a, b in zip(aligned, odd, strict=True) if a != b]
    assert different == ["teacher_forced_context_fwd_kernel"]


def in_a_flat_buffer(module: nn.Module) -> None:
    """Makes the parameters views of one buffer, each at an odd element, as DDP, FSDP and foreach optimizers may."""
    parameters = list(module.parameters())
    buffer = torch.empty(sum(p.numel() + p.numel() % 2 + 2 for p in parameters) + 1)
    start = 1
    for parameter in parameters:
        view = buffer[start : start + parameter.numel()].view(parameter.shape)
        parameter.data = view.copy_(parameter.data)
        start += parameter.numel() + parameter.numel() % 2 + 2


MODULES = {
    "WN": (lambda: WN(2, 5, 2, 4, 3), lambda wn: wn(torch.ones(2, 2, 6), torch.ones(2, 5, 6))),
    "LSTMCell": (lambda: LSTMCell(5, 7), lambda cell: cell(torch.ones(2, 5))[0]),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("trains", [True, False])
def test_modules_whose_parameters_are_views_of_one_buffer(name, trains):
    make, run = MODULES[name]
    found = []
    for flat in (False, True):
        torch.manual_seed(0)
        module = make()
        if flat:
            in_a_flat_buffer(module)
            assert all(p.data_ptr() % 8 == 4 or p.data_ptr() % 16 for p in module.parameters())
        with nullcontext() if trains else torch.no_grad():
            y = run(module)
        gradients = (
            torch.autograd.grad(y.square().sum(), list(module.parameters()), allow_unused=True) if trains else ()
        )
        found.append([y.detach(), *(g for g in gradients if g is not None)])
    torch.testing.assert_close(*found)
