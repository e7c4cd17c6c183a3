"""A module before and after `accelerate`."""

import copy

import torch
from torch import Tensor, nn

from fastglow import accelerate
from fastglow.kernels import backend

TOLERANCE = 2e-5  # of float32 results relative to the largest


def shown(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """The module with random values in constant parameters, such as WaveGlow's `end`, which hide what comes before."""
    with torch.no_grad():
        for parameter in module.parameters():
            if bool((parameter == parameter.flatten()[:1]).all()):
                parameter.copy_(torch.randn(parameter.shape) * scale)
    return module


def tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in tensors(part)] if isinstance(value, (list, tuple)) else []


def results(module: nn.Module, call, inputs: list[Tensor], training: bool, gradients: bool = True) -> list[Tensor]:
    """The outputs, and the gradients of inputs and parameters for random gradients of the outputs."""
    module.train(training)
    inputs = [x.clone().requires_grad_(gradients and x.is_floating_point()) for x in inputs]
    torch.manual_seed(7)
    with torch.set_grad_enabled(gradients):
        outputs = tensors(call(module, *inputs))
    if not gradients:
        return outputs
    torch.manual_seed(8)
    differentiable = [x for x in outputs if x.requires_grad]
    sources = [x for x in (*inputs, *module.parameters()) if x.requires_grad]
    upstream = [torch.randn(x.shape) for x in differentiable]
    grads = torch.autograd.grad(differentiable, sources, upstream, allow_unused=True)
    return [x.detach() for x in (*outputs, *(torch.zeros(()) if g is None else g for g in grads))]


def assert_close(expected: list[Tensor], found: list[Tensor]) -> None:
    assert [x.shape for x in expected] == [x.shape for x in found]
    assert [x.dtype for x in expected] == [x.dtype for x in found]
    for x, y in zip(expected, found, strict=True):
        torch.testing.assert_close(y, x, rtol=TOLERANCE, atol=TOLERANCE * float(x.abs().max() if x.numel() else 0))


def assert_same_results(module: nn.Module, call, inputs: list[Tensor], op: str) -> None:
    """In training and evaluation, with and without gradients, before, after, and after the swap is undone."""
    module = shown(module)
    names = list(module.state_dict())
    cases = [(training, gradients) for training in (False, True) for gradients in (False, True)]
    expected = [results(module, call, inputs, *case) for case in cases]
    report = accelerate(module, strict=True)
    assert [entry.op for entry in report.swapped] == [op]
    for name in ("auto", "reference", "reference"):  # the second time from the caches
        with backend.use_backend(name):
            for case, values in zip(cases, expected, strict=True):
                assert_close(values, results(module, call, inputs, *case))
    assert list(module.state_dict()) == names
    report.undo()
    for case, values in zip(cases, expected, strict=True):
        assert all(map(torch.equal, values, results(module, call, inputs, *case)))


def copied(module: nn.Module) -> nn.Module:
    """A copy; of a module under weight_norm, which PyTorch cannot copy after a call with gradients, too."""
    with torch.no_grad():
        for part in module.modules():
            for hook in part._forward_pre_hooks.values():
                if hasattr(hook, "compute_weight"):
                    setattr(part, hook.name, hook.compute_weight(part))
    return copy.deepcopy(module)
