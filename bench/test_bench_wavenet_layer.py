"""wavenet_layer: compute-bound on the tensor cores."""

import math

import pytest
import torch
from torch import Tensor

from fastglow import kernels
from fastglow.kernels.reference.wavenet_layer import wavenet_layer as reference

from .environment import device
from .workload import BACKWARD, FORWARD, Cost, Operation, cases, on_this_machine

MEL_CHANNELS, TAPS = 640, 3
DILATION = 16


def layout(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Channels-last, as fastglow's layers pass signals on and `weight_norm_packed` writes weights."""
    return {name: x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 3 else x for name, x in inputs.items()}


def workload(case, B, C, T, dtype, D=MEL_CHANNELS, trains=True) -> Operation:
    weights = {"in": (2 * C, C, TAPS), "cond": (2 * C, D, 1), "res_skip": (2 * C, C, 1)}

    def inputs():
        options = {"device": device(), "dtype": dtype}
        tensors = {"h": torch.randn(B, C, T, **options), "conditioning": torch.randn(B, D, T, **options)}
        for name, shape in weights.items():
            tensors[f"{name}_weight"] = torch.randn(shape, **options) / math.sqrt(shape[1] * shape[2])
            tensors[f"{name}_bias"] = torch.randn(shape[0], **options)
        return {name: tensor.requires_grad_(trains) for name, tensor in tensors.items()}

    def layer(function):
        return lambda *tensors: function(*tensors, dilation=DILATION)

    weight_elements = sum(math.prod(shape) for shape in weights.values())
    signals = B * T * (C + D), B * T * 2 * C  # read, written
    flops = 2 * weight_elements * B * T
    costs = {FORWARD: Cost((sum(signals) + weight_elements) * dtype.itemsize, flops)}
    if trains:
        # Signals, weights and the gradients of both.
        moved = 2 * signals[0] + signals[1] + 2 * weight_elements
        costs[BACKWARD] = Cost(moved * dtype.itemsize, 2 * flops)
    return Operation(
        "wavenet_layer",
        case,
        dtype,
        inputs,
        layer(kernels.wavenet_layer),
        layer(reference),
        costs,
        per_item=("h", "conditioning"),
        layout=layout,
    )


WORKLOADS = on_this_machine(
    gpu=[
        workload("train-512", 10, 512, 1000, torch.float16),
        workload("train-256", 10, 256, 1000, torch.float16),
        workload("train-512", 10, 512, 1000, torch.float32),
        workload("inference-512", 1, 512, 27520, torch.float16, trains=False),
        workload("inference-256", 1, 256, 27520, torch.float16, trains=False),
    ],
    cpu=[workload("small", 2, 16, 65, torch.float32, D=40)],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_wavenet_layer(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
