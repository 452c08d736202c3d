"""The progress of a run: a live bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

_LINE_SECONDS = 15.0
_WINDOW_SECONDS = 30.0


def format_seconds(seconds: float) -> str:
    """ "1:02:03", or "2:03" under an hour."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Speedometer:
    """Iterations per second over the last half minute, and the time left at that speed."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []
        self._pause, self._every = 0.0, 1

    def update(self, iteration: int) -> None:
        """Note that `iteration` iterations are done now."""
        now = time.monotonic()
        self._marks.append((now, iteration))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW_SECONDS:
            self._marks.pop(0)

    def leave_out(self, seconds: float, every: int) -> None:
        """Something else took `seconds` just now, and comes again after each `every` iterations."""
        self._marks = [(moment + seconds, iteration) for moment, iteration in self._marks]
        self._pause, self._every = seconds, every

    @property
    def speed(self) -> float:
        """Iterations a second; 0 where it is not known yet."""
        if len(self._marks) < 2:
            return 0.0
        (t0, i0), (t1, i1) = self._marks[0], self._marks[-1]
        return (i1 - i0) / (t1 - t0) if t1 > t0 else 0.0

    def seconds_left(self, iteration: int, max_iter: int) -> float | None:
        """The seconds that the iterations left will take, and what comes between them; None: not known yet."""
        pauses = max_iter // self._every - iteration // self._every
        return (max_iter - iteration) / self.speed + pauses * self._pause if self.speed > 0 else None


class TrainingProgress:
    """Shows iterations, it/s, losses and time left; a context manager."""

    def __init__(self, console: Console, iteration: int, max_iter: int, deadline: float | None = None) -> None:
        self.console, self.max_iter = console, max_iter
        self.deadline = deadline  # on time.monotonic()
        self.speedometer = Speedometer()
        self.speedometer.update(iteration)
        self._next_line = time.monotonic() + _LINE_SECONDS
        self._losses = ""
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TextColumn("{task.fields[losses]}", style="cyan"),
                TimeElapsedColumn(),
                TextColumn("left {task.fields[left]}"),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task(
                "training", total=max_iter, completed=iteration, speed="", losses="", left="?"
            )

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def losses(self, values: Mapping[str, float]) -> None:
        """Take the newest losses to show."""
        short = {"G": "loss_gen_total", "D": "loss_dis_total"}
        self._losses = " ".join(f"{key} {values[name]:.2f}" for key, name in short.items() if name in values)
        recon = [values[name] for name in ("loss_gen_recon_x_a", "loss_gen_recon_x_b") if name in values]
        if recon:
            self._losses += f" recon {sum(recon) / len(recon):.3f}"

    def advance(self, iteration: int) -> None:
        """One iteration is done."""
        self.speedometer.update(iteration)
        speed = f"{self.speedometer.speed:.2f} it/s"
        seconds = self.speedometer.seconds_left(iteration, self.max_iter)
        if self.deadline is not None:
            remaining = max(0.0, self.deadline - time.monotonic())
            seconds = remaining if seconds is None else min(seconds, remaining)
        left = "?" if seconds is None else format_seconds(seconds)
        if self._bar is not None:
            self._bar.update(self._task, completed=iteration, speed=speed, losses=self._losses, left=left)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            self.console.print(Text(f"{iteration}/{self.max_iter}  {speed}  {self._losses}  left {left}"))


@contextmanager
def compilation_progress(console: Console, name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for the kernels that are compiled, in a terminal; it is gone when they are.

    Args:
        console: where it is shown.
        name: of the GPU.

    Yields:
        A function to call with the kernels that are done and all of them.
    """
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, expand=True, transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, description=f"compiling {total} kernels for {name}", completed=done, total=total)

        yield report
