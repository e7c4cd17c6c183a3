"""location_attention: one step with the query projection. Bound by reading memory and processed memory."""

import pytest
import torch
from torch import Tensor

from fastglow import kernels
from fastglow.kernels.reference import location_attention as references

from .environment import device
from .workload import BACKWARD, FORWARD, Cost, Operation, cases, on_this_machine

FLOPS = 12  # per position and attention dimension, without the location product: sums, tanh, times v


def workload(case, batch, length, query, attention, columns, filters, taps, dtype, target=None) -> Operation:
    def inputs() -> dict[str, Tensor]:
        def leaf(*shape: int) -> Tensor:
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            return (scale * torch.randn(*shape, device=device())).to(dtype).requires_grad_()

        return {
            "query": leaf(batch, query),
            "memory": leaf(batch, length, columns),
            "processed_memory": leaf(batch, length, attention),
            "attention_weights_cat": torch.rand(batch, 2, length, device=device()).to(dtype).requires_grad_(),
            "query_weight": leaf(attention, query),
            "location_conv_weight": leaf(filters, 2, taps),
            "location_dense_weight": leaf(attention, filters),
            "v_weight": leaf(1, attention),
        }

    positions = batch * length
    signals = positions * (columns + attention + 3)  # memory, processed memory, two weights read, one written
    vectors = batch * (query + columns) + attention * (query + 2 * taps + 1)
    location, rest = 2 * 2 * taps * attention, FLOPS * attention
    projection = 2 * batch * attention * query
    return Operation(
        "location_attention",
        case,
        dtype,
        inputs,
        kernels.location_attention,
        references.location_attention,
        {
            FORWARD: Cost(
                dtype.itemsize * (signals + vectors), positions * (location + rest + 2 * columns) + projection
            ),
            # Everything is read again, and one gradient written for each; the hidden layer is recomputed.
            BACKWARD: Cost(
                dtype.itemsize * 2 * (signals + vectors),
                positions * (3 * location + 2 * rest + 3 * columns) + 2 * projection,
            ),
        },
        per_item=("query", "memory", "processed_memory", "attention_weights_cat"),
        bandwidth_target=target,
    )


def tacotron2(batch: int, length: int, dtype: torch.dtype) -> Operation:
    target = 85 if batch >= 128 else None
    return workload(f"tacotron2-{batch}x{length}", batch, length, 1024, 128, 512, 32, 31, dtype, target)


WORKLOADS = on_this_machine(
    gpu=[
        *(tacotron2(batch, length, torch.float16) for batch in (1, 16, 128) for length in (128, 256)),
        tacotron2(128, 128, torch.float32),
    ],
    cpu=[workload("small", 2, 20, 24, 16, 24, 4, 5, torch.float32)],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_location_attention(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
