"""What goes wrong in a run and does not end it: printed once, and appended to logs/<name>/events.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import Tensor

from munit_fast.data import UnpairedBatches
from munit_fast.io.atomic import write_error
from munit_fast.io.checkpoints import checkpoint_name, save_atomically
from munit_fast.train.distributed import Ranks
from munit_fast.train.nonfinite import WINDOW, in_a_row
from munit_fast.train.run_dir import RunDirectory
from munit_fast.train.run_state import run_state

_LINES = 20  # of one kind on the screen; the file has all
_NAMES = 8  # images of a domain that a line names
_CHECK = 50  # iterations after which a GPU is asked for its skipped steps, at the latest


class NotFiniteError(RuntimeError):
    """Step after step had a gradient that was not finite. The message says what would help."""


class EventLog:
    """The events of one run. Every rank has one; files are the main rank's."""

    def __init__(self, folder: RunDirectory, console: Console, ranks: Ranks, patience: int) -> None:
        if not 1 <= patience <= WINDOW:
            raise ValueError(f"--patience must be in 1..{WINDOW} iterations; got {patience}")
        self.folder, self.console, self.ranks, self.patience = folder, console, ranks, patience
        self._checked: int | None = None
        self._lines: dict[str, int] = {}

    def log(self, kind: str, message: str, **details: Any) -> None:
        """Print a message, and append it to the file with its details."""
        printed = self._lines[kind] = self._lines.get(kind, 0) + 1
        if printed <= _LINES:
            more = " (the rest: logs/events.jsonl)" if printed == _LINES else ""
            self.console.print(Text(message + more), soft_wrap=True)
        if self.ranks.main:
            self.folder.append_event({"kind": kind, "message": message, **details})

    def log_data(self, message: str) -> None:
        """An image was replaced or a loader started again: `UnpairedBatches`' report."""
        where = f"rank {self.ranks.rank}: " if self.ranks.size > 1 else ""
        self.log("data", where + message)

    def check_steps(self, trainer: Any, batches: UnpairedBatches, done: int, last: tuple[Any, ...], due: bool) -> None:
        """Report the iterations that took no step.

        Args:
            trainer: the trainer.
            batches: the run's batches, for the names of the images.
            done: completed iterations.
            last: images and noise of the last one, for the dump.
            due: whether losses are read after this iteration anyway.

        Raises:
            NotFiniteError: `patience` iterations in a row took none.
        """
        before = done - 1 if self._checked is None else self._checked
        if not (due or trainer.device.type == "cpu" or done - before >= _CHECK):
            self._checked = before
            return
        self._checked = done
        flags = trainer.skips.flags()
        for iteration in range(before + 1, done + 1):
            if flags[iteration - done - 1] and self.ranks.main:  # the gradients are the same on every rank
                names = [_names(listed) for listed in batches.names(iteration - 1)]
                self.log(
                    "skipped",
                    f"iteration {iteration}: the gradient was not finite, so no step was taken; A: {names[0]}; "
                    f"B: {names[1]}",
                    iteration=iteration,
                )
        count = in_a_row(flags)
        if count >= self.patience:
            dump = self._dump(trainer, batches, done, last)
            self.ranks.max(0)  # torchrun ends the others when one has failed: not before all have written
            more = f" (and …_rank1.pt to …_rank{self.ranks.size - 1}.pt: the other processes' part)"
            place = f"{dump}{more if self.ranks.size > 1 else ''}"
            raise NotFiniteError(
                f"{count} iterations in a row had a gradient that was not finite, up to iteration {done}; the weights "
                f"are as they were before. Look at the images that the log names, lower lr, or try --amp off; {place} "
                "holds weights, images and noise to repeat it with"
            )

    def _dump(self, trainer: Any, batches: UnpairedBatches, done: int, last: tuple[Any, ...]) -> Path:
        """Write this rank's part of the batch, the main rank the state beside it; the main rank's file."""
        x_a, x_b, (of_dis, of_gen) = last
        mine = slice(self.ranks.rank * len(x_a), (self.ranks.rank + 1) * len(x_a))
        names_a, names_b = (names[mine] for names in batches.names(done - 1))
        content = {
            **({"state": run_state(trainer, done)} if self.ranks.main else {}),
            "x_a": _cpu(x_a),
            "x_b": _cpu(x_b),
            "noise": {"dis": [_cpu(t) for t in of_dis], "gen": [_cpu(t) for t in of_gen]},
            "images": {"a": names_a, "b": names_b},
        }
        whole = self.folder.root / checkpoint_name("notfinite", done)
        path = whole if self.ranks.main else whole.with_stem(f"{whole.stem}_rank{self.ranks.rank}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # on a machine of its own another rank has none
            save_atomically(content, path)
        except OSError as error:
            raise write_error(path, error) from None
        return whole


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return shown if len(names) <= _NAMES else f"{shown} and {len(names) - _NAMES} more"
