"""Files and folders that other programs never see half-written, and that a power cut does not lose."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file in the folder of `path` that replaces it if the block succeeds and is deleted otherwise.

    After a crash or a power cut `path` holds all of the old or all of the new file; once this returns, the new one.
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
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def place(temporary: Path, path: Path) -> None:
    """Renames a written file to `path`, in the same folder, once the disk has it. Raises OSError as the file system
    does."""
    with _opened(temporary, os.O_WRONLY) as file:
        _sync(file)
    os.replace(temporary, path)
    _sync_folder(path.parent)


@contextmanager
def filling(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, new or empty, if the block succeeds and is deleted otherwise.

    An existing folder keeps its identity (it may be a mount point, or somebody's working directory): it gets the
    files one by one. Raises OSError as the file system does, and FileExistsError if the folder holds anything.
    """
    folder = Path(os.path.realpath(folder))
    exists = folder.is_dir()
    if folder.exists() and (not exists or any(folder.iterdir())):
        raise FileExistsError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))
    home = folder if exists else next(parent for parent in folder.parents if parent.exists())
    temporary = home / f".{folder.name[:100]}.{secrets.token_hex(4)}.tmp"
    placed: list[Path] = []
    try:
        temporary.mkdir()
        yield temporary
        if exists:
            for path in sorted(temporary.iterdir()):
                os.rename(path, folder / path.name)
                placed.append(folder / path.name)
            _sync_folder(folder)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(temporary, folder)
            _sync_folder(folder.parent)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags)
    try:
        yield file
    finally:
        os.close(file)


def _sync(file: int) -> None:
    """Waits until the disk has it, on file systems that can tell."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def _sync_folder(folder: Path) -> None:
    """A new name is safe once its folder is; a folder that may be written to but not read cannot be synced."""
    try:
        with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as file:
            _sync(file)
    except PermissionError:
        pass
