"""Seeds of a text, of its sentences, and of further attempts at one."""

import secrets

from fastglow.errors import FastglowError

# Odd multipliers of 64 bits spread near seeds apart; the first is 2^64 over the golden ratio.
_SENTENCE = 0x9E3779B97F4A7C15
_ATTEMPT = 0xD1B54A32D192ED03


def random_seed() -> int:
    """A seed short enough to be typed again."""
    return secrets.randbelow(2**31)


def sentence_seed(seed: int, index: int) -> int:
    """The seed of a text's sentence, int64; sentence 0 keeps the text's own.

    Raises:
        FastglowError: the seed does not fit 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        raise FastglowError(f"seed {seed} does not fit 64 bits: use a smaller one")
    return _mixed(seed, index * _SENTENCE)


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of a further attempt at a sentence, int64; attempt 0 keeps the sentence's own."""
    return _mixed(seed, attempt * _ATTEMPT)


def _mixed(seed: int, offset: int) -> int:
    mixed = (seed + offset) % 2**64
    return mixed - 2**64 if mixed >= 2**63 else mixed
