"""What is finished in an output folder, kept there, so that an interrupted translation continues where it stopped.

OUTPUT/.translation/ has for each translation NAME.json, which says what is translated and how, and for each process
NAME.RANK.jsonl: a line for each finished chunk, with the size and time of its files. What these lines say is believed
only of files that are still so. NAME.before.jsonl lists the files of the translation that this one takes the place of,
until they are removed. Files are written in OUTPUT/.translation/RANK-NUMBER and renamed, so that half ones
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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TextIO

from filelock import FileLock, Timeout

from munit_fast.io.atomic import atomic_write_bytes, refuse_special, remove_leftovers, write_error
from munit_fast.translate.names import image_of
from munit_fast.translate.records import Record, inside, read_object, read_records, state

if TYPE_CHECKING:
    from typing_extensions import Self

FOLDER = ".translation"
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

    def remove_earlier(self, images: Container[str], names: Iterable[str], inputs: Container[Path]) -> int:
        """Remove what a changed translation leaves behind: nothing, as nothing is remembered."""
        return 0

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
        self._before = self.home / f"{self.name}.before.jsonl"
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
            record = [(path.relative_to(self.folder).as_posix(), *state(path)) for path in files]
            self._lines.write(json.dumps({"chunk": key, "files": record}) + "\n")
            self._lines.flush()
        except OSError as error:
            raise write_error(self.home, error) from error

    def remove_earlier(self, images: Container[str], names: Iterable[str], inputs: Container[Path]) -> int:
        """Remove the files of the translation that this one takes the place of, unless they are written again.

        A file that was changed since is kept, and so is any that no journal knows, and what was made of an image that
        is not there any more.

        Args:
            images: The images that are translated, by their `output_names`.
            names: Of all files that this translation writes, whichever process does.
            inputs: Files that it reads, links followed.

        Returns:
            How many files were removed.

        Raises:
            FileWriteError: A file cannot be removed.
        """
        with FileLock(self.home / "lock"):
            if not self._before.exists():
                return 0
            earlier = {file[0]: file for _, record in read_records(self._before) for file in record}
            for name in names:
                earlier.pop(PurePath(name).as_posix(), None)
            found = [
                self.folder / name
                for name, file in earlier.items()
                if inside(name) and image_of(name) in images and self._as_recorded(file)
            ]
            unwanted = [path for path in found if not path.is_symlink() and path.resolve() not in inputs]
            try:
                for path in (*unwanted, self._before):
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise write_error(path, error) from error
            return len(unwanted)

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
        """Remove the journals of the same source's other translations: most of their files are about to be overwritten.

        What they wrote is noted, for `remove_earlier`.
        """
        for path in sorted(self.home.glob("*.json")):
            before = read_object(path).get("identity")
            if not isinstance(before, dict):
                before = {}
            if path.stem == self.name or before.get("source") != self.identity["source"]:
                continue
            keys = sorted({*before, *self.identity})
            self.changed = {
                k: (before.get(k), self.identity.get(k)) for k in keys if before.get(k) != self.identity.get(k)
            }
            journals = sorted(self.home.glob(f"{path.stem}.*.jsonl"))
            wrote = [file for old in journals for _, record in read_records(old) for file in record]
            with self._before.open("a", encoding="utf-8") as lines:
                lines.write("\n" + json.dumps({"files": list(filter(self._as_recorded, wrote))}) + "\n")
            for old in (*journals, path):
                old.unlink(missing_ok=True)

    def _agree(self) -> None:
        path = self.home / f"{self.name}.json"
        if path.exists():
            self._about.update(read_object(path))
        else:
            self._write_about()

    def _write_about(self) -> None:
        text = json.dumps(self._about, indent=2, sort_keys=True)
        atomic_write_bytes(self.home / f"{self.name}.json", text.encode(), durable=False)

    @contextmanager
    def _own_staging(self) -> Iterator[None]:
        """Take a folder to write files in. The lock beside it goes with its process, however that ends."""
        for path in self.home.glob("writing-*.lock"):
            with suppress(Timeout), FileLock(path, timeout=0):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
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
            for chunk, record in read_records(path):
                if chunk is not None:
                    self._records[chunk].append(record)

    def _as_recorded(self, file: tuple[str, int, int]) -> bool:
        try:
            return state(self.folder / file[0]) == file[1:]
        except (OSError, ValueError):
            return False


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises FileWriteError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None
