"""Philox4x32-10: published known answers, a second implementation in Python integers, and the distributions."""

import math

import pytest
import torch

from fastglow.kernels import normal_noise, uniform_noise
from fastglow.kernels.reference.philox import philox4x32

# Counter, key, result: the known answers of Random123, the authors' library (kat_vectors, philox4x32 10).
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
DRAWS = pytest.mark.parametrize("draw", [uniform_noise, normal_noise])


def words(text):
    return tuple(int(word, 16) for word in text.split())


def tensors(numbers):
    return tuple(torch.tensor(number) for number in numbers)


def philox_in_python(counter, key):
    """Ten rounds on Python's unbounded integers, (4 words, 2 words) -> 4 words."""
    x, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(x[0] * 0xD2511F53, 2**32)
        high1, low1 = divmod(x[2] * 0xCD9E8D57, 2**32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(x)


def word_in_python(seed, stream, row, column):
    """Word `column` of a row, by the layout of counter and key."""
    counter = (column // 4, row % 2**32, row // 2**32, stream)
    seed %= 2**64
    return philox_in_python(counter, (seed % 2**32, seed // 2**32))[column % 4]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    assert philox_in_python(words(counter), words(key)) == words(result)
    actual = philox4x32(tensors(words(counter)), tensors(words(key)))
    assert tuple(word.item() for word in actual) == words(result)


def test_random_counters_and_keys_against_python():
    numbers = torch.randint(2**32, (6, 50))
    actual = torch.stack(philox4x32(tuple(numbers[:4]), tuple(numbers[4:])), dim=1)
    for *counter_and_key, row in zip(*numbers.tolist(), actual.tolist(), strict=True):
        assert tuple(row) == philox_in_python(counter_and_key[:4], counter_and_key[4:])


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("start", [0, 2**32 - 1, 3 * 2**32 + 5])
def test_bits_depend_on_seed_stream_row_and_column(seed, start):
    """Pins the layout of counters: changing it would change the result of every seed."""
    for stream in (0, 2**32 - 1):
        uniform = uniform_noise(torch.tensor([seed]), stream, start, 2, 7)
        normal = normal_noise(torch.tensor([seed]), stream, start, 2, 3)
        for row in range(2):
            for column in range(7):
                word = word_in_python(seed, stream, start + row, column)
                assert uniform[0, row, column].item() == (word >> 8) / 2**24
            for column in range(3):
                pair = (word_in_python(seed, stream, start + row, 2 * column + i) >> 8 for i in range(2))
                u1, u2 = ((next(pair) + 1) / 2**24, next(pair) / 2**24)
                expected = math.sqrt(-2 * math.log(u1)) * math.cos(2 * math.pi * u2)
                assert normal[0, row, column].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@DRAWS
def test_rows_equal_those_of_a_longer_draw(draw):
    seeds = torch.tensor([3, -7])
    whole = draw(seeds, 1, 0, 20, 5)
    assert whole.shape == (2, 20, 5)
    assert whole.dtype == torch.float32
    assert torch.equal(draw(seeds, 1, 6, 9, 5), whole[:, 6:15])
    assert torch.equal(torch.cat([draw(seeds, 1, row, 1, 5) for row in range(20)], dim=1), whole)


@DRAWS
def test_columns_equal_those_of_a_wider_draw(draw):
    assert torch.equal(draw(torch.tensor([3]), 0, 0, 4, 5), draw(torch.tensor([3]), 0, 0, 4, 11)[:, :, :5])


@DRAWS
def test_an_item_depends_only_on_its_seed(draw):
    seeds = torch.tensor([5, 9, 5, -2])
    batch = draw(seeds, 0, 0, 6, 3)
    order = [3, 1, 0, 2]
    assert torch.equal(draw(seeds[order], 0, 0, 6, 3), batch[order])
    for item in range(4):
        assert torch.equal(draw(seeds[item : item + 1], 0, 0, 6, 3), batch[item : item + 1])
    assert torch.equal(batch[0], batch[2])


@DRAWS
def test_seeds_streams_rows_and_columns_are_unrelated(draw):
    n = 30_000
    x = draw(torch.tensor([0, 1, 2**32, -1]), 0, 0, n // 10, 10).flatten(1)
    other_stream = draw(torch.tensor([0]), 1, 0, n // 10, 10).flatten()
    rows = x[0].view(-1, 10)
    pairs = [
        *((x[0], x[item]) for item in (1, 2, 3)),
        (x[0], other_stream),
        (rows[1:].flatten(), rows[:-1].flatten()),
        *((x[0, lag:], x[0, :-lag]) for lag in (1, 2, 3, 4)),
    ]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack((a, b)).double())[0, 1]
        assert abs(correlation) < 4 / math.sqrt(n)


def largest_cdf_gap(numbers, cdf):
    """The Kolmogorov-Smirnov statistic times the square root of n."""
    expected = cdf(numbers.double().flatten().sort().values)
    n = len(expected)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    return max((ranks[1:] - expected).max(), (expected - ranks[:-1]).max()).item() * math.sqrt(n)


def test_uniform_distribution():
    numbers = uniform_noise(torch.arange(4), 0, 0, 2_500, 10)
    n = numbers.numel()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert torch.equal(numbers * 2**24, (numbers * 2**24).round())
    assert abs(numbers.double().mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(numbers.double().var() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    assert largest_cdf_gap(numbers, lambda x: x) < 1.63  # exceeded by one draw in a hundred


def test_normal_distribution():
    numbers = normal_noise(torch.arange(4), 0, 0, 2_500, 10)
    n = numbers.numel()
    assert numbers.isfinite().all()
    x = numbers.double()
    # Mean, variance, third and fourth moment, within four standard errors.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * math.sqrt(variance / n)
    assert largest_cdf_gap(numbers, torch.special.ndtr) < 1.63
    assert x.abs().max() > 3.5
    assert x.abs().max() <= math.sqrt(2 * 24 * math.log(2))


@DRAWS
def test_no_rows(draw):
    assert draw(torch.tensor([1, 2]), 0, 0, 0, 3).shape == (2, 0, 3)
