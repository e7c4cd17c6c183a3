"""WaveGlow's memory_saving where something changes between the forward and the backward pass."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fastglow import WaveGlow, WaveGlowLoss
from fastglow.errors import FastglowError

from ..kernels.checks import assert_same_bits
from .test_memory_saving import assert_close, inputs_of, results_of, twins, upstream_of


@pytest.mark.parametrize("how", ["functional_call", "new parameters"])
def test_the_backward_pass_takes_the_weights_of_the_forward_pass(how):
    """Though the model holds others by then."""
    model, saving = twins()
    inputs = inputs_of(model)
    given = {name: (1.1 * x.detach() + 0.01).requires_grad_() for name, x in model.named_parameters()}
    found = []
    for one in (model, saving):
        if how == "functional_call":
            z, log_s_list, log_det_list = torch.func.functional_call(one, given, (inputs,))
            results, wanted = [z, *log_s_list, *log_det_list], [*inputs, *given.values()]
        else:
            results, wanted = results_of(one, inputs), [*inputs, *one.parameters()]
            for convinv in one.convinv:
                convinv.conv.weight = nn.Parameter(1.3 * convinv.conv.weight.detach())
        found.append(torch.autograd.grad(results, wanted, upstream_of(results)))
    assert_close(found[1], found[0], 1e-11)


def test_parts_replaced_before_the_backward_pass_are_an_error():
    """Their parameters are not those of the forward pass, which would get no gradient."""
    _, saving = twins()
    loss = WaveGlowLoss()(saving(inputs_of(saving)))
    WaveGlow.remove_weightnorm(saving)
    with pytest.raises(FastglowError, match="parts of flow 0 were replaced after the forward pass"):
        loss.backward()


def test_a_backward_pass_inside_autocast():
    """It computes what it does outside."""
    _, saving = twins(torch.float32)
    inputs, parameters = inputs_of(saving), list(saving.parameters())
    found = []
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            results = results_of(saving, inputs)
        upstream = [d.to(x.dtype) for x, d in zip(results, upstream_of(results), strict=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(results, parameters, upstream))
    flows = [i for i, (name, _) in enumerate(saving.named_parameters()) if not name.startswith("upsample")]
    assert_same_bits(*([gradients[i] for i in flows] for gradients in found))


def test_threads_may_share_a_model():
    """Flows compute with other tensors in the places of the parameters, which every thread must find there again."""
    model, saving = twins()
    inputs = [x.detach() for x in inputs_of(model)]
    parameters = list(saving.parameters())
    expected = torch.autograd.grad(results := results_of(model, inputs), list(model.parameters()), upstream_of(results))
    upstream = upstream_of(results)

    def train():
        for _ in range(10):
            found = torch.autograd.grad(results_of(saving, inputs), parameters, upstream)
            assert_close(found, expected, 1e-11)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            for future in [pool.submit(train) for _ in range(3)]:
                future.result()
    finally:
        sys.setswitchinterval(interval)
    assert all(x is y for x, y in zip(saving.parameters(), parameters, strict=True))
