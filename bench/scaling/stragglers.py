"""The wait for the process with the longest batch, simulated with the sampler of training."""

from collections.abc import Sequence

import numpy as np

from fastglow.train.sampler import Sharing, StepSampler

LJSPEECH_CLIPS = 13_100
LJSPEECH_FRAMES = (96, 566, 870)
"""Fewest, mean and most frames of a clip of LJSpeech at a hop of 256 samples."""
LJSPEECH_DEVIATION = 189

SEED = 1234


def ljspeech_like(clips: int = LJSPEECH_CLIPS) -> list[int]:
    """Frames of clips: a beta distribution with the range, mean and standard deviation of LJSpeech's."""
    low, mean, high = LJSPEECH_FRAMES
    m = (mean - low) / (high - low)
    v = (LJSPEECH_DEVIATION / (high - low)) ** 2
    total = m * (1 - m) / v - 1
    drawn = np.random.default_rng(SEED).beta(m * total, (1 - m) * total, clips)
    return [int(low + (high - low) * x) for x in drawn]


def slowdown(lengths: Sequence[int], batch_size: int, ranks: int, bucket_batches: int = 0) -> float:
    """The mean over an epoch's steps of the longest batch of all processes, over that of one process alone.

    A batch costs what its longest item costs: Tacotron 2's decoder runs over the padded frames.

    Args:
        lengths: of the items.
        batch_size: of each process.
        ranks: processes.
        bucket_batches: as `fastglow train --bucket-batches`.
    """
    return _mean_longest(lengths, batch_size, ranks, bucket_batches) / _mean_longest(
        lengths, batch_size, 1, bucket_batches
    )


def _mean_longest(lengths: Sequence[int], batch_size: int, ranks: int, bucket_batches: int) -> float:
    samplers = [StepSampler(lengths, Sharing(batch_size, rank, ranks), SEED, bucket_batches) for rank in range(ranks)]
    longest = [[max(lengths[i] for i in batch) for batch in sampler] for sampler in samplers]
    return float(np.max(longest, axis=0).mean())
