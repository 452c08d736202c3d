"""What is finished in an output folder, kept there, so that an interrupted translation continues where it stopped.

OUTPUT/.translation/ has for each translation NAME.json, which says what is translated and how, and for each process
NAME.RANK.jsonl: a line for each finished chunk, with the size and time of its files. What these lines say is believed
only of files that are still so. Files are written in OUTPUT/.translation/RANK-NUMBER and renamed, so that half ones
cannot exist.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from filelock import FileLock, Timeout

from munit_fast.io.atomic import atomic_write_bytes, refuse_special, remove_leftovers, write_error

if TYPE_CHECKING:
    from typing_extensions import Self

FOLDER = ".translation"
Record = list[tuple[str, int, int]]  # of a chunk's files: name, bytes, nanoseconds of its last change
Identity = Mapping[str, Any]


class Outputs:
    """The files of an output folder: written whole or not at all, and forgotten when the process ends.

    Args:
        folder: The output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed: dict[str, tuple[Any, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, name: str, data: bytes) -> Path:
        """Write a file, below folders that are made. Raises FileWriteError."""
        path = self.folder / name
        make_folder(path.parent)
        self._put(path, data)
        return path

    def finished(self, key: str) -> bool:
        """Whether an earlier run has finished a chunk: never, as nothing is remembered."""
        return False

    def finish(self, key: str, files: Sequence[Path]) -> None:
        """Note that a chunk is finished, with all its files."""

    def agreed(self, name: str, choose: Callable[[], str]) -> str:
        """What `choose` gives."""
        return choose()

    def _put(self, path: Path, data: bytes) -> None:
        atomic_write_bytes(path, data, durable=False)  # a translation can be made again


class Journal(Outputs):
    """An output folder that remembers what is finished.

    Args:
        folder: The output folder.
        identity: What is translated and how; of other identities with the same "source" nothing is kept.
        rank: Number of this process among those that share the translation.

    Attributes:
        changed: Where an earlier translation of this source differed: parts of the identity, as (before, now).
    """

    def __init__(self, folder: Path, identity: Identity, rank: int) -> None:
        super().__init__(folder)
        self.home = folder / FOLDER
        self.identity, self.rank = identity, rank
        self.name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._about: dict[str, Any] = {"identity": dict(identity)}
        self._records: dict[str, list[Record]] = defaultdict(list)
        self._numbers = itertools.count()
        self._lines: TextIO | None = None
        self._held = ExitStack()
        self._staging = self.home

    def __enter__(self) -> Self:
        """Read what is finished, and remove what killed processes were writing. Raises FileWriteError."""
        make_folder(self.home)
        with ExitStack() as held:
            try:
                with FileLock(self.home / "lock"):  # held for moments
                    remove_leftovers(self.home)
                    self._forget_others()
                    self._agree()
                    held.enter_context(self._own_staging())
                self._read()
                lines = self.home / f"{self.name}.{self.rank}.jsonl"
                self._lines = held.enter_context(lines.open("a", encoding="utf-8"))
                self._lines.write("\n")  # a killed process may have left half a line
            except OSError as error:
                raise write_error(self.home, error) from error
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def finished(self, key: str) -> bool:
        """Whether an earlier run has finished a chunk and its files are as it left them."""
        return any(all(map(self._as_recorded, record)) for record in self._records.get(key, ()))

    def finish(self, key: str, files: Sequence[Path]) -> None:
        """Note that a chunk is finished, with all its files. Raises FileWriteError."""
        assert self._lines is not None
        try:
            record = [(path.relative_to(self.folder).as_posix(), *_state(path)) for path in files]
            self._lines.write(json.dumps({"chunk": key, "files": record}) + "\n")
            self._lines.flush()
        except OSError as error:
            raise write_error(self.home, error) from error

    def agreed(self, name: str, choose: Callable[[], str]) -> str:
        """What `choose` gives; the same in all processes that translate the same, and in all their runs."""
        with FileLock(self.home / "lock"):
            self._agree()
            if name not in self._about:
                self._about[name] = choose()
                self._write_about()
            return str(self._about[name])

    def _put(self, path: Path, data: bytes) -> None:
        refuse_special(path)
        temporary = self._staging / f"{next(self._numbers)}{path.suffix}"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if error.errno != errno.EXDEV:
                raise write_error(path, error) from error
            super()._put(path, data)  # a folder inside is a link to another disk

    def _forget_others(self) -> None:
        """Remove the journals of the same source's other translations: their files are about to be overwritten."""
        for path in sorted(self.home.glob("*.json")):
            before = _read_object(path).get("identity")
            if not isinstance(before, dict):
                before = {}
            if path.stem == self.name or before.get("source") != self.identity["source"]:
                continue
            keys = sorted({*before, *self.identity})
            self.changed = {
                k: (before.get(k), self.identity.get(k)) for k in keys if before.get(k) != self.identity.get(k)
            }
            for old in (*self.home.glob(f"{path.stem}.*.jsonl"), path):
                old.unlink(missing_ok=True)

    def _agree(self) -> None:
        path = self.home / f"{self.name}.json"
        if path.exists():
            self._about.update(_read_object(path))
        else:
            self._write_about()

    def _write_about(self) -> None:
        text = json.dumps(self._about, indent=2, sort_keys=True)
        atomic_write_bytes(self.home / f"{self.name}.json", text.encode(), durable=False)

    @contextmanager
    def _own_staging(self) -> Iterator[None]:
        """Take a folder to write files in. The lock beside it goes with its process, however that ends."""
        for lock in self.home.glob("writing-*.lock"):
            with suppress(Timeout), FileLock(lock, timeout=0):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        for number in itertools.count():
            lock = FileLock(self.home / f"writing-{number}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
                break
        self._staging = self.home / f"writing-{number}"
        self._staging.mkdir(exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
            lock.release()

    def _read(self) -> None:
        for path in sorted(self.home.glob(f"{self.name}.*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                entry = _parsed(line)
                with suppress(KeyError, TypeError, ValueError):
                    record = [(str(name), int(size), int(time)) for name, size, time in entry["files"]]
                    self._records[str(entry["chunk"])].append(record)

    def _as_recorded(self, file: tuple[str, int, int]) -> bool:
        try:
            return _state(self.folder / file[0]) == file[1:]
        except (OSError, ValueError):
            return False


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises FileWriteError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _read_object(path: Path) -> dict[str, Any]:
    return _parsed(path.read_text(encoding="utf-8", errors="replace"))


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object; an empty one for anything else, such as half a line."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
