"""The order of the items, and how processes share them."""

from itertools import chain, product

import pytest

from fastglow.train.sampler import Sharing, StepSampler, Stretch

LENGTHS = [(7 * i) % 23 + 1 for i in range(61)]


def samplers(world_size, batch_size=4, accumulate=1, lengths=LENGTHS, seed=5, bucket_batches=0):
    """One sampler of each process."""
    return [
        StepSampler(lengths, Sharing(batch_size, rank, world_size, accumulate), seed, bucket_batches)
        for rank in range(world_size)
    ]


def read(sampler, epoch=0, done=()):
    """[steps][passes] of (items, weight)."""
    sampler.start_epoch(epoch, done)
    batches, accumulate = list(sampler), sampler.sharing.accumulate
    assert len(batches) == len(sampler) == accumulate * len(sampler.steps)
    return [
        [(batches[step * accumulate + i], sampler.weight(step, i)) for i in range(accumulate)]
        for step in range(len(sampler.steps))
    ]


def counted(ranks, epoch=0, done=(), steps=None):
    """The items that all processes read with a weight."""
    passes = chain.from_iterable(chain.from_iterable(read(rank, epoch, done)[:steps] for rank in ranks))
    return sorted(chain.from_iterable(items for items, weight in passes if weight > 0))


@pytest.mark.parametrize(
    ("world_size", "accumulate", "bucket_batches", "n_items"),
    [*product((1, 2, 5), (1, 3), (0, 2), (61,)), (3, 2, 3, 1), (4, 1, 2, 3), (2, 2, 0, 24), (1, 1, 2, 8)],
)
def test_an_epoch_has_every_item_once(world_size, accumulate, bucket_batches, n_items):
    ranks = samplers(world_size, 4, accumulate, LENGTHS[:n_items], bucket_batches=bucket_batches)
    assert counted(ranks) == counted(ranks, epoch=1) == list(range(n_items))
    for steps in zip(*map(read, ranks), strict=True):
        shares = [share for step in steps for share in step]
        assert sum(weight for _, weight in shares) == pytest.approx(1, abs=1e-12)
        total = sum(len(items) for items, weight in shares if weight)
        for items, weight in shares:
            assert 1 <= len(items) <= 4
            assert weight in (0, len(items) / total)
    assert len(ranks[0].steps) == -(-n_items // (4 * world_size * accumulate))


def test_steps_are_as_even_as_possible():
    sizes = {len(step) for step in samplers(3, 4)[0].steps}
    assert max(sizes) - min(sizes) <= 1
    sizes = {len(items) for rank in samplers(3, 4) for step in read(rank) for items, _ in step}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("bucket_batches", [0, 3])
def test_the_order_depends_on_seed_and_epoch(bucket_batches):
    def order(seed, epoch):
        return read(samplers(1, seed=seed, bucket_batches=bucket_batches)[0], epoch)

    assert order(5, 0) == order(5, 0)
    assert len({str(order(seed, epoch)) for seed, epoch in product((5, 6), (0, 1))}) == 4


def test_bucketing_gathers_items_of_similar_length():
    def spread(bucket_batches):
        steps = samplers(2, bucket_batches=bucket_batches)[0].steps
        return sum(max(LENGTHS[i] for i in step) - min(LENGTHS[i] for i in step) for step in steps) / len(steps)

    assert spread(4) < spread(0) / 2


@pytest.mark.parametrize("bucket_batches", [0, 2])
def test_more_processes_or_more_passes_share_the_same_steps(bucket_batches):
    """So that gradients are sums over the same batches."""

    def passes(world_size, accumulate):
        ranks = [read(rank) for rank in samplers(world_size, 4, accumulate, bucket_batches=bucket_batches)]
        return [[share for i in range(accumulate) for rank in ranks for share in [rank[step][i]]]
                for step in range(len(ranks[0]))]  # fmt: skip

    assert passes(4, 1) == passes(2, 2) == passes(1, 4)


@pytest.mark.parametrize("bucket_batches", [0, 2])
def test_an_epoch_continues_with_the_same_steps(bucket_batches):
    for rank in samplers(2, bucket_batches=bucket_batches):
        whole = read(rank, epoch=3)
        for n in range(len(whole) + 1):
            assert read(rank, 3, [Stretch(8, n)]) == whole[n:]


@pytest.mark.parametrize("bucket_batches", [0, 2])
def test_an_epoch_continues_on_other_numbers_of_processes(bucket_batches):
    """Two steps of 8 items, then three of 12, one of 4, and the rest in steps of 20: every item once."""
    done, items = [], []
    for world_size, n in ((2, 2), (3, 3), (1, 1), (5, None)):
        ranks = samplers(world_size, bucket_batches=bucket_batches)
        items += counted(ranks, epoch=2, done=done, steps=n)
        done.append(Stretch(ranks[0].sharing.step_size, n))
    assert sorted(items) == list(range(len(LENGTHS)))
