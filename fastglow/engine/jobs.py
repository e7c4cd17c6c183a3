"""Splits a text into sentences that the acoustic model can read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from fastglow.text.sentences import halve_sentence
from fastglow.text.sequence import Span

from .attempts import Task
from .frontend import EncodedSentence, Frontend
from .seeds import sentence_seed


@dataclass(frozen=True)
class Job(Task):
    """A sentence to speak.

    Attributes:
        text: before cleaning.
        follows, is_followed: whether a sentence of the same text precedes or follows.
        words: the spoken ones among the symbols.
    """

    text: str
    follows: bool
    is_followed: bool
    words: list[Span]


def make_jobs(pieces: Iterable[str], seed: int, frontend: Frontend, most: int) -> Iterator[Job]:
    """A job for each piece of a text that has something to speak; pieces of more than `most` symbols are split.

    Lazy: it reads one piece further than the job that it yields, to know whether another follows.
    """
    readable = _readable(pieces, frontend, most)
    following = next(readable, None)
    for i in count():
        if following is None:
            return
        (piece, encoded), following = following, next(readable, None)
        yield Job(
            encoded.symbols,
            encoded.n_sounding,
            sentence_seed(seed, i),
            piece,
            follows=i > 0,
            is_followed=following is not None,
            words=encoded.words,
        )


def split_job(job: Job, frontend: Frontend, most: int) -> list[Job]:
    """Splits a sentence that was too long for the decoder's step limit; empty if it cannot be split."""
    parts = list(make_jobs(halve_sentence(job.text), job.seed, frontend, most))
    if len(parts) < 2:
        return []
    first, *middle, last = parts
    return [replace(first, follows=job.follows), *middle, replace(last, is_followed=job.is_followed)]


def _readable(pieces: Iterable[str], frontend: Frontend, most: int) -> Iterator[tuple[str, EncodedSentence]]:
    for piece in pieces:
        encoded = frontend.encode(piece)
        halves = halve_sentence(piece) if len(encoded.symbols) > most else []
        if len(halves) > 1:
            yield from _readable(halves, frontend, most)
        elif encoded.symbols:
            yield piece, encoded
