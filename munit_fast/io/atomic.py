"""Files and folders that are either whole or absent: nothing half-written ever stands under its final name."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = ".saving-"  # of the temporary folders


class FileWriteError(OSError):
    """A file or folder could not be written. The message is one line: the path and the reason."""


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path for the caller to write a file to, which becomes `path` when the block ends.

    Readers of `path` see the old file or the new one, never a part, however the process ends. When the block raises,
    Ctrl-C included, the temporary file is removed and an existing `path` is left as it was. The temporary file has the
    name of the final one, in a temporary folder beside it: torch.save writes a file's own name into it.

    Args:
        path: The final file, in an existing folder. Its permissions follow the umask.
        durable: Also flush the file and its name to the disk, so that it outlasts a power failure. Leave it out for
            what can be made again: it takes milliseconds a file.

    Raises:
        FileWriteError: The folder is missing, the disk is full, permission is denied, or `path` is something other than
            a plain file.
    """
    target = Path(path)
    refuse_special(target)
    with _staged(target, durable) as temporary:
        yield temporary


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder for the caller to fill, which becomes `path` when the block ends; else it is removed.

    Args:
        path: The final folder: missing, or an empty folder. Missing parents are created.

    Raises:
        FileWriteError: For every OSError on the way (full disk, no permission, ...), naming `path`. The current folder
            is refused: whoever is in it would be left in one that is gone.
    """
    target = Path(os.path.abspath(path))
    if target.is_dir() and target.samefile(os.curdir):
        raise FileWriteError(f"cannot write {path}: it is the current folder; give the name of a new one below it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(target, error) from error
    with _staged(target, durable=False) as temporary:
        temporary.mkdir()
        yield temporary
        if target.is_dir():
            target.rmdir()


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Write a file as `atomic_path` does: whole or not at all.

    Args:
        path: the file.
        data: its content.
        durable: as in `atomic_path`.

    Raises:
        FileWriteError: the file could not be written.
    """
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what killed processes were writing to `folder`; no other process may be writing there."""
    for leftover in Path(folder).glob(f"{_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def sync(path: str | os.PathLike[str]) -> None:
    """Have the system write a file, or the names in a folder, to the disk. Raises OSError."""
    if os.path.isdir(path):
        if os.name != "posix":  # Windows opens no folders
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: str | os.PathLike[str], error: OSError) -> FileWriteError:
    """The clear form of an OSError met while writing `path`; keeps its errno, and is `error` if that is clear."""
    if isinstance(error, FileWriteError):
        return error
    reason = error.strerror or str(error) or type(error).__name__
    failure = FileWriteError(f"cannot write {os.fspath(path)}: {reason}")
    failure.errno = error.errno
    return failure


def refuse_special(target: Path) -> None:
    """Raise FileWriteError where a path is something other than a plain file or nothing.

    Args:
        target: The path that is to be written.
    """
    # A rename would replace a device such as /dev/null by a plain file when run as an administrator.
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise FileWriteError(f"cannot write {target}: it is {kind}; give the name of a plain file")


@contextmanager
def _staged(target: Path, durable: bool) -> Iterator[Path]:
    try:
        # Only this folder is private (0700): what is made inside follows the umask.
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent)
    except OSError as error:
        raise write_error(target, error) from error
    try:
        temporary = Path(folder, target.name)
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, target)
        if durable:
            sync(target.parent)  # or a power failure could bring the old name back
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
