"""lstm_cell with the sizes of Tacotron 2's decoder: memory-bound on weight traffic up to batch 200."""

import pytest
import torch

from fastglow import kernels
from fastglow.kernels.reference.lstm_cell import lstm_cell as reference

from .environment import device
from .workload import BACKWARD, FORWARD, Cost, Operation, cases, on_this_machine

FLOPS = 20  # per unit, forward: activations and their products
BACKWARD_FLOPS = 30


def workload(case, batch, n_in, n, dtype, target=None) -> Operation:
    def inputs():
        def draw(*shape, scale=1.0):
            return (scale * torch.randn(shape, device=device())).to(dtype).requires_grad_()

        return {
            "x": draw(batch, n_in),
            "h": draw(batch, n),
            "c": draw(batch, n),
            "weight_ih": draw(4 * n, n_in, scale=n_in**-0.5),
            "weight_hh": draw(4 * n, n, scale=n**-0.5),
            "bias_ih": draw(4 * n),
            "bias_hh": draw(4 * n),
        }

    weights = 4 * n * (n_in + n)
    signals, units = batch * (n_in + 2 * n), batch * n  # elements of x, h and c; of one state
    product = 2 * batch * weights
    return Operation(
        "lstm_cell",
        case,
        dtype,
        inputs,
        kernels.lstm_cell,
        reference,
        {
            # The gates are kept for the backward pass: four values per unit.
            FORWARD: Cost((weights + 8 * n + signals + 6 * units) * dtype.itemsize, product + FLOPS * units),
            # Reads the weights, writes their gradients and the gradients of x, h and c.
            BACKWARD: Cost(
                (2 * weights + 8 * n + 2 * signals + 6 * units) * dtype.itemsize, 2 * product + BACKWARD_FLOPS * units
            ),
        },
        per_item=("x", "h", "c"),
        bandwidth_target=target,
    )


HALF, SINGLE = torch.float16, torch.float32

WORKLOADS = on_this_machine(
    gpu=[
        workload("attention-rnn-1", 1, 768, 1024, HALF, target=85),
        workload("attention-rnn-16", 16, 768, 1024, HALF, target=85),
        workload("attention-rnn-128", 128, 768, 1024, HALF),
        workload("decoder-rnn-1", 1, 1536, 1024, HALF, target=85),
        workload("decoder-rnn-16", 16, 1536, 1024, HALF, target=85),
        workload("decoder-rnn-128", 128, 1536, 1024, HALF),
        workload("decoder-rnn-1", 1, 1536, 1024, SINGLE, target=85),
        workload("decoder-rnn-128", 128, 1536, 1024, SINGLE),
    ],
    cpu=[workload("small", 3, 24, 16, SINGLE)],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_lstm_cell(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
