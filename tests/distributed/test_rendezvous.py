"""Processes, here threads, find each other in a store in which earlier attempts left their keys."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from fastglow.errors import FastglowError
from fastglow.train.rendezvous import store_of_attempt


def attempt(store, ranks, world_size, timeout=timedelta(minutes=30)):
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: store_of_attempt(store, rank, world_size, timeout), ranks))


@pytest.mark.parametrize("world_size", [2, 5])
def test_every_attempt_has_keys_of_its_own(world_size):
    store = HashStore()
    for n in range(4):
        stores = attempt(store, range(world_size), world_size)
        assert not any(own.check(["address"]) for own in stores), "keys of an earlier attempt"
        stores[n % world_size].set("address", str(n))
        assert [own.get("address") for own in stores] == [str(n).encode()] * world_size


@pytest.mark.parametrize("came", [[0, 1], [1, 2], [0]])
def test_an_attempt_that_died_on_the_way_is_not_taken_for_a_new_one(came):
    """Some processes of an earlier attempt greeted or answered and died; as many then come later than others."""
    store = HashStore()
    with pytest.raises(FastglowError, match="did not"):
        attempt(store, came, 3, timedelta(seconds=0.2))
    stores = attempt(store, [2, 1, 0], 3)
    stores[0].set("key", "value")
    assert all(own.get("key") == b"value" for own in stores)
    with pytest.raises(FastglowError, match=r"of 3 processes, rank (1, )?2 did not start within"):
        attempt(store, [0, 1], 3, timedelta(seconds=0.2))
