"""Word error rate, and how sure one can be of a ratio of two."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95

_NO_WORD = re.compile(r"[^a-z' ]+")


class Edit(Enum):
    """What turns the text's words into those that were heard."""

    KEPT = "kept"
    SUBSTITUTED = "substituted"
    INSERTED = "inserted"
    DELETED = "deleted"


@dataclass(frozen=True)
class WordErrors:
    """Counts over one or more sentences."""

    words: int = 0  # of the texts
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    @property
    def edits(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Edits over the texts' words; NaN without words."""
        return self.edits / self.words if self.words else float("nan")

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "edits": self.edits, "rate": self.rate}


class Interval(NamedTuple):
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: letters and apostrophes; a hyphen separates words, as white space does."""
    return _NO_WORD.sub(" ", text.lower().replace("-", " ")).split()


def align(reference: Sequence[str], heard: Sequence[str]) -> list[Edit]:
    """The fewest edits that turn `reference` into `heard`, in order.

    Of all such sequences it is one with the fewest insertions, and so with the most substitutions.
    """
    n_heard = len(heard)
    costs = [[(0, 0)] * (n_heard + 1) for _ in range(len(reference) + 1)]  # (edits, insertions)
    for i in range(len(reference) + 1):
        for j in range(n_heard + 1):
            if i or j:
                costs[i][j] = min(cost for cost, _ in _last_edits(costs, reference, heard, i, j))
    edits: list[Edit] = []
    i, j = len(reference), n_heard
    while i or j:
        edit = next(edit for cost, edit in _last_edits(costs, reference, heard, i, j) if cost == costs[i][j])
        edits.append(edit)
        i -= edit is not Edit.INSERTED
        j -= edit is not Edit.DELETED
    return edits[::-1]


def word_errors(text: str, heard: str) -> WordErrors:
    """Of one sentence."""
    reference = words_of(text)
    edits = align(reference, words_of(heard))
    return WordErrors(
        len(reference), edits.count(Edit.SUBSTITUTED), edits.count(Edit.INSERTED), edits.count(Edit.DELETED)
    )


def rate_interval(errors: Sequence[WordErrors], seed: int = 0) -> Interval:
    """The word error rate of sentences, with its interval over a choice of such sentences (see `ratio_interval`)."""
    counts = np.array([(row.edits, row.words) for row in errors])
    return _bootstrap(counts, seed)


def ratio_interval(errors: Sequence[WordErrors], baseline: Sequence[WordErrors], seed: int = 0) -> Interval:
    """The ratio of two word error rates of the same sentences, with its interval.

    Percentiles of the bootstrap over sentences (Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR
    performance evaluation", 2004): sentences are drawn with replacement, each with both of its results, since a
    sentence that is hard in one is hard in the other.
    """
    counts = np.array([(row.edits, of.edits) for row, of in zip(errors, baseline, strict=True)])
    return _bootstrap(counts, seed)


def _last_edits(
    costs: list[list[tuple[int, int]]], reference: Sequence[str], heard: Sequence[str], i: int, j: int
) -> list[tuple[tuple[int, int], Edit]]:
    """What the last edit of the first `i` and `j` words can be, each with the costs up to it."""
    found = []
    if i and j:
        edits, insertions = costs[i - 1][j - 1]
        same = reference[i - 1] == heard[j - 1]
        found.append(((edits + (not same), insertions), Edit.KEPT if same else Edit.SUBSTITUTED))
    if i:
        edits, insertions = costs[i - 1][j]
        found.append(((edits + 1, insertions), Edit.DELETED))
    if j:
        edits, insertions = costs[i][j - 1]
        found.append(((edits + 1, insertions + 1), Edit.INSERTED))
    return found


def _bootstrap(counts: np.ndarray, seed: int) -> Interval:
    """The ratio of the sums of two columns [sentences, 2], with its interval; 0 / 0 counts as 1."""
    if not len(counts):
        return Interval(*(float("nan"),) * 3)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(RESAMPLES, len(counts)))
    # Percentiles that are ratios themselves: between two of them may lie infinity.
    low, high = np.quantile(
        _ratio(counts[drawn].sum(axis=1)), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf"
    )
    return Interval(float(_ratio(counts.sum(axis=0))), float(low), float(high))


def _ratio(sums: np.ndarray) -> np.ndarray:
    above, below = sums[..., 0], sums[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((above == 0) & (below == 0), 1.0, above / below)
