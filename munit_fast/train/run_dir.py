"""The folder of a run: <output_path>/logs/<name> and <output_path>/outputs/<name>, as published; one run at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from enum import IntEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from munit_fast.config import Config, ConfigError, load_config
from munit_fast.io.atomic import atomic_write_bytes, remove_leftovers, sync, write_error
from munit_fast.models.algorithm import complete_text
from munit_fast.utils.text import safe_name
from munit_fast.utils.version import __version__

# JSON has no such numbers, and its readers stumble over Python's spelling of them.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RunDirectoryError(RuntimeError):
    """The output folder cannot be used; the message says why and what would work."""


class RunStatus(IntEnum):
    """How much of a run a directory holds."""

    EMPTY = 0
    CONFIGURED = 1  # its configuration
    SAVED = 2  # checkpoints


class RunDirectory:
    """Where a run keeps its files.

    Args:
        output_path: the folder of all runs.
        name: of the run.

    Attributes:
        root: <output_path>/outputs/<name>, with `images` and `checkpoints` inside.
        logs: <output_path>/logs/<name>, with `history` (losses.jsonl), `evaluations` (evals.jsonl) and `events`
            (events.jsonl) inside.
    """

    def __init__(self, output_path: Path, name: str) -> None:
        self.name = name = safe_name(name)  # of a configuration file, which may be called "..".yaml
        self.logs = output_path / "logs" / name
        self.root = output_path / "outputs" / name
        self.images = self.root / "images"
        self.checkpoints = self.root / "checkpoints"
        self.history = self.logs / "losses.jsonl"
        self.evaluations = self.logs / "evals.jsonl"
        self.events = self.logs / "events.jsonl"
        self._config, self._given = self.root / "config.yaml", self.root / "config_as_given.yaml"

    @contextmanager
    def open(self, resume: bool) -> Iterator[RunDirectory]:
        """Make the folders and lock them for this process.

        Raises:
            RunDirectoryError: another process has locked them, or they hold a run and `resume` is False.
            FileWriteError: they cannot be made.
        """
        try:
            for folder in (self.logs, self.images, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise RunDirectoryError(f"{self.root}: another run is writing here; choose another --output_path") from None
        except OSError as error:
            raise write_error(self.root, error) from None
        try:
            if not resume and self.has_run:
                raise RunDirectoryError(
                    f"{self.checkpoints}: a run is saved here already; continue it with --resume, or choose another "
                    "--output_path"
                )
            self._remove_leftovers()
            yield self
        except BaseException:
            self._remove_if_empty()
            raise
        finally:
            lock.release()

    @property
    def has_run(self) -> bool:
        """Whether a run was saved here."""
        return any(self.checkpoints.glob("*.pt"))

    @property
    def status(self) -> RunStatus:
        """How much of a run is here."""
        if self.has_run:
            return RunStatus.SAVED
        return RunStatus.CONFIGURED if self._config.exists() else RunStatus.EMPTY

    def _remove_leftovers(self) -> None:
        """What a process that was killed was about to write."""
        for folder in (self.root, self.images, self.checkpoints, self.logs):
            remove_leftovers(folder)

    def _remove_if_empty(self) -> None:
        """Leave no tree of empty folders behind a run that was refused."""
        with suppress(OSError):
            for folder in (self.images, self.checkpoints, self.logs):
                folder.rmdir()
            if [path.name for path in self.root.iterdir()] == [".lock"]:
                (self.root / ".lock").unlink()
                self.root.rmdir()

    def write_config(self, config: Config, algorithm: str, text: str = "") -> None:
        """Keep the configuration beside the results: config.yaml has every value, config_as_given.yaml what was given.

        Args:
            config: what the run goes by.
            algorithm: "MUNIT" or "UNIT".
            text: the configuration as it was written; "": that is not known.
        """
        head = f"# Every value of this run, by munit-fast {__version__}; the file it was given: config_as_given.yaml.\n"
        atomic_write_bytes(self._config, (head + complete_text(config, algorithm)).encode())
        if text:
            atomic_write_bytes(self._given, text.encode())
        else:
            self._given.unlink(missing_ok=True)

    def read_config(self) -> tuple[Config | None, str]:
        """The configuration of the run that is here; None where there is none, or it cannot be read: then, why."""
        try:
            return load_config(self._config), ""
        except ConfigError as error:
            return None, str(error).partition("\n")[0] if self._config.exists() else ""

    def read_given(self, preset: str | None = None) -> Config | None:
        """The configuration that the run's last session was given; None where that is not known.

        preset: instead of the one that the file names.
        """
        try:
            return load_config(self._given, preset)
        except ConfigError:
            return None

    def append_losses(
        self, iteration: int, losses: Mapping[str, float], run: Mapping[str, float] | None = None
    ) -> None:
        """Add one line to the history.

        The losses of a resumed run repeat those of the uninterrupted one; speed and memory do not.

        Args:
            iteration: the completed iterations.
            losses: by their published names.
            run: what the run was doing, written under "run".
        """
        _append(self.history, {"iteration": iteration, **_strict(losses), **({"run": _strict(run)} if run else {})})

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to what happened to the run; unlike the losses it is never cut."""
        _append(self.events, {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **event})

    def read_events(self) -> list[dict[str, Any]]:
        """What happened to the run, in order; torn lines are left out."""
        return [event for event in _read_rows(self.events) if "kind" in event]

    def append_evaluation(self, row: Mapping[str, Any]) -> None:
        """Add one line to the evaluations; "iteration" is among its keys, and numbers are finite."""
        _append(self.evaluations, row)

    def read_evaluations(self) -> list[dict[str, Any]]:
        """The evaluations in order, as `append_evaluation` took them; torn lines are left out."""
        return [row for row in _read_rows(self.evaluations) if "iteration" in row]

    def sync_histories(self) -> None:
        """Have losses and evaluations on the disk, before a state that is to be continued with them."""
        for path in filter(Path.exists, (self.history, self.evaluations)):
            try:
                sync(path)
            except OSError as error:
                raise write_error(path, error) from None

    def read_losses(self) -> dict[str, list[tuple[int, float]]]:
        """The loss history, {name: [(iteration, value), …]}; a torn last line is left out."""
        return self._curves(lambda row: {name: row[name] for name in row if name not in ("iteration", "run")})

    def read_run(self) -> dict[str, list[tuple[int, float]]]:
        """The history of speed, memory, learning rate and skipped steps, as `read_losses`."""
        return self._curves(lambda row: row.get("run", {}))

    def _curves(self, part: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in _read_rows(self.history):
            for name, value in part(row).items():
                curves.setdefault(name, []).append((int(row["iteration"]), _NOT_FINITE.get(value, value)))
        return curves

    def truncate_histories(self, up_to: int) -> None:
        """Remove losses and evaluations after an iteration: a resumed run writes them again."""
        for path in filter(Path.exists, (self.history, self.evaluations)):
            kept = "".join(json.dumps(row) + "\n" for row in _read_rows(path) if row["iteration"] <= up_to)
            atomic_write_bytes(path, kept.encode())


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `_append` writes; what is torn is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _append(path: Path, row: Mapping[str, Any]) -> None:
    try:
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")  # a process was killed in the middle of a line
            file.write((("\n" if torn else "") + json.dumps(row) + "\n").encode())
    except OSError as error:
        raise write_error(path, error) from None


def _strict(values: Mapping[str, float]) -> dict[str, float | str]:
    return {name: value if math.isfinite(value) else json.dumps(value) for name, value in values.items()}
