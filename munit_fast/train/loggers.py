"""Loggers of a run's numbers and grids: logs/<name>/losses.jsonl, TensorBoard, and Weights & Biases on request."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from munit_fast.config import Config
from munit_fast.data import make_grid, save_image
from munit_fast.data.grid import shown
from munit_fast.io.atomic import FileWriteError, atomic_write_bytes, write_error
from munit_fast.train.run_dir import RunDirectory


class LogError(RuntimeError):
    """A log that was asked for cannot be kept; the message says what would work."""


class RunLog:
    """The logs of one run. After a resume at iteration `start`, what was logged beyond it counts as never logged.

    wandb_project: also log there, through the package wandb; its own settings (WANDB_MODE=offline, …) hold.
    """

    def __init__(
        self, folder: RunDirectory, start: int, config: Mapping[str, Any], wandb_project: str | None = None
    ) -> None:
        self.folder = folder
        self.wandb = None if wandb_project is None else _Wandb(folder, config, wandb_project)
        self.writer = _TensorBoard(folder.logs, start)

    def numbers(self, iteration: int, losses: Mapping[str, float], run: Mapping[str, float]) -> None:
        """Losses under their published names, and what the run itself is doing.

        Args:
            iteration: the completed iterations.
            losses: by their published names.
            run: speed, memory and the like.
        """
        self.folder.append_losses(iteration, losses, run)
        self.writer.scalars({**losses, **run}, iteration)
        if self.wandb is not None:
            self.wandb.log({**losses, **run}, iteration)

    def evaluation(self, iteration: int, values: Mapping[str, float]) -> None:
        """Metrics by name, below "eval/"; the folder has them already.

        Args:
            iteration: the completed iterations.
            values: "kid_a2b" and others.
        """
        named = {f"eval/{name}": value for name, value in values.items()}
        self.writer.scalars(named, iteration)
        if self.wandb is not None:
            self.wandb.log(named, iteration)

    def grids(self, iteration: int, split: str, images: tuple[torch.Tensor, ...]) -> None:
        """Samples of a trainer, as one grid for each direction.

        Args:
            iteration: the completed iterations.
            split: "train" or "test".
            images: what `shown_samples` gave, each [N, 1 or 3, H, W] in [-1, 1].
        """
        for direction, rows in split_samples(images):
            grid = (make_grid(rows) + 1).div(2).clamp(0, 1)
            self.writer.image(f"gen_{direction}_{split}", grid, iteration)
            if self.wandb is not None:
                self.wandb.image(f"gen_{direction}_{split}", grid, iteration)

    def close(self, failed: bool = False) -> None:
        """Finish the logs; `failed` marks the run as failed where a log knows of that."""
        try:
            self.writer.close(failed)
        finally:
            if self.wandb is not None:
                self.wandb.close(failed)


class _TensorBoard:
    """TensorBoard's writer, whose thread meets a full disk first and tells of it with a traceback."""

    def __init__(self, folder: Path, start: int) -> None:
        self.folder = folder
        self.writer = SummaryWriter(str(folder), purge_step=start + 1)
        self._report = threading.excepthook
        threading.excepthook = self._filter

    def _filter(self, failure: threading.ExceptHookArgs) -> None:
        # The next call, or close, raises the same in our own thread.
        if type(failure.thread).__name__ != "_AsyncWriterThread":
            self._report(failure)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self.folder, error) from None

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        with self._clear_errors():
            for name, value in values.items():
                self.writer.add_scalar(name, value, iteration)

    def image(self, name: str, grid: torch.Tensor, iteration: int) -> None:
        with self._clear_errors():
            self.writer.add_image(name, grid, iteration)

    def close(self, failed: bool) -> None:
        """Write what is left. Raises FileWriteError, unless the run `failed` anyway."""
        try:
            with suppress(FileWriteError) if failed else nullcontext(), self._clear_errors():
                self.writer.close()
        finally:
            threading.excepthook = self._report


class _Wandb:
    """One run there for one run here, over all its resumes: logs/<name>/wandb.json remembers which."""

    def __init__(self, folder: RunDirectory, config: Mapping[str, Any], project: str) -> None:
        self.library = import_wandb()
        note = folder.logs / "wandb.json"
        known = _read_json(note)
        try:
            self.run = self.library.init(
                project=project,
                name=folder.name,
                id=known.get("id"),
                resume="allow",
                dir=str(folder.logs),
                config=dict(config),
            )
        except Exception as error:  # no login, no network
            reason = " ".join(str(error).split()) or type(error).__name__
            raise LogError(
                f"--wandb {project}: {reason}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from None
        atomic_write_bytes(note, json.dumps({"id": self.run.id, "project": project}).encode())

    def log(self, values: Mapping[str, float], iteration: int) -> None:
        # The service leaves out steps that it has: a resumed run repeats them bit for bit, so none is lost.
        self.run.log(dict(values), step=iteration)

    def image(self, name: str, grid: torch.Tensor, iteration: int) -> None:
        pixels = (grid * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        self.run.log({name: self.library.Image(pixels)}, step=iteration)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=1 if failed else 0)


def split_samples(images: Sequence[torch.Tensor]) -> list[tuple[str, Sequence[torch.Tensor]]]:
    """Each direction's rows (input, reconstruction, translations), from what a trainer's `sample` returns."""
    half = len(images) // 2
    return [("a2b", images[:half]), ("b2a", images[half:])]


def shown_samples(images: Sequence[torch.Tensor], cfg: Config) -> tuple[torch.Tensor, ...]:
    """What a trainer's `sample` returns, with the channels that the configuration shows of each domain.

    Args:
        images: Each [N, C, H, W] in [-1, 1].
        cfg: Its show_channels_a and show_channels_b.

    Returns:
        Each [N, 1 or 3, H, W].
    """
    found = []
    for direction, rows in split_samples(images):
        source, target = direction.split("2")
        # The input and its reconstruction, then translations.
        domains = [source, source, *[target] * (len(rows) - 2)]
        found += [shown(row, getattr(cfg, f"show_channels_{domain}")) for row, domain in zip(rows, domains)]
    return tuple(found)


def write_grids(images: Sequence[torch.Tensor], folder: Path, postfix: str) -> list[Path]:
    """Write gen_a2b_<postfix>.jpg and gen_b2a_<postfix>.jpg, in the published layout.

    Args:
        images: what `shown_samples` gives, each [N, 1 or 3, H, W] in [-1, 1].
        folder: of the files.
        postfix: of their names.

    Returns:
        Their paths.
    """
    written = []
    for direction, rows in split_samples(images):
        path = folder / f"gen_{direction}_{postfix}.jpg"
        save_image(make_grid(rows), path)
        written.append(path)
    return written


def import_wandb() -> Any:
    """The package wandb. Raises LogError when it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise LogError(f"--wandb needs the package wandb ({error}): pip install wandb, or leave --wandb out") from None


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory this process has held: of the GPU's what tensors took, else resident in RAM. None: unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
