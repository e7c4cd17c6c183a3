"""The published sizes of the benchmarks, as calls to be counted."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from .. import environment


class Published(NamedTuple):
    """
    Attributes:
        name: op, case and direction.
        prepare: gives the call.
        repeats: how often the counted part is in the benchmark's call.
        facts: what the benchmark compares a time with.
    """

    name: str
    prepare: Callable[[], Callable[[], object]]
    repeats: int
    facts: dict[str, Any]
    warm_up: bool = False  # the first call also prepares weights, which later calls reuse


def _facts(workload, direction: str) -> dict[str, Any]:
    cost = workload.cost(direction)
    return {
        "dtype": workload.dtype_name,
        "bytes": cost.bytes,
        "flops": cost.flops,
        "samples": workload.samples(direction),
        "frames": workload.frames(direction),
        "steps": workload.steps(direction),
        "targets": {key: value for key, value in workload.targets(direction).items() if value},
    }


def published() -> Iterator[Published]:
    """Of all benchmarks, in a process that has not imported them yet."""
    environment.assume_gpu()
    from ..test_bench_decode_loop import PERSISTENT, Decoding
    from ..workload import FASTGLOW, INFERENCE, Implementation, all_workloads

    for workload in all_workloads():
        if workload.composed:
            continue
        if isinstance(workload, Decoding):
            persistent = workload.method == PERSISTENT
            name, facts = f"{workload.op} {workload.name} frame", _facts(workload, INFERENCE)
            yield Published(name, partial(_frame, workload, persistent), workload.n_frames, facts)
            continue
        for direction in workload.directions:
            yield Published(
                f"{workload.op} {workload.name} {direction}",
                partial(workload.call, Implementation(FASTGLOW), direction),
                1,
                _facts(workload, direction),
                direction == INFERENCE,
            )


def _frame(workload, persistent: bool) -> Callable[[], object]:
    """One frame of a decode loop; with `persistent`, also the kernel of all frames, which is not counted itself."""
    from fastglow.kernels.decode_loop.decoding import Decoding
    from fastglow.kernels.decode_loop.weights import fold_decoder

    from .. import plain_tacotron2
    from .chips import MULTIPROCESSORS

    recurrent, output, memory_weight = plain_tacotron2.weights_of(workload.model.decoder)
    A = len(memory_weight)
    with torch.no_grad():
        folded = fold_decoder(recurrent, output, workload.dtype)
        decoding = Decoding(folded, workload.batch, workload.text, workload.n_frames, 0.5, 1.0)
        shape = workload.batch, workload.text
        memory = torch.empty(*shape, folded.decoder_ih.shape[1] - folded.query.shape[1], dtype=workload.dtype)
        lengths = torch.full((workload.batch,), workload.text)
        # Every item runs: what `decode_begin_kernel` writes.
        decoding.begin(memory, memory.new_empty(*shape, A), lengths, torch.arange(workload.batch))
        decoding.n_running.fill_(workload.batch)
        decoding.running_items.copy_(torch.arange(len(decoding.running_items[0]), dtype=torch.int32).expand(2, -1))

    def run() -> None:
        decoding.run_frames(1)
        if persistent:
            decoding.run_loop(MULTIPROCESSORS, launch_cooperative_grid=True)

    return torch.no_grad()(run)
