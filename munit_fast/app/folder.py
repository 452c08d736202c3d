"""How much the files of the page take, without walking through their folder for each request."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

WALK_EVERY = 10  # seconds; between two walks, what is added is counted


class Folder:
    """A folder whose size is bounded. It may be used from several threads.

    Args:
        path: The folder.
        limit: Bytes from which on it is full.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self._lock = threading.Lock()
        self._size, self._walked = 0, float("-inf")

    def add(self, size: int) -> None:
        """Count a file of `size` bytes that was written."""
        with self._lock:
            self._size += size

    def is_full(self) -> bool:
        """Whether there is no room for another file. Files that were deleted count for a few seconds more."""
        with self._lock:
            if time.monotonic() - self._walked > WALK_EVERY:
                self._size, self._walked = size_of(self.path), time.monotonic()
            return self._size > self.limit


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            total += path.lstat().st_size
    return total
