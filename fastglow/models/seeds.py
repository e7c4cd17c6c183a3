"""Seeds of the random numbers that the models draw for each item."""

from collections.abc import Iterable, Sequence
from operator import index

import torch
from torch import Tensor

from fastglow.devices import move, upload
from fastglow.errors import FastglowError

Seeds = int | Sequence[int] | Tensor | None


def item_seeds(seed: Seeds, batch_size: int, device: torch.device) -> Tensor:
    """One int64 seed per item, [B]: the given seeds, the one given seed for all, or random ones.

    Seeds on the device are not read.

    Raises:
        FastglowError: the number of seeds is not the number of items, or one does not fit in 64 bits.
    """
    if seed is None:
        return move(torch.randint(2**62, (batch_size,)), device)
    if isinstance(seed, Tensor) and seed.dtype == torch.int64 and seed.shape == (batch_size,):
        return move(seed, device)
    seeds = [int(s) for s in seed] if isinstance(seed, Iterable) else [index(seed)] * batch_size
    if len(seeds) != batch_size:
        raise FastglowError(f"{len(seeds)} seeds for {batch_size} items: pass one seed, or one per item")
    if not all(-(2**63) <= s < 2**63 for s in seeds):
        raise FastglowError(f"seed={max(seeds, key=abs)} does not fit in 64 bits: use a smaller one")
    return upload(seeds, device)
