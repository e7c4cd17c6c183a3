"""Which items the processes of a run read, in which order: every item once an epoch, over all of them together.

A step of the optimizer reads at most `batch_size * accumulate` items in each of `world_size` processes. The steps of an
epoch are as even as possible: a small rest at its end would be a noisy update. The items of a step depend on (seed,
epoch) and on their number in a full step only. So a run continues with the same steps on another number of processes if
`--accumulate` makes up for it, and with other steps over the items that are left of the epoch otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


def generator_for(*key: int) -> torch.Generator:
    """A generator that is seeded with `key`."""
    state = np.random.SeedSequence([abs(k) for k in key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


class Stretch(NamedTuple):
    """A part of an epoch between two resumptions: steps of `step_size` items at most, of which `steps` were done."""

    step_size: int
    steps: int


@dataclass(frozen=True)
class Sharing:
    """How the items of a step are shared out.

    Attributes:
        batch_size: items of a process in one pass, at most.
        rank, world_size: of the process.
        accumulate: passes of a process in one step.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    @property
    def step_size(self) -> int:
        """Items of a full step in all processes, the global batch."""
        return self.batch_size * self.world_size * self.accumulate

    def share(self, items: Sequence[int], micro_batch: int) -> Sequence[int]:
        """The items of one pass of this process; none if a step has fewer items than there are passes."""
        return _even_parts(items, self.world_size * self.accumulate)[micro_batch * self.world_size + self.rank]


class StepSampler(Sampler[list[int]]):
    """The batches of this process in what is left of an epoch, `accumulate` for each step.

    A process without items in a pass gets the step's first item, to be weighted with 0 (`weight`), since all processes
    must take part in a step.

    Args:
        lengths: of the items.
        sharing: among the processes.
        seed: of the order.
        bucket_batches: sort the shuffled items of this many steps by length, for less padding; 0 or 1: off.
    """

    def __init__(self, lengths: Sequence[int], sharing: Sharing, seed: int, bucket_batches: int = 0):
        self.lengths = lengths
        self.sharing = sharing
        self.seed = seed
        self.bucket_batches = bucket_batches
        self.start_epoch(0)

    def start_epoch(self, epoch: int, done: Sequence[Stretch] = ()) -> None:
        """Plans the steps of what `done` leaves of an epoch; the same steps as before if its last stretch fits."""
        left = list(range(len(self.lengths)))
        rest = None
        for stretch in done:
            steps = self._plan(epoch, left, stretch.step_size)
            left = sorted(set(left).difference(*steps[: stretch.steps]))
            rest = steps[stretch.steps :] if stretch.step_size == self.sharing.step_size else None
        self.steps = self._plan(epoch, left, self.sharing.step_size) if rest is None else rest

    def weight(self, step: int, micro_batch: int) -> float:
        """The weight of a pass in its step: with it, the sum of mean losses over all passes is the step's mean."""
        items = self.steps[step]
        return len(self.sharing.share(items, micro_batch)) / len(items)

    def __len__(self) -> int:
        return len(self.steps) * self.sharing.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for items in self.steps:
            for micro_batch in range(self.sharing.accumulate):
                yield list(self.sharing.share(items, micro_batch) or items[:1])

    def _plan(self, epoch: int, items: list[int], step_size: int) -> list[Sequence[int]]:
        """The steps over `items`, in the order of an epoch."""
        generator = generator_for(self.seed, epoch, len(items))
        order = [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
        n_steps = -(-len(items) // step_size)
        if self.bucket_batches > 1:
            ends = _bounds(len(order), n_steps)
            bounds = [*ends[: -1 : self.bucket_batches], len(order)]
            order = [i for a, b in pairwise(bounds) for i in sorted(order[a:b], key=self.lengths.__getitem__)]
        steps = _even_parts(order, n_steps)
        if self.bucket_batches > 1:
            steps = [steps[i] for i in torch.randperm(n_steps, generator=generator).tolist()]
        return steps


def _bounds(n_items: int, n_parts: int) -> list[int]:
    """Where `n_parts` consecutive parts of nearly equal size begin, and where the last one ends."""
    return [n_items * i // n_parts for i in range(n_parts + 1)] if n_parts else [0]


def _even_parts(items: Sequence[int], n_parts: int) -> list[Sequence[int]]:
    return [items[a:b] for a, b in pairwise(_bounds(len(items), n_parts))]
