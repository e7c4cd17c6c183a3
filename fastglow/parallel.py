"""Work on whole parts at a time, a core for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from typing import TypeVar

import torch

from fastglow.threads import one_thread

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def core_for_each() -> Iterator[CoreForEach]:
    """Gives a `map` that runs in as many threads as PyTorch may use, in inference mode.

    Threads that share every operation wait for each other thousands of times a second, and long if another process
    holds one of the cores. Here each does whole parts, with operations that use one core. If there is no thread to be
    had (while Python exits, or at a limit of the system), the caller does more.
    """
    with one_thread() as team:
        each = CoreForEach(team.size)
        try:
            yield each
        finally:
            each.end()


class CoreForEach:
    """See `core_for_each`. Threads start when they are first needed, and last until `end`."""

    def __init__(self, n_threads: int) -> None:
        self._most, self._workers = n_threads - 1, list[_Worker]()

    def __call__(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """[function(part) for part in parts]; raises what a call raised."""
        self._start(len(parts) - 1)
        workers = self._workers[: len(parts) - 1]
        n = 1 + len(workers)
        bounds = [len(parts) * i // n for i in range(n + 1)]
        own, *others = (parts[start:end] for start, end in pairwise(bounds))
        for worker, other in zip(workers, others, strict=True):
            worker.tasks.put(partial(_all, function, other))
        with torch.inference_mode():
            results = _all(function, own)
        for worker in workers:
            found = worker.results.get()
            if isinstance(found, BaseException):
                raise found
            results += found
        return results

    def _start(self, n: int) -> None:
        while len(self._workers) < min(n, self._most):
            worker = _Worker()
            try:
                worker.start()
            except RuntimeError:
                self._most = len(self._workers)
            else:
                self._workers.append(worker)

    def end(self) -> None:
        """Waits for the threads to finish what they do, and ends them."""
        for worker in self._workers:
            worker.tasks.put(None)
        for worker in self._workers:
            worker.join()


def _all(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    return [function(part) for part in parts]


class _Worker(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.tasks: SimpleQueue[Callable[[], list] | None] = SimpleQueue()
        self.results: SimpleQueue[list | BaseException] = SimpleQueue()

    def run(self) -> None:
        with one_thread(), torch.inference_mode():
            while (task := self.tasks.get()) is not None:
                try:
                    self.results.put(task())
                except BaseException as error:  # for the caller to raise
                    self.results.put(error)
