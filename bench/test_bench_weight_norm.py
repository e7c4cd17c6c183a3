"""weight_norm_packed: all weights of one WN in one launch; memory-bound, v read and w written."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastglow import kernels
from fastglow.kernels.reference import weight_norm as references

from .environment import device
from .workload import BACKWARD, FORWARD, Cost, Operation, cases, on_this_machine

FLOPS = 3  # per element: its square is summed, and it is scaled


def workload(case, channels, conditioning, layers, dtype, target=None) -> Operation:
    """The weights of `layers` WaveNet layers, from float32 to `dtype`.

    The weights of a layer's dilated and conditioning convolutions form one matrix.
    """
    gate = [(2 * channels, channels, 3), (2 * channels, conditioning, 1)]
    groups = []
    for i in range(layers):
        groups += [gate, [((1 if i == layers - 1 else 2) * channels, channels, 1)]]

    def inputs():
        tensors = {}
        for i, shape in enumerate(shape for group in groups for shape in group):
            tensors[f"v{i}"] = torch.randn(shape, device=device(), requires_grad=True)
            tensors[f"g{i}"] = torch.rand(shape[0], 1, 1, device=device(), requires_grad=True)
        return tensors

    def packed(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        def of(*tensors: Tensor) -> list[Tensor]:
            pairs = zip(tensors[::2], tensors[1::2], strict=True)
            return function([[next(pairs) for _ in group] for group in groups], dtype)

        return of

    elements = sum(out * inner * taps for group in groups for out, inner, taps in group)
    wide, narrow = torch.float32.itemsize, dtype.itemsize
    return Operation(
        "weight_norm",
        case,
        dtype,
        inputs,
        packed(kernels.weight_norm_packed),
        packed(references.weight_norm_packed),
        {
            FORWARD: Cost(elements * (wide + narrow), FLOPS * elements),
            BACKWARD: Cost(elements * (2 * wide + narrow), 2 * FLOPS * elements),
        },
        bandwidth_target=target,
    )


WORKLOADS = on_this_machine(
    gpu=[
        workload("wn-512", 512, 640, 8, torch.float16, target=85),
        workload("wn-512", 512, 640, 8, torch.float32, target=85),
        workload("wn-256", 256, 640, 8, torch.float16, target=85),
    ],
    cpu=[workload("small", 16, 40, 2, torch.float32)],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_weight_norm(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
