"""What the notes of an output folder say: which files are of which chunk, and how large and old they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

Record = list[tuple[str, int, int]]  # of a chunk's files: name, bytes, nanoseconds of its last change


def state(path: Path) -> tuple[int, int]:
    """Size and time of a file. Raises OSError."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def read_records(path: Path) -> Iterator[tuple[str | None, Record]]:
    """What the lines of a journal say: chunks and their files."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = _parsed(line)
        with suppress(KeyError, TypeError, ValueError):
            record = [(str(name), int(size), int(time)) for name, size, time in entry["files"]]
            yield (str(entry["chunk"]) if "chunk" in entry else None), record


def inside(name: str) -> bool:
    """Whether a name from a journal, which anyone may have written, stays below its folder."""
    path = PurePath(name)
    return not path.anchor and ".." not in path.parts


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one for anything else."""
    return _parsed(path.read_text(encoding="utf-8", errors="replace"))


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object; an empty one for anything else, such as half a line."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
