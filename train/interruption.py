"""On SIGINT and SIGTERM, the training process saves and exits, and so do its loader processes.

Ctrl-C, `timeout`, SLURM and systemd signal all processes of a run at once. The death of a loader process would end the
run before it can save, so loader processes ignore both signals.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from fastglow.errors import FastglowError

STOPPING = (signal.SIGINT, signal.SIGTERM)

POLL_SECONDS = 0.2


@contextmanager
def calling_on_signals(request_stop: Callable[[int], None]) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM call `request_stop` with their number and do nothing else."""
    try:
        previous = {number: signal.signal(number, lambda n, frame: request_stop(n)) for number in STOPPING}
    except ValueError:  # not in the main thread, where signals cannot be caught
        previous = {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def naming_a_dead_loader() -> Iterator[None]:
    """Within the block, the death of a loader process, which PyTorch raises wherever the run is, is one line.

    Raises:
        FastglowError: a loader process has died.
    """
    try:
        yield
    except RuntimeError as error:
        what = " ".join(str(error).split())
        if not what.startswith("DataLoader worker"):
            raise
        raise FastglowError(
            f"a process that loads data has died, perhaps for want of memory ({what}): pass fewer --num-workers, and "
            "--resume to continue from the last checkpoint"
        ) from error


@contextmanager
def batches_of(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """An iterator over a loader built with `begin_loading`; its processes have ended when the block ends."""
    batches = None
    workers: set[multiprocessing.process.BaseProcess] = set()
    before = set(multiprocessing.active_children())
    try:
        # A new process inherits the blocked signals: none can arrive between its start and `begin_loading`.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            batches = iter(loader)
        finally:
            workers = set(multiprocessing.active_children()) - before
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        yield batches
    finally:
        # PyTorch does this once nothing refers to the iterator, but the traceback of an error may do so until exit.
        # Then it would send SIGTERM, which the workers ignore, and wait for them forever.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
        for worker in workers:
            if worker.is_alive():
                worker.kill()
            worker.join()


def begin_loading(worker_id: int) -> None:
    """The `worker_init_fn` of a loader: ignores SIGINT and SIGTERM, and ends with the training process."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def end_with_launcher(parent: int) -> None:
    """Ends this process once it has another parent, so that nothing trains on without being watched over."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _end_with_parent() -> None:
    # PyTorch's workers check for their parent too, but only every few seconds, and not if it died before the first.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
