"""Tensors with strides of 0, and tensors that share memory."""

import pytest
import torch

from fastglow import kernels
from fastglow.kernels import backend
from fastglow.kernels.arguments import Signal

from .address_calls import CALLS, results

SINGULAR = {"invertible_conv1x1", "invertible_conv1x1_inverse", "invertible_conv1x1_factors"}
"""A matrix with equal rows or columns has no inverse: these have strides of 0 in the signal and its gradient only."""


@pytest.fixture(autouse=True)
def kernels_only():
    with backend.use_backend("triton"):
        yield


def expanded(name: str, i: int, found: set[str]):
    """(arrangement with the tensor's dimension i expanded from its first element, the same in memory of its own).

    `found` gets the name when a tensor is expanded.
    """

    def arrange(copies: bool):
        def of(n, x):
            if n != name or not x.dim() or not x.is_floating_point():
                return x
            found.add(name)
            view = x.detach().narrow(i % x.dim(), 0, 1).expand(x.shape)
            return view.contiguous() if copies else view

        return of

    return arrange(False), arrange(True)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_each_tensor_expanded(call):
    tensors = call.tensors(torch.float32)
    found: set[str] = set()
    expected_names = {"d0"} if call.differentiable else set()
    for i, name in enumerate([*call.shapes, *(("d0", "d1") if call.differentiable else ())]):
        if call.name in SINGULAR and name.startswith("w"):
            continue
        if not call.strides and name not in ("memory", "d0"):
            continue  # copied, as those are
        if name in tensors and tensors[name].is_floating_point() and tensors[name].dim():
            expected_names.add(name)
        views, copies = expanded(name, i, found)
        actual, expected = results(call, tensors, views), results(call, tensors, copies)
        torch.testing.assert_close(actual, expected, msg=lambda text, name=name: f"{name}: {text}")
    assert found >= expected_names


@pytest.mark.parametrize("call", [call for call in CALLS if call.differentiable], ids=str)
def test_the_gradient_of_a_sum(call):
    """It is one element, expanded."""
    found = []
    for copies in (False, True):

        def arrange(name, x, copies=copies):
            if name not in ("d0", "d1"):
                return x
            ones = torch.ones((), dtype=x.dtype).expand(x.shape)
            return ones.contiguous() if copies else ones

        found.append(results(call, call.tensors(torch.float32), arrange))
    torch.testing.assert_close(*found)


ALIASES = {
    "gated_activation": (lambda x: kernels.gated_activation(x, x), (2, 6, 5)),
    "affine_coupling": (lambda x: kernels.affine_coupling(x[:, 2:], x)[0], (2, 4, 5)),
    "flow_step_inverse": (
        lambda x: kernels.flow_step_inverse(x[:, :2], x[:, :2], x, torch.eye(4), x[:, :1]).clone(), (2, 4, 5)
    ),
    "lstm_cell": (lambda x: torch.cat(kernels.lstm_cell(x[:3], x[:3], x[:3], x, x, x[:, 0], x[:, 0])), (12, 3)),
    "prenet": (lambda x: kernels.prenet(x, [x, x], 0.0), (5, 5)),
    "weight_norm_packed": (
        lambda x: torch.cat(kernels.weight_norm_packed([[(x, x[:, :1, :1]), (x, x[:, :1, :1])]])), (3, 4, 2)
    ),
    "invertible_conv1x1": (lambda x: kernels.invertible_conv1x1(x[None, :, :, 0], x)[0], (4, 4, 1)),
    "invertible_conv1x1_factors": (lambda x: torch.stack(kernels.invertible_conv1x1_factors([x, x])[0]), (4, 4, 1)),
    "wavenet_layer": (
        lambda x: kernels.wavenet_layer(x, x, torch.ones(8, 4, 3), None, torch.ones(8, 4, 1), None,
                                        torch.ones(8, 4, 1), None, 1, skip=x)[1],
        (2, 4, 5),
    ),
    "location_attention": (
        lambda x: torch.cat(kernels.location_attention(
            x[:, 0], x, x, x[:, :2], torch.ones(4, 4), torch.ones(3, 2, 5), torch.ones(4, 3), torch.ones(1, 4)
        ), 1),
        (2, 4, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIASES)
def test_one_tensor_for_several_arguments(name):
    """Against the reference in float64; the input keeps its values."""
    run, shape = ALIASES[name]
    found = []
    for dtype, implementation in ((torch.float32, "triton"), (torch.float64, "reference")):
        torch.manual_seed(0)
        x = (torch.randn(shape) / 2).to(dtype)
        before = x.clone()
        trains = name != "flow_step_inverse"
        x.requires_grad_(trains)
        with backend.use_backend(implementation), torch.set_grad_enabled(trains):
            y = in_dtype(run, x)
            gradient = torch.autograd.grad(y.square().sum(), x)[0] if trains else x
        assert torch.equal(x.detach(), before)
        found.append([y.detach().double(), gradient.double()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def in_dtype(run, x):
    before = torch.get_default_dtype()
    torch.set_default_dtype(x.dtype)
    try:
        return run(x)
    finally:
        torch.set_default_dtype(before)


def test_a_planted_stride_of_the_copy_is_found(monkeypatch):
    """A launcher that takes the strides of a contiguous tensor for an expanded one."""
    call = next(call for call in CALLS if call.name == "affine_coupling")
    monkeypatch.setattr(
        Signal,
        "of",
        classmethod(lambda cls, x: None if x is None else cls(x, *torch.empty(x.shape, device="meta").stride())),
    )
    views, copies = expanded("x", 1, set())
    tensors = call.tensors(torch.float32)
    padded = {**tensors, "x": torch.cat([tensors["x"]] * 4)[:3]}
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(results(call, padded, views), results(call, padded, copies))
