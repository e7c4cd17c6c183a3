"""How processes that fill one folder keep out of each other's way: who makes a shard holds a lock of its journal."""

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from .shards import is_of_dataset, is_partial


def locked(path: Path, create: bool = True) -> BinaryIO:
    """Opens a file to read and write, and locks it until it is closed.

    Raises:
        BlockingIOError: another process has locked it.
        FileNotFoundError: there is none, and it is not to be created.
        OSError: as the file system does.
    """
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a file system without locks
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # another process has just finished: the file is its own


def remove_others(folder: Path, names: set[str], is_current: Callable[[], bool] = lambda: True) -> bool:
    """Removes the shards and indexes that are not among `names`, finished or not.

    If another process makes a shard, nothing is removed: what is here may be that process's, which will do this itself.

    Args:
        folder: of the data set.
        names: of the files of the data set, without their suffixes.
        is_current: whether nobody has finished another shard since `names` were found.

    Returns:
        Whether they are current.
    """
    with ExitStack() as locks:
        free = True
        for journal in folder.glob(".shard-*.clips.partial"):
            try:
                locks.enter_context(locked(journal, create=False))
            except BlockingIOError:
                free = False
            except FileNotFoundError:
                pass
        files = list(folder.iterdir())  # a process that begins after this keeps its files
        if not is_current():
            return False
        for file in files if free else ():
            if is_of_dataset(file) and file.stem not in names or is_partial(file):
                file.unlink(missing_ok=True)
    return True
