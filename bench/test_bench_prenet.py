"""prenet: two layers with dropout; memory-bound in training, latency-bound for one step.

Results are verified with given seeds. Timed calls draw their noise as in normal use: fastglow from given seeds in a
step and from one seed of PyTorch's generator in training, the others from PyTorch's generator.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastglow import kernels
from fastglow.kernels.reference import prenet as references

from .environment import device
from .workload import BACKWARD, EAGER, FORWARD, Cost, Implementation, Operation, cases, on_this_machine

P_DROPOUT = 0.5


@dataclass(frozen=True)
class Prenet(Operation):
    """`timed`: the operation that is timed; the verified one draws its noise from seeds."""

    timed: Operation = field(kw_only=True)

    def call(self, implementation: Implementation, direction: str) -> Callable[[], list[Tensor]]:
        timed = replace(self.timed, function=self.timed.reference) if implementation.name == EAGER else self.timed
        return timed.call(implementation, direction)


def workload(case, batch, steps, sizes, dtype, trains=True) -> Operation:
    """`sizes`: widths of the input and of each layer's output."""

    def inputs():
        tensors = {"x": torch.randn(batch, steps, sizes[0], device=device()).to(dtype)}
        for i, (n_in, n_out) in enumerate(pairwise(sizes)):
            weight = torch.randn(n_out, n_in, device=device()) * (2 / n_in) ** 0.5
            tensors[f"weight{i}"] = weight.to(dtype).requires_grad_(trains)
        return tensors

    def function(prenet, seeds=None):
        return lambda x, *weights: prenet(x, weights, P_DROPOUT, seeds=seeds if seeds is None else seeds[: len(x)])

    seeds = torch.arange(max(2, batch), device=device())
    rows, products = batch * steps, sum(n_in * n_out for n_in, n_out in pairwise(sizes))
    # x needs no gradient, so the backward pass has two products per layer except the first.
    costs = {FORWARD: Cost((rows * sum(sizes) + products) * dtype.itemsize, 2 * rows * products)}
    if trains:
        moved = rows * (sum(sizes) + sum(sizes[1:]) + sizes[-1]) + 2 * products
        flops = 2 * rows * (2 * products - sizes[0] * sizes[1])
        costs[BACKWARD] = Cost(moved * dtype.itemsize, flops)
    head = "prenet", case, dtype, inputs
    timed = function(kernels.prenet, None if trains else seeds), function(references.prenet)
    verified = function(kernels.prenet, seeds), function(references.prenet, seeds)
    return Prenet(*head, *verified, costs, ("x",), timed=Operation(*head, *timed, costs))


WORKLOADS = on_this_machine(
    gpu=[
        workload("step-1", 1, 1, (80, 256, 256), torch.float16, trains=False),
        workload("step-64", 64, 1, (80, 256, 256), torch.float16, trains=False),
        workload("train-64x800", 64, 800, (80, 256, 256), torch.float16),
        workload("train-64x800", 64, 800, (80, 256, 256), torch.bfloat16),
    ],
    cpu=[workload("small", 2, 10, (8, 16, 16), torch.float32)],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_prenet(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
