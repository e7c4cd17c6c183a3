"""From text to the sentences that are spoken one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastglow.text import split_sentences

from .attempts import Task
from .frontend import Frontend
from .seeds import sentence_seed

# Symbols that attention can be expected to keep its place in. Sentences are split at 200 characters, but numbers and
# abbreviations become words.
MOST_SYMBOLS = 250


@dataclass
class Job(Task):
    """A sentence to speak; whether it follows another of its text, and is followed by one."""

    text: str
    follows: bool = False
    is_followed: bool = False


def jobs_of(pieces: Sequence[str], seed: int, frontend: Frontend) -> list[Job]:
    """The pieces of a text that have something to speak; those that are too long to be read at once in parts."""
    jobs = []
    for piece, symbols in _readable(pieces, frontend):
        jobs.append(Job(symbols, frontend.n_sounding(symbols), sentence_seed(seed, len(jobs)), piece))
    for before, after in pairwise(jobs):
        before.is_followed = after.follows = True
    return jobs


def parts_of(job: Job, frontend: Frontend) -> list[Job]:
    """What a sentence that proved too long is spoken in; empty if it cannot be split."""
    parts = jobs_of(_halves(job.text), job.seed, frontend)
    if len(parts) < 2:
        return []
    parts[0].follows, parts[-1].is_followed = job.follows, job.is_followed
    return parts


def _readable(pieces: Sequence[str], frontend: Frontend) -> Iterator[tuple[str, list[int]]]:
    for piece in pieces:
        symbols = frontend(piece)
        halves = _halves(piece) if len(symbols) > MOST_SYMBOLS else []
        if len(halves) > 1:
            yield from _readable(halves, frontend)
        elif symbols:
            yield piece, symbols


def _halves(text: str) -> list[str]:
    """About two parts; a single word stays whole."""
    return split_sentences(text, max_chars=len(text) // 2 + 1) if len(text.split()) > 1 else [text]
