"""Bytes of files that may promise more than they have, and of files that are unpacked as a whole."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from typing import BinaryIO

from munit_fast.data.picture import ImageError

_PART = 2**24


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """Read so many bytes, in parts: memory is taken for bytes that are there, not for those that a header promises.

    Raises:
        ImageError: The file ends before.
    """
    parts, left = [], size
    while left > 0 and (part := file.read(min(left, _PART))):
        parts.append(part)
        left -= len(part)
    if left > 0:
        raise ImageError(f"the file ends {left} bytes too early")
    return b"".join(parts)


class KeptBytes:
    """The unpacked bytes of the last few files: without them, each image of a file would unpack all of it again.

    Args:
        most: Files whose bytes are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._bytes: dict[object, bytes] = {}

    def get(self, file: BinaryIO, unpack: Callable[[], bytes]) -> bytes:
        """The bytes of a packed file; `unpack` gives them where they are not kept."""
        with self._lock:  # threads that wait for the same file then find it here
            key = _identity(file)
            found = self._bytes.pop(key, None)
            self._bytes[key] = unpack() if found is None else found
            while len(self._bytes) > self.most:
                del self._bytes[next(iter(self._bytes))]
            return self._bytes[key]


def _identity(file: BinaryIO) -> object:
    """What a file is known by: its place on the disk and the time of its last change; or else its content."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, AttributeError):
        here = file.seek(0)
        digest = hashlib.blake2b(file.read()).digest()
        file.seek(here)
        return digest
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
