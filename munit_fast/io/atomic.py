"""Files that are either whole or absent: nothing half-written ever stands under its final name."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path


class FileWriteError(OSError):
    """A file or folder could not be written. The message is one line: the path and the reason."""


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that readers see the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to the disk and renamed over ``path``.
    On failure, Ctrl-C included, the temporary file is removed and an existing ``path`` is left as it was.
    The folder must exist. The file's permissions follow the umask.

    Raises:
        FileWriteError: the folder is missing, the disk is full, permission is denied, or ``path`` is
            something other than a plain file.
    """
    target = Path(path)
    _refuse_special(target)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        _write_and_sync(temporary, data)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: str | os.PathLike[str]) -> None:
    """Have the system write a file, or the names in a folder, to the disk. Raises OSError."""
    if os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: str | os.PathLike[str], error: OSError) -> FileWriteError:
    """The clear form of an ``OSError`` met while writing ``path``; keeps its errno."""
    reason = error.strerror or str(error) or type(error).__name__
    failure = FileWriteError(f"cannot write {os.fspath(path)}: {reason}")
    failure.errno = error.errno
    return failure


def _refuse_special(target: Path) -> None:
    # A rename would replace a device such as /dev/null by a plain file when run as an administrator.
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise FileWriteError(f"cannot write {target}: it is {kind}; give the name of a plain file")


def _write_and_sync(path: Path, data: bytes) -> None:
    # Not tempfile: its permissions (0600) would survive the rename and hide the result from other users.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
