"""The folder of a job beside its output: features on disk, what is finished, and how to go on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from munit_fast.io.atomic import FileWriteError, atomic_write_bytes, refuse_special, write_error
from munit_fast.tiles.plan import Box

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Array = npt.NDArray[Any]
FLUSH_SECONDS = 20.0  # at most so much is computed again after an interruption


class PixelFile:
    """An array [planes, H, W, C] in a file, of which boxes are read and written; a box has its rows in one piece.

    It is not memory-mapped: what a process has mapped counts as its memory.

    Args:
        path: The file; made, without taking its size from the disk, where it is missing.
        shape: [planes, H, W, C].
        dtype: Of the values.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int], dtype: npt.DTypeLike) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        try:
            self.file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+")
            if os.fstat(self.file.fileno()).st_size != self.nbytes:
                self.file.truncate(self.nbytes)
        except OSError as error:
            raise write_error(path, error) from error

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, box: Box) -> Array:
        """The values [box.height, box.width, C]."""
        values = np.empty((box.height, box.width, self.shape[3]), self.dtype)
        for row, start in zip(values, self._starts(box)):
            self.file.seek(start)
            if self.file.readinto(memoryview(row).cast("B")) != row.nbytes:
                raise FileWriteError(f"{self.path}: cannot be read back; remove {self.path.parent} and begin anew")
        return values

    def write(self, box: Box, values: Array) -> None:
        """Write the values [box.height, box.width, C]."""
        values = np.ascontiguousarray(values, self.dtype)
        try:
            for row, start in zip(values, self._starts(box)):
                self.file.seek(start)
                view = memoryview(row).cast("B")
                while len(view):  # a full disk may take a part
                    view = view[self.file.write(view) :]
        except OSError as error:
            raise write_error(self.path, error) from error

    def sync(self) -> None:
        """Have the system write it to the disk."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def remove(self) -> None:
        """Delete the file."""
        self.file.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _starts(self, box: Box) -> Iterator[int]:
        _, height, width, channels = self.shape
        for y in range(box.top, box.bottom):
            yield ((box.plane * height + y) * width + box.left) * channels * self.dtype.itemsize


class Journal:
    """Which tiles of one pass are done, and a row of numbers for each.

    Args:
        path: Its files, without suffix.
        tiles: How many.
        numbers: For each tile.
    """

    def __init__(self, path: Path, tiles: int, numbers: int = 0) -> None:
        self._numbers = PixelFile(path.with_name(path.name + ".numbers"), (1, 1, tiles, numbers or 1), np.float64)
        self._flags = PixelFile(path.with_name(path.name + ".done"), (1, 1, tiles, 1), np.uint8)
        everything = Box(0, 0, 1, 0, tiles)
        self.done: Array = self._flags.read(everything)[0, :, 0].astype(bool)
        self.numbers: Array = self._numbers.read(everything)[0]
        self._time = time.monotonic()

    @property
    def complete(self) -> bool:
        """Whether every tile is done."""
        return bool(self.done.all())

    def add(self, tile: int, numbers: Array | None, features: PixelFile | None) -> None:
        """Note that a tile is done; written after what it stands for, every FLUSH_SECONDS."""
        self.done[tile] = True
        if numbers is not None:
            self.numbers[tile] = numbers
        if time.monotonic() - self._time > FLUSH_SECONDS:
            self.flush(features)

    def flush(self, features: PixelFile | None) -> None:
        """Write everything, the features first: a journal never says more than what is on the disk."""
        if features is not None:
            features.sync()
        everything = Box(0, 0, 1, 0, len(self.done))
        for file, values in ((self._numbers, self.numbers[None]), (self._flags, self.done[None, :, None])):
            file.write(everything, values)
            file.sync()
        self._time = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        self._numbers.close()
        self._flags.close()


class JobInUseError(FileWriteError):
    """Another process is making the same file."""


class Job:
    """The folder of a job.

    Attributes:
        folder: Its path, .NAME.tiles beside the output NAME.
        resumed: Whether it goes on from an earlier process.
        begun_anew: Why an earlier folder was removed; "" where there was none, or where it is gone on with.
        state: What the first process decided, {} in it.
    """

    def __init__(self, folder: Path, state: dict[str, Any], resumed: bool, begun_anew: str) -> None:
        self.folder, self.state, self.resumed, self.begun_anew = folder, state, resumed, begun_anew

    def decide(self, name: str, value: Any) -> Any:
        """What an earlier process decided, or `value`, kept for later ones."""
        if name not in self.state:
            self.state[name] = value
            atomic_write_bytes(self.folder / "state.json", json.dumps(self.state).encode())
        return self.state[name]


@contextmanager
def open_job(output: Path, what: dict[str, Any]) -> Iterator[Job]:
    """The folder of the job that makes `output`: kept where the block raises and something is done, else removed.

    Args:
        output: The final file, in an existing folder.
        what: All that the result depends on. Where an earlier folder has something else, it is removed.

    Raises:
        JobInUseError: Another process is at it.
        FileWriteError: The folder cannot be written.
    """
    refuse_special(output)
    folder = output.with_name(f".{output.name}.tiles")
    what = json.loads(json.dumps(what))
    try:
        folder.mkdir(exist_ok=True)
        with _locked(folder / "lock", output):
            before = _state(folder)
            old = before["job"] if before else {}
            changed = sorted(key for key in {*what, *old} if what.get(key) != old.get(key)) if before else []
            if before is not None and not changed:
                job = Job(folder, before, True, "")
            else:
                _clear(folder)
                job = Job(folder, {"job": what}, False, ", ".join(changed))
                atomic_write_bytes(folder / "state.json", json.dumps(job.state).encode())
            try:
                yield job
            except BaseException:
                if not any(folder.glob("*.done")):  # there is nothing to go on with
                    _remove(folder)
                raise
            _remove(folder)
        with suppress(OSError):  # Windows, and NFS in its way, keep files while they are open
            if fcntl is None:
                (folder / "lock").unlink(missing_ok=True)
            folder.rmdir()
    except OSError as error:
        raise write_error(output, error) from error


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    in_use = JobInUseError(f"cannot write {output}: another process is making it; wait for it")
    with ExitStack() as held:
        try:
            file = held.enter_context(path.open("wb"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = path.stat()
        except (BlockingIOError, FileNotFoundError) as error:  # not found: that process just removes the folder
            raise in_use from error
        if not os.path.samestat(there, os.fstat(file.fileno())):  # or did between our opening and locking
            raise in_use
        yield


def _state(folder: Path) -> dict[str, Any] | None:
    """The state of an earlier process; None where there is none that can be read."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and isinstance(state.get("job"), dict) else None


def _remove(folder: Path) -> None:
    """Remove the folder of a job while its lock is held: another process must not have begun in it."""
    with suppress(OSError):
        _clear(folder)
        (folder / "lock").unlink()
        folder.rmdir()


def _clear(folder: Path) -> None:
    # First of all: with it, what is left when this process is killed half-way would be gone on with.
    (folder / "state.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
