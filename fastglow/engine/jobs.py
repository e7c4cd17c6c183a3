"""Splits a text into sentences that the acoustic model can read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastglow.text import split_sentences

from .attempts import Task
from .frontend import EncodedSentence, Frontend
from .seeds import sentence_seed

# Attention is unreliable in longer sentences. Sentences are split at 200 characters, but become longer when numbers and
# abbreviations are written out.
MAX_SYMBOLS = 250


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


def make_jobs(pieces: Sequence[str], seed: int, frontend: Frontend) -> list[Job]:
    """A job for each piece of a text that has something to speak; pieces of more than MAX_SYMBOLS are split."""
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


def split_job(job: Job, frontend: Frontend) -> list[Job]:
    """Splits a sentence that was too long for the decoder's step limit; empty if it cannot be split."""
    parts = make_jobs(_halves(job.text), job.seed, frontend)
    if len(parts) < 2:
        return []
    first, *middle, last = parts
    return [replace(first, follows=job.follows), *middle, replace(last, is_followed=job.is_followed)]


def _readable(pieces: Sequence[str], frontend: Frontend) -> Iterator[tuple[str, EncodedSentence]]:
    for piece in pieces:
        encoded = frontend.encode(piece)
        halves = _halves(piece) if len(encoded.symbols) > MAX_SYMBOLS else []
        if len(halves) > 1:
            yield from _readable(halves, frontend)
        elif encoded.symbols:
            yield piece, encoded


def _halves(text: str) -> list[str]:
    """Splits a text into about two parts, or returns a single word whole."""
    return split_sentences(text, max_chars=len(text) // 2 + 1) if len(text.split()) > 1 else [text]
