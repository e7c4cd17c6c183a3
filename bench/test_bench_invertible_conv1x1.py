"""invertible_conv1x1: memory-bound, z read and W z written; also the determinants and inverses of all flows alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastglow import kernels
from fastglow.kernels.reference import invertible_conv1x1 as references

from .environment import device
from .peers import DLE
from .workload import BACKWARD, FORWARD, Cost, Operation, cases, on_this_machine

FLOW_CHANNELS = [8] * 4 + [6] * 4 + [4] * 4  # per flow of the published model


def new_weight(c: int, dtype: torch.dtype) -> Tensor:
    """Near a multiple of the identity: a positive determinant, which NVIDIA's code needs, other than 1."""
    weight = 1.5 * torch.eye(c, device=device()) + torch.randn(c, c, device=device()) / 10
    return weight.to(dtype).unsqueeze(2).requires_grad_()


def nvidia(dle: DLE) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """NVIDIA's module as a function; it gives log|det W| summed over all groups of channels."""

    def invertible_conv1x1(z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        module = modules.setdefault(len(weight), dle.model.Invertible1x1Conv(len(weight)).to(z.device, z.dtype))
        z, log_det = torch.func.functional_call(module, {"conv.weight": weight}, (z,))
        return z, log_det / (z.shape[0] * z.shape[2])

    modules: dict[int, torch.nn.Module] = {}
    return invertible_conv1x1


def workload(case, B, c, T, dtype, target=None) -> Operation:
    def inputs():
        z = torch.randn(B, c, T, device=device(), dtype=dtype, requires_grad=True)
        return {"z": z, "weight": new_weight(c, dtype)}

    size = B * c * T
    return Operation(
        "invertible_conv1x1",
        case,
        dtype,
        inputs,
        kernels.invertible_conv1x1,
        references.invertible_conv1x1,
        {
            FORWARD: Cost(2 * size * dtype.itemsize, 2 * c * size),
            BACKWARD: Cost(3 * size * dtype.itemsize, 4 * c * size),
        },
        per_item=("z",),
        peer=nvidia,
        bandwidth_target=target,
    )


def factors(case, channels) -> Operation:
    """log|det W| and W^-1 of all flows: bound by the number of launches."""
    elements = sum(c * c for c in channels)
    flops = sum(2 * c**3 for c in channels)
    size = torch.float32.itemsize
    return Operation(
        "invertible_conv1x1",
        case,
        torch.float32,
        lambda: {f"weight{i}": new_weight(c, torch.float32) for i, c in enumerate(channels)},
        lambda *weights: kernels.invertible_conv1x1_factors(weights),
        lambda *weights: references.invertible_conv1x1_factors(weights),
        {FORWARD: Cost(2 * elements * size, flops), BACKWARD: Cost(3 * elements * size, 2 * flops)},
    )


WORKLOADS = on_this_machine(
    gpu=[
        workload("train", 10, 8, 1000, torch.float32),
        workload("large", 64, 8, 65536, torch.float16, target=85),
        factors("factors", FLOW_CHANNELS),
    ],
    cpu=[workload("small", 2, 6, 65, torch.float32), factors("factors-small", [6, 4])],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_invertible_conv1x1(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
