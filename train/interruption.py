"""SIGINT and SIGTERM: the training process ends in good order, the processes that load its data end with it.

Ctrl-C, `timeout`, SLURM and systemd signal all processes of a run at once. A loading process that died of it would
take the run with it before it can save, so they ignore both.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def calling_on_signals(request_stop: Callable[[int], None]) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM call `request_stop` with their number and do nothing else."""
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
def batches_of(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """An iterator over a loader built with `begin_loading`; its processes are gone when the block ends."""
    batches, workers = None, set()
    before = set(multiprocessing.active_children())
    try:
        # A new process inherits what is blocked: no signal can come between its start and `begin_loading`.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            batches = iter(loader)
        finally:
            workers = set(multiprocessing.active_children()) - before
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        yield batches
    finally:
        # What PyTorch does once nobody holds the iterator; the traceback of an error may hold it to the very end.
        # There it would send SIGTERM, which they ignore, and wait for them for ever.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
        for worker in workers:
            if worker.is_alive():
                worker.kill()
            worker.join()


def begin_loading(worker_id: int) -> None:
    """The `worker_init_fn` of a loader: SIGINT and SIGTERM are for the process that trains, whose end is the end."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # PyTorch's processes look for their parent too, but every few seconds, and never if it died before they looked.
    multiprocessing.parent_process().join()
    os._exit(1)
