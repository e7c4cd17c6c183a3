"""A training step on several GPUs: gradients are all-reduced bucket by bucket while the backward pass goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .gradients import Gradient
from .links import Link

FIRST_BUCKET_BYTES = 2**20
BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel's defaults. It closes a bucket with the gradient that reaches the limit."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one GPU, or on each of several.

    Attributes:
        forward, backward, optimizer: of all passes of the step.
        waiting: between the end of the backward pass and that of the last all-reduce.
        communicating: of all all-reduces.
    """

    forward: float
    backward: float
    optimizer: float
    waiting: float = 0.0
    communicating: float = 0.0

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.waiting + self.optimizer

    @property
    def overlap(self) -> float:
        """The share of the communication that the backward pass hides."""
        return 1 - self.waiting / self.communicating if self.communicating else 1.0


def buckets(gradients: Sequence[Gradient]) -> Iterator[Gradient]:
    """What DistributedDataParallel sends together, from its second step on in the order in which it is ready."""
    size, limit = 0, FIRST_BUCKET_BYTES
    for i, gradient in enumerate(gradients):
        size += gradient.size
        if size >= limit or i == len(gradients) - 1:
            yield Gradient(gradient.ready, size)
            size, limit = 0, BUCKET_BYTES


def several(alone: StepTime, gradients: Sequence[Gradient], link: Link, ranks: int) -> StepTime:
    """A step of `ranks` GPUs with the batch of `alone` each.

    All-reduces run one after the other on a stream of their own, as with one process group of NCCL. What they take from
    the multiprocessors and the memory of the backward pass is not counted.
    """
    end = communicating = 0.0
    for bucket in buckets(gradients):
        taken = link.seconds(bucket.size, ranks)
        end = max(end, bucket.ready * alone.backward) + taken
        communicating += taken
    waiting = max(0.0, end - alone.backward)
    return StepTime(alone.forward, alone.backward, alone.optimizer, waiting, communicating)
