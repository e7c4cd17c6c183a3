"""Seeds of a text, its sentences, and further attempts at a sentence."""

import secrets
from collections.abc import Iterable, Sequence
from operator import index

from fastglow.errors import FastglowError

# Odd 64-bit multipliers spread adjacent seeds; the first is 2^64 / golden ratio.
_SENTENCE = 0x9E3779B97F4A7C15
_ATTEMPT = 0xD1B54A32D192ED03


def random_seed() -> int:
    """A random seed, short enough to type."""
    return secrets.randbelow(2**31)


def seeds_of(texts: Sequence[str], seed: int | Sequence[int] | None) -> list[int]:
    """The seed of each text: the given ones, the one given for all, or one random one for all.

    Raises:
        FastglowError: another number of seeds than texts.
    """
    if seed is None:
        seed = random_seed()
    seeds = [check_seed(one) for one in seed] if isinstance(seed, Iterable) else [check_seed(seed)] * len(texts)
    if len(seeds) != len(texts):
        raise FastglowError(f"{len(seeds)} seeds for {len(texts)} texts: pass one seed, or one per text")
    return seeds


def check_seed(seed: int) -> int:
    """The seed; raises FastglowError unless it is an integer of 64 bits."""
    try:
        value = index(seed)
    except TypeError as error:
        raise FastglowError(f"seed={seed!r} must be an integer") from error
    if not -(2**63) <= value < 2**63:
        raise FastglowError(f"seed={seed} does not fit in 64 bits: use a smaller one")
    return value


def sentence_seed(seed: int, n: int) -> int:
    """The seed of a text's sentence, int64; sentence 0 keeps the text's seed.

    Raises:
        FastglowError: the seed does not fit in 64 bits.
    """
    return _mixed(check_seed(seed), n * _SENTENCE)


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of a further attempt at a sentence, int64; attempt 0 keeps the sentence's seed."""
    return _mixed(seed, attempt * _ATTEMPT)


def _mixed(seed: int, offset: int) -> int:
    mixed = (seed + offset) % 2**64
    return mixed - 2**64 if mixed >= 2**63 else mixed
