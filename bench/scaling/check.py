"""The prediction held against a run in several processes: `torchrun --nproc-per-node 2 -m bench.scaling check`."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastglow.train.ranks import Ranks

from .. import waveglow_model
from ..training import Batch, Trainee
from ..workload import FASTGLOW, Implementation
from . import gradients, links
from .timeline import StepTime, buckets, several

ROUNDS = 5


def waveglow(channels: int, batch: int, samples: int) -> tuple[nn.Module, Batch, Callable[[nn.Module], Trainee]]:
    """A model, a batch, and what trains the model, wrapped or not."""
    model = waveglow_model.new_model(channels)
    trainee = waveglow_model.trainee(Implementation(FASTGLOW), model)

    def of(network: nn.Module) -> Trainee:
        return Trainee(network, trainee.parameters, trainee.criterion)

    return model, waveglow_model.new_batch(model, batch, samples), of


def check(ranks: Ranks, device: torch.device, channels: int, batch: int, samples: int) -> str | None:
    """A backward pass with and without the exchange of gradients, in turn, beside the predicted one; one line, None in
    all processes but the first.

    Without the exchange the processes compute at the same time too, so that they share the machine alike.

    Raises:
        FastglowError: there is one process only.
    """
    link = links.measure(ranks, device)
    model, data, trainee = waveglow(channels, batch, samples)
    profile = gradients.measure(list(model.parameters()), lambda: trainee(model).loss(data), passes=1)
    parallel = ranks.parallel(model, accumulate=2)  # whose first pass may go without an exchange
    assert isinstance(parallel, DistributedDataParallel)
    taken: dict[bool, list[StepTime]] = {False: [], True: []}
    for _ in range(1 + ROUNDS):
        for exchanges in (False, True):
            with nullcontext() if exchanges else parallel.no_sync():
                taken[exchanges].append(_passes(ranks, lambda: trainee(parallel).loss(data), device))
    if link is None:
        return None
    alone, together = (
        StepTime(
            statistics.median(step.forward for step in steps[1:]),
            statistics.median(step.backward for step in steps[1:]),
            0.0,
        )
        for steps in taken.values()
    )
    predicted = several(alone, profile, link, ranks.world_size)
    size = sum(bucket.size for bucket in buckets(profile))
    return (
        f"{link.name}: {link.bus_bytes_per_second / 1e9:.3g} GB/s, {1e6 * link.latency:.0f} us; "
        f"{size / 1e6:.0f} MB of gradients; forward and backward pass {alone.seconds:.3f} s alone, "
        f"{together.seconds:.3f} s with the exchange, predicted {predicted.seconds:.3f} s "
        f"({predicted.seconds / together.seconds:.2f} of it)"
    )


def _passes(ranks: Ranks, loss: Callable[[], torch.Tensor], device: torch.device) -> StepTime:
    ranks.sum(torch.zeros(1, device=device))
    stamps = [_now(device)]
    value = loss()
    stamps.append(_now(device))
    value.backward()
    stamps.append(_now(device))
    return StepTime(stamps[1] - stamps[0], stamps[2] - stamps[1], 0.0)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
