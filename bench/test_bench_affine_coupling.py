"""affine_coupling and its inverse, memory-bound (x, b and log s read, y written), and the inverse of a step of flow."""

import pytest
import torch

from fastglow import kernels
from fastglow.kernels.reference import affine_coupling as references

from .environment import device
from .workload import BACKWARD, FORWARD, Cost, Operation, cases, on_this_machine

FLOPS = 3  # per element of x: an exponential counts as one


def workload(case, B, n, T, dtype, inverse=False, target=None) -> Operation:
    def inputs():
        options = {"device": device(), "dtype": dtype}
        return {
            "x": torch.randn(B, n, T, **options).requires_grad_(not inverse),
            "b_log_s": (torch.randn(B, 2 * n, T, **options) / 4).requires_grad_(not inverse),
        }

    size = B * n * T
    name = "affine_coupling_inverse" if inverse else "affine_coupling"
    # The inverse gives no log s.
    costs = {FORWARD: Cost((4 if inverse else 5) * size * dtype.itemsize, FLOPS * size)}
    if not inverse:
        # Reads x, log s and the gradients of y and log s; writes the gradients of x, b and log s.
        costs[BACKWARD] = Cost(7 * size * dtype.itemsize, 2 * FLOPS * size)
    return Operation(
        "affine_coupling",
        case,
        dtype,
        inputs,
        getattr(kernels, name),
        getattr(references, name),
        costs,
        per_item=("x", "b_log_s"),
        bandwidth_target=target,
    )


def flow_step(case, B, n, e, T, dtype, target=None) -> Operation:
    """The inverse of 2n channels, W^-1, and e early channels that enter."""
    c = 2 * n

    def inputs():
        options = {"device": device(), "dtype": dtype}
        return {
            "kept": torch.randn(B, n, T, **options),
            "changed": torch.randn(B, n, T, **options),
            "b_log_s": torch.randn(B, c, T, **options) / 4,
            "inverse": torch.linalg.qr(torch.randn(c, c, device=device()))[0],
            "entering": torch.randn(B, e, T, **options),
        }

    # Reads kept, changed, b, log s and entering; writes the result.
    costs = {FORWARD: Cost((3 * c + 2 * e) * B * T * dtype.itemsize, (2 * c**2 + FLOPS * n) * B * T)}
    return Operation(
        "affine_coupling",
        case,
        dtype,
        inputs,
        kernels.flow_step_inverse,
        references.flow_step_inverse,
        costs,
        per_item=("kept", "changed", "b_log_s", "entering"),
        bandwidth_target=target,
    )


WORKLOADS = on_this_machine(
    gpu=[
        workload("train", 10, 4, 1000, torch.float32),
        workload("large", 64, 4, 65536, torch.float16, target=85),
        workload("inverse-large", 64, 4, 65536, torch.float16, inverse=True, target=85),
        flow_step("flow-step-large", 64, 3, 2, 65536, torch.float16, target=85),
    ],
    cpu=[
        workload("small", 2, 4, 65, torch.float32),
        workload("inverse-small", 2, 4, 65, torch.float32, inverse=True),
        flow_step("flow-step-small", 2, 3, 2, 65, torch.float32),
    ],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_affine_coupling(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
