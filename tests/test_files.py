"""A file is replaced as a whole or not at all, also when the disk is full or the power fails."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastglow.files import replacing

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


@pytest.fixture
def calls(monkeypatch):
    """The names of `os` functions as they are called, fsync's with the file that it is given and its size."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def named_fsync(file):
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        calls.append(("fsync", path, path.stat().st_size if path.is_file() else None))
        fsync(file)

    def named_replace(source, target):
        calls.append(("replace", Path(source), Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", named_fsync)
    monkeypatch.setattr(os, "replace", named_replace)
    return calls


def only(path, contents):
    """Whether the folder of `path` holds it alone, with these contents."""
    return os.listdir(path.parent) == [path.name] and path.read_bytes() == contents


def failing_fsync(monkeypatch, number, of_folder):
    """Makes fsync fail for the folder or for the file, whichever is asked for."""
    fsync = os.fsync

    def failing(file):
        if Path(f"/proc/self/fd/{file}").is_dir() == of_folder:
            raise OSError(number, os.strerror(number))
        fsync(file)

    monkeypatch.setattr(os, "fsync", failing)


@pytest.mark.parametrize("exists", [True, False])
def test_the_disk_has_the_contents_before_the_name_and_then_the_name(path, calls, exists):
    if not exists:
        path.unlink()
    with replacing(path) as temporary:
        temporary.write_bytes(b"longer")
        assert not calls
    assert calls == [("fsync", temporary, 6), ("replace", temporary, path), ("fsync", path.parent, None)]
    assert only(path, b"longer")


def test_a_file_that_the_writer_itself_replaced_is_synced(path, calls):
    with replacing(path) as temporary:
        other = path.with_name("other")
        other.write_bytes(b"another")
        other.rename(temporary)
    assert calls[0] == ("fsync", temporary, 7)
    assert only(path, b"another")


def test_the_target_of_a_symbolic_link_is_replaced(tmp_path, path, calls):
    folder = tmp_path / "links"
    folder.mkdir()
    link = folder / "link"
    link.symlink_to("../file")
    with replacing(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink() and path.read_bytes() == b"new"
    assert calls[-1] == ("fsync", path.parent, None)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_users_usual_permissions(path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(b"new")
            temporary.chmod(0o400)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_a_device_is_written_to_and_not_synced(calls):
    with replacing("/dev/null") as same:
        assert same == Path("/dev/null")
        same.write_bytes(b"new")
    assert not calls


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_sync_leaves_the_old_file(path, monkeypatch, number):
    failing_fsync(monkeypatch, number, of_folder=False)
    with pytest.raises(OSError) as caught, replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert caught.value.errno == number
    assert only(path, b"old")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("writer"), KeyboardInterrupt()])
def test_a_failed_writer_leaves_the_old_file(path, calls, error):
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_bytes(b"ne")
        raise error
    assert not calls
    assert only(path, b"old")


def test_a_failed_sync_of_the_folder_is_reported(path, monkeypatch):
    failing_fsync(monkeypatch, errno.EIO, of_folder=True)
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert only(path, b"new")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("of_folder", [True, False])
def test_file_systems_without_fsync(path, monkeypatch, number, of_folder):
    failing_fsync(monkeypatch, number, of_folder)
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert only(path, b"new")


def test_a_folder_that_cannot_be_read(path, monkeypatch):
    """It can be written to, but not opened; root may open it, so the error is injected."""
    opened = os.open

    def unreadable(name, flags, *args, **kw):
        if os.path.isdir(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return opened(name, flags, *args, **kw)

    monkeypatch.setattr(os, "open", unreadable)
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
    monkeypatch.undo()
    assert only(path, b"new")


def test_a_write_that_the_system_refuses(path):
    """The limit on a file's size refuses the write halfway, as a full disk does."""
    program = """
import resource, sys
from fastglow.files import replacing

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with replacing(sys.argv[1]) as temporary, temporary.open("wb", buffering=0) as file:
        written = file.write(bytes(5000))
        while written < 5000:
            written += file.write(bytes(5000 - written))
except OSError as error:
    print(error.errno, written)
"""
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(errno.EFBIG), "4096"], done.stderr
    assert only(path, b"old")
