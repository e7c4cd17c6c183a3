"""Swapped models wrapped, compiled, traced and exported; `test_lifecycle.py` runs these tests."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fastglow import accelerate
from tests.patching.comparing import assert_close, results
from tests.patching.test_lifecycle import Model, call, is_swapped


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(2, 4, 6)


@pytest.fixture
def model(x):
    return Model()


@pytest.mark.parametrize("wrapped_before", [False, True])
def test_distributed_data_parallel(model, x, tmp_path, wrapped_before):
    expected = results(copy.deepcopy(model), call, [x], True)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model) if wrapped_before else model
        report = accelerate(wrapped, strict=True)
        assert len(report.swapped) == 5
        wrapped = wrapped if wrapped_before else DistributedDataParallel(model)
        model.zero_grad()
        torch.manual_seed(7)
        outputs = wrapped(x)
        torch.manual_seed(8)
        torch.autograd.backward(outputs, [torch.randn(y.shape) for y in outputs])
        found = [y.detach() for y in outputs] + [p.grad for p in model.parameters()]
        assert_close([*expected[:3], *expected[4:]], found)  # without that of x
    finally:
        dist.destroy_process_group()


# Tracers and the compiler warn of their own internals.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled_before", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_compiled(model, x, compiled_before, gradients):
    expected = results(copy.deepcopy(model), call, [x], True, gradients)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if compiled_before:
        compiled(x)
        accelerate(compiled, strict=True)
    else:
        accelerate(model, strict=True)
    assert is_swapped(model)
    assert_close(expected, results(compiled, call, [x], True, gradients))
    accelerate(model).undo()


@pytest.mark.filterwarnings("ignore")
def test_traced_and_exported(model, x):
    model.eval()
    with torch.no_grad():
        expected = [y.clone() for y in model(x)]
        accelerate(model, strict=True)
        assert_close(expected, list(torch.jit.trace(model, x, check_trace=False)(x)))
        exported = torch.export.export(model, (x,), strict=False)
        assert_close(expected, list(exported.module()(x)))
