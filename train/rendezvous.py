"""How the processes of one attempt at a run find each other, whatever earlier attempts left in the store.

torchrun's agent keeps one store for all attempts in some versions of PyTorch. A process that is started again could
then read the address of one that has died (https://github.com/pytorch/pytorch/issues/135712). Its count of restarts
does not tell attempts apart, because each machine has its own. So the first process names the attempt, and tells the
name only to processes that are alive.
"""

import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed import PrefixStore, Store

from fastglow.errors import FastglowError

TIMEOUT = timedelta(minutes=30)  # as PyTorch's for process groups on CPUs

POLL_SECONDS = 0.01


def store_of_attempt(store: Store, rank: int, world_size: int, timeout: timedelta = TIMEOUT) -> Store:
    """The part of a store that belongs to the processes which are alive now; collective.

    Raises:
        FastglowError: the other processes did not come in time.
    """
    return PrefixStore(_lead(store, world_size, timeout) if rank == 0 else _join(store, rank, timeout), store)


def _lead(store: Store, world_size: int, timeout: timedelta) -> str:
    """Names the attempt, and answers greetings until each process has heard of it."""
    name = f"attempt/{uuid4().hex}"
    missing = set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for rank in list(missing):
            if store.check([f"greeting/{rank}"]):
                store.set(f"answer/{store.get(f'greeting/{rank}').decode()}", name)
            if store.check([f"{name}/{rank}"]):
                missing.remove(rank)
        if missing and time.monotonic() > deadline:
            ranks = ", ".join(map(str, sorted(missing)))
            raise FastglowError(f"of {world_size} processes, rank {ranks} did not start within {timeout}: start all")
        time.sleep(POLL_SECONDS)
    return name


def _join(store: Store, rank: int, timeout: timedelta) -> str:
    """Greets the first process, under a word that no earlier process used, and waits for its answer."""
    word = uuid4().hex
    store.set(f"greeting/{rank}", word)
    try:
        store.wait([f"answer/{word}"], timeout)
    except RuntimeError as error:
        raise FastglowError(f"rank 0 did not answer rank {rank} within {timeout}: start it too") from error
    name = store.get(f"answer/{word}").decode()
    store.set(f"{name}/{rank}", "here")
    return name
