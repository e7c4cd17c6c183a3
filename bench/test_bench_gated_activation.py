"""gated_activation: memory-bound, reads two inputs and writes one output."""

import pytest
import torch

from fastglow import kernels
from fastglow.kernels.reference.gated_activation import gated_activation as reference

from .environment import device
from .workload import BACKWARD, FORWARD, Cost, Operation, cases, on_this_machine

FLOPS_FORWARD, FLOPS_BACKWARD = 12, 20  # per output element; an exponential counts as one


def workload(case, B, C, T, dtype, broadcast=False, trains=True, target=None) -> Operation:
    """C output channels; `broadcast`: b is [B, 2C, 1], as VITS conditions on a speaker."""

    def inputs():
        def new(length):
            return torch.randn(B, 2 * C, length, device=device(), dtype=dtype, requires_grad=trains)

        return {"a": new(T), "b": new(1 if broadcast else T)}

    n = B * C * T
    a, b = 2 * n, 2 * (B * C if broadcast else n)
    costs = {FORWARD: Cost((a + b + n) * dtype.itemsize, FLOPS_FORWARD * n)}
    if trains:
        # Unless b is broadcast, a and b have the same gradient, which is written once.
        costs[BACKWARD] = Cost((a + b + n + a + b * broadcast) * dtype.itemsize, FLOPS_BACKWARD * n)
    return Operation(
        "gated_activation",
        case,
        dtype,
        inputs,
        kernels.gated_activation,
        reference,
        costs,
        peer=None if broadcast else lambda dle: lambda a, b: dle.model.fused_add_tanh_sigmoid_multiply(a, b, C),
        per_item=("a", "b"),
        bandwidth_target=target,
    )


WORKLOADS = on_this_machine(
    gpu=[
        workload("train-512", 10, 512, 1000, torch.float16, target=85),
        workload("train-512", 10, 512, 1000, torch.float32, target=85),
        workload("inference-512", 1, 512, 27520, torch.float16, trains=False, target=85),
        workload("vits", 64, 192, 800, torch.float16, broadcast=True, target=85),
    ],
    cpu=[workload("small", 2, 16, 65, torch.float32), workload("small-vits", 2, 8, 33, torch.float32, broadcast=True)],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_gated_activation(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
