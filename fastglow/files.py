"""Writes files atomically."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file in the folder of `path` that replaces it if the block succeeds and is deleted otherwise.

    Follows symbolic links. An existing `path` that is not a regular file, such as a named pipe or /dev/stdout, is not
    replaced: the block gets that path itself. Raises OSError as the file system does.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        # Created here to get the user's usual permissions, whatever the writer would set.
        with open(temporary, "xb"):
            pass
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
