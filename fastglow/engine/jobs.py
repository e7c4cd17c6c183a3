"""Text to the sentences that are spoken one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastglow.text import split_sentences

from .attempts import Task
from .frontend import EncodedSentence, Frontend
from .seeds import sentence_seed

# Attention keeps its place in this many symbols. Sentences are split at 200 characters, but numbers and abbreviations
# become words.
MOST_SYMBOLS = 250


@dataclass(frozen=True)
class Job(Task):
    """A sentence to speak.

    Attributes:
        text: before cleaning.
        follows, is_followed: whether a sentence of the same text precedes or follows.
    """

    text: str
    follows: bool
    is_followed: bool


def jobs_of(pieces: Sequence[str], seed: int, frontend: Frontend) -> list[Job]:
    """The pieces of a text that have something to speak; a piece that is too long to read at once is split."""
    readable = list(_readable(pieces, frontend))
    return [
        Job(
            encoded.symbols,
            encoded.n_sounding,
            sentence_seed(seed, i),
            piece,
            follows=i > 0,
            is_followed=i < len(readable) - 1,
        )
        for i, (piece, encoded) in enumerate(readable)
    ]


def parts_of(job: Job, frontend: Frontend) -> list[Job]:
    """The parts in which a sentence is spoken that proved too long; empty if it cannot be split."""
    parts = jobs_of(_halves(job.text), job.seed, frontend)
    if len(parts) < 2:
        return []
    first, *middle, last = parts
    return [replace(first, follows=job.follows), *middle, replace(last, is_followed=job.is_followed)]


def _readable(pieces: Sequence[str], frontend: Frontend) -> Iterator[tuple[str, EncodedSentence]]:
    for piece in pieces:
        encoded = frontend.encode(piece)
        halves = _halves(piece) if len(encoded.symbols) > MOST_SYMBOLS else []
        if len(halves) > 1:
            yield from _readable(halves, frontend)
        elif encoded.symbols:
            yield piece, encoded


def _halves(text: str) -> list[str]:
    """About two parts; a single word stays whole."""
    return split_sentences(text, max_chars=len(text) // 2 + 1) if len(text.split()) > 1 else [text]
