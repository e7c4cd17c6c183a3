"""Decodes sentences of many callers together, so that each gets the bits that it would get alone.

A product rounds by its shape. So a batch always has one of few shapes, a sentence's number of symbols picks its own,
and what is outside the decoder's loop (encoder, postnet) is computed for each sentence alone.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch

from .acoustic import Acoustic, Piece
from .attempts import Decoded

# A batch's number of symbols: a sentence's, rounded up to this, twice this, four times this ...
SHORTEST = 64
# Steps that `Rows` compares: the first product that rounds otherwise is read back by all later ones.
COMPARED_STEPS = 16
# Seconds of waiting that a text's later sentences count for less than a first one: enough for a batch or two on a CPU.
LATER = 5.0


class RowsDifferWarning(UserWarning):
    """On this machine a batch's rows round by their position: sentences are decoded one by one."""


class Rows:
    """Decodes up to `most` sentences at a time, to bits that depend on neither the others nor their number.

    Batches have `most` rows, some of them empty. On a CPU the largest products leave the empty ones out, and with some
    numbers of rows they may round otherwise. Which of these give the same bits is found out by trying, once for each
    shape: it depends on the processor and on the sizes of the model. Copies of a sentence fill up to the next of them.

    Args:
        acoustic: whose sentences they are.
        most: at least 1.
    """

    def __init__(self, acoustic: Acoustic, most: int):
        self.acoustic, self.most = acoustic, most
        self._counts: dict[int, list[int]] = {}

    def shape(self, n_symbols: int) -> int:
        """The number of symbols of the batches that a sentence of `n_symbols` is decoded in."""
        return SHORTEST << ((n_symbols - 1) // SHORTEST).bit_length()

    def counts(self, shape: int) -> list[int]:
        """The numbers of sentences in a batch of a shape that give the same bits, ascending."""
        if shape not in self._counts:
            self._counts[shape] = self._compare(shape)
        return self._counts[shape]

    def warm_up(self) -> None:
        """Finds out `counts` for the sentences of ordinary texts."""
        for shape in {self.shape(n) for n in range(1, self.acoustic.most_symbols + 1)}:
            self.counts(shape)

    def decode(self, texts: Sequence[list[int]], seeds: Sequence[int], limits: Sequence[int]) -> list[Decoded]:
        """`Acoustic.decode` of sentences of one shape, in as many batches as `counts` asks for."""
        shape = self.shape(max(map(len, texts)))
        counts = self.counts(shape)
        results: list[Decoded] = []
        while len(results) < len(texts):
            start = len(results)
            sentences = list(zip(texts, seeds, limits, strict=True))[start : start + counts[-1]]
            n_copies = next(count for count in counts if count >= len(sentences)) - len(sentences)
            filled = [*sentences, *sentences[:1] * n_copies]
            results += self._decode(filled, shape)[: len(sentences)]
        return results

    def _decode(self, sentences: Sequence[tuple[list[int], int, int]], shape: int) -> list[Decoded]:
        model, call = self.acoustic.tacotron2, self.acoustic.call
        texts, seeds, limits = zip(*sentences, strict=True)
        decoded = model.decode_apart(
            [torch.tensor(symbols) for symbols in texts],
            n_rows=self.most, n_symbols=shape, seed=seeds, max_steps=limits, call=call,
        )  # fmt: skip
        alignments = decoded.alignments.float().cpu().numpy()
        results = []
        for i, (symbols, _, limit) in enumerate(sentences):
            n_steps = int(decoded.steps[i])
            n_frames = n_steps * self.acoustic.frames_per_step
            row = decoded.item(i, min(n_steps + 1, limit) * self.acoustic.frames_per_step)
            mel = model.refine(row, call)[0, :, :n_frames]
            results.append(Decoded(mel, alignments[i, :n_steps, : len(symbols)].copy(), n_steps < limit))
        return results

    def _compare(self, shape: int) -> list[int]:
        text = [1 + i % 7 for i in range(min(shape, self.acoustic.most_symbols) - 3)]
        counts: list[int] = []
        expected: Decoded | None = None
        candidates = {*(2**i for i in range(self.most.bit_length())), self.most}
        for n in sorted(candidates, reverse=True):
            rows = self._decode([(text, 0, COMPARED_STEPS)] * n, shape)
            expected = expected or rows[0]
            if all(_same(row, expected) for row in rows):
                counts.append(n)
            elif not counts:
                expected = None
        if counts == [1] != [self.most]:
            warnings.warn(
                "on this machine the rows of a batch round differently, so sentences are decoded one by one: "
                "--max-batch 1 does the same with less waiting",
                RowsDifferWarning,
                stacklevel=2,
            )
        return counts[::-1]


def _same(a: Decoded, b: Decoded) -> bool:
    return torch.equal(a.mel, b.mel) and np.array_equal(a.alignment, b.alignment)


@dataclass(eq=False)
class _Waiting:
    symbols: list[int]
    seed: int
    limit: int
    seat: Seat
    since: float
    order: tuple[float, int]  # least first
    result: Future[Decoded] = field(default_factory=Future)


class Lanes:
    """A thread that decodes what callers ask for, several sentences at a time.

    First comes who waits longest, but a text's later sentences let first ones pass that wait `LATER` seconds less: a
    short text need not wait for the rest of a long one, nor a long one for ever.

    Args:
        acoustic: decodes.
        most: sentences at a time.
        max_wait: seconds that a sentence waits for others, unless all callers are waiting.
        on_batch: told the number of sentences of each batch.
    """

    def __init__(
        self, acoustic: Acoustic, most: int, max_wait: float, on_batch: Callable[[int], None] = lambda n: None
    ):
        self.acoustic = acoustic
        self.rows = Rows(acoustic, most)
        self._max_wait, self._on_batch = max_wait, on_batch
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._seats: set[Seat] = set()
        self._arrivals = count()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fastglow: decoder", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Sentences that are not being decoded yet."""
        return len(self._waiting)

    def seat(self) -> Seat:
        """What a caller decodes with in place of `acoustic`, until it closes it."""
        seat = Seat(self)
        with self._changed:
            self._seats.add(seat)
        return seat

    def close(self) -> None:
        """Decodes what waits, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, seat: Seat, symbols: list[int], seed: int, limit: int) -> Future[Decoded]:
        """Puts a sentence into the queue.

        Raises:
            CancelledError: the seat or the lanes are closed.
        """
        with self._changed:
            if seat not in self._seats or self._closed:
                raise CancelledError
            since = time.monotonic()
            order = since + (LATER if seat.has_begun else 0.0), next(self._arrivals)
            seat.has_begun = True
            waiting = _Waiting(symbols, seed, limit, seat, since, order)
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting.result

    def leave(self, seat: Seat) -> None:
        """Takes a caller's sentences out of the queue; one that is being decoded is for nothing."""
        with self._changed:
            self._seats.discard(seat)
            left = [one for one in self._waiting if one.seat is seat]
            self._waiting = [one for one in self._waiting if one.seat is not seat]
            self._changed.notify_all()
        for one in left:
            one.result.cancel()

    def _run(self) -> None:
        while batch := self._next():
            self._on_batch(len(batch))
            self._decode(batch)
            # Not kept while nothing is to be done.
            del batch

    def _next(self) -> list[_Waiting]:
        """The next batch; none once closed."""
        with self._changed:
            while True:
                if not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                first = min(self._waiting, key=lambda one: one.order)
                shape = self.rows.shape(len(first.symbols))
                alike = [one for one in self._waiting if self.rows.shape(len(one.symbols)) == shape]
                batch = sorted(alike, key=lambda one: one.order)[: self.rows.most]
                rest = first.since + self._max_wait - time.monotonic()
                everybody_waits = len({one.seat for one in self._waiting}) == len(self._seats)
                if len(batch) == self.rows.most or everybody_waits or rest <= 0 or self._closed:
                    taken = set(batch)
                    self._waiting = [one for one in self._waiting if one not in taken]
                    return batch
                self._changed.wait(rest)

    def _decode(self, batch: list[_Waiting]) -> None:
        try:
            found = self.rows.decode(
                [one.symbols for one in batch], [one.seed for one in batch], [one.limit for one in batch]
            )
        except Exception as error:
            if len(batch) == 1:
                _give(batch[0].result, error)
            else:
                # Whose fault it is shows when each is tried alone.
                for one in batch:
                    self._decode([one])
        else:
            for one, decoded in zip(batch, found, strict=True):
                _give(one.result, decoded)


def _give(result: Future[Any], value: Decoded | Exception) -> None:
    if not result.set_running_or_notify_cancel():
        return
    if isinstance(value, Exception):
        result.set_exception(value)
    else:
        result.set_result(value)


class Seat(Acoustic):
    """An `Acoustic` of one caller whose sentences are decoded by `Lanes`; a closed one raises CancelledError.

    Attributes:
        has_begun: it has asked for a sentence.
    """

    def __init__(self, lanes: Lanes):
        vars(self).update(vars(lanes.acoustic))
        self.has_begun = False
        self._lanes = lanes

    def close(self) -> None:
        """Gives up what is still to be decoded."""
        self._lanes.leave(self)

    def decode(self, texts: Sequence[list[int]], seeds: Sequence[int], limits: Sequence[int]) -> list[Decoded]:
        results = [self._lanes.submit(self, *sentence) for sentence in zip(texts, seeds, limits, strict=True)]
        return [result.result() for result in results]

    def pieces(self, symbols: list[int], seed: int, n_frames: int) -> Generator[Piece, None, None]:
        """The whole sentence as one piece: its bits must not depend on whether it is streamed."""
        (decoded,) = self.decode([symbols], [seed], [self.max_steps])
        yield Piece(decoded.mel, decoded.alignment, True, decoded.stopped)
