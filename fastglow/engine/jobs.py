"""Splits a text into sentences that the acoustic model can read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from fastglow.text.pauses import Pause
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
        follows, is_followed: whether a sentence or a pause of the same text precedes or follows.
        words: the spoken ones among the symbols.
        pause_before, pause_after: as in `Sentence`.
    """

    text: str
    follows: bool
    is_followed: bool
    words: list[Span]
    pause_before: float | None = None
    pause_after: float | None = None

    @property
    def has_pause(self) -> bool:
        return self.pause_before is not None or self.pause_after is not None


def make_jobs(pieces: Iterable[str | Pause], seed: int, frontend: Frontend, most: int) -> Iterator[Job]:
    """A job for each piece of a text that has something to speak; pieces of more than `most` symbols are split.

    Lazy: it reads one piece further than the job that it yields, to know whether another follows. Pauses in a row are
    added up.
    """
    job, n_jobs = None, 0
    pause: float | None = None
    for piece in _readable(pieces, frontend, most):
        if isinstance(piece, Pause):
            pause = (pause or 0.0) + piece.seconds
            continue
        if job is not None:
            yield replace(job, is_followed=True)
        text, encoded = piece
        job = Job(
            encoded.symbols,
            encoded.n_sounding,
            sentence_seed(seed, n_jobs),
            text,
            follows=n_jobs > 0 or pause is not None,
            is_followed=False,
            words=encoded.words,
            pause_before=pause,
        )
        n_jobs, pause = n_jobs + 1, None
    if job is not None:
        yield replace(job, is_followed=pause is not None, pause_after=pause)


def split_job(job: Job, frontend: Frontend, most: int) -> list[Job]:
    """Splits a sentence that was too long for the decoder's step limit; empty if it cannot be split."""
    parts = list(make_jobs(halve_sentence(job.text), job.seed, frontend, most))
    if len(parts) < 2:
        return []
    first, *middle, last = parts
    return [
        replace(first, follows=job.follows, pause_before=job.pause_before),
        *middle,
        replace(last, is_followed=job.is_followed, pause_after=job.pause_after),
    ]


def _readable(
    pieces: Iterable[str | Pause], frontend: Frontend, most: int
) -> Iterator[tuple[str, EncodedSentence] | Pause]:
    for piece in pieces:
        if isinstance(piece, Pause):
            yield piece
            continue
        encoded = frontend.encode(piece)
        halves = halve_sentence(piece) if len(encoded.symbols) > most else []
        if len(halves) > 1:
            yield from _readable(halves, frontend, most)
        elif encoded.symbols:
            yield piece, encoded
