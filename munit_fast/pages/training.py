"""The page of a training: `index.html` in the run's folder, which shows grids, losses and what the run does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.pages import charts
from munit_fast.pages.charts import Curve
from munit_fast.pages.render import render

_GRID_NAME = re.compile(r"gen_(?P<way>a2b|b2a)_(?P<set>train|test)_(?P<when>\d{8}|current)\.jpg")


@dataclass(frozen=True)
class TrainingStatus:
    """Where a training stands.

    Attributes:
        iteration: Iterations done.
        max_iter: Iterations in all.
        iterations_per_second: None where it is not known yet.
        seconds_left: None where it is not known.
        stopped: It ended before it was finished.
        early: It ended since nothing got better any more.
    """

    iteration: int
    max_iter: int
    iterations_per_second: float | None = None
    seconds_left: float | None = None
    stopped: bool = False
    early: bool = False

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.iteration >= self.max_iter


def write_training_page(
    folder: Path,
    *,
    title: str,
    images: Mapping[int, Sequence[str]],
    losses: Mapping[str, Curve],
    status: TrainingStatus,
    current: Sequence[str] = (),
    refresh_seconds: int | None = None,
    run: Mapping[str, Curve] | None = None,
    metrics: Mapping[str, Curve] | None = None,
    metric_errors: Mapping[str, Curve] | None = None,
    best: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder/index.html` for a running or finished training; the file is replaced as a whole.

    Args:
        folder: Of the run.
        title: Name of the run.
        images: By iteration, grid files relative to `folder`, as images/gen_a2b_test_00010000.jpg (`find_grids`
            collects them); the newest iteration stands open on the page, older ones are folded.
        losses: Points by logged name; losses that are zero throughout are left out.
        status: Where the training stands.
        current: Grid files of the running iteration.
        refresh_seconds: How often the browser reloads the page until the training is finished.
        run: Points of learning_rate, iterations_per_second, memory_mb, …; the newest values stand at the top.
        metrics: Points of kid_a2b, overfitting_a, … of evaluations on test images.
        metric_errors: Their standard errors, of those that have one.
        best: The best evaluation: "metric", "value", "stderr", "iteration" and "checkpoint", a file name or None.

    Returns:
        The page's path.

    Raises:
        ValueError: A grid file lies outside `folder`.
        FileWriteError: The page cannot be written.
    """
    groups = [
        {"iteration": iteration, "grids": [_grid(name) for name in images[iteration]]}
        for iteration in sorted(images, reverse=True)
        if images[iteration]
    ]
    page = render(
        "training.html.j2",
        title=title,
        status=status,
        current=[_grid(name) for name in current],
        groups=groups,
        charts=charts.charts(losses),
        metric_charts=charts.charts(metrics or {}, charts.METRIC_GROUPS, metric_errors or {}),
        best=best,
        run_charts=charts.charts(run or {}, charts.RUN_GROUPS),
        newest={name: curve[-1][1] for name, curve in (run or {}).items() if curve},
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        refresh=None if status.finished else refresh_seconds,
    )
    target = Path(folder) / "index.html"
    atomic_write_bytes(target, page.encode())
    return target


def find_grids(folder: Path) -> dict[int, list[str]]:
    """The saved grids under `folder`/images by iteration, as `write_training_page` takes them."""
    found: dict[int, list[str]] = {}
    for path in sorted((Path(folder) / "images").glob("gen_*.jpg")):
        match = _GRID_NAME.fullmatch(path.name)
        if match and match["when"] != "current":
            found.setdefault(int(match["when"]), []).append(f"images/{path.name}")
    return found


def _grid(name: str) -> dict[str, str]:
    """Address and caption of a grid file, given relative to the page."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"grid file {name!r}: give a path inside the page's folder, relative to it")
    match = _GRID_NAME.fullmatch(path.name)
    caption = path.name
    if match:
        source, target = match["way"].upper().split("2")
        caption = f"{source} → {target}, {'training' if match['set'] == 'train' else 'test'} images"
    return {"src": quote(str(path)), "caption": caption}
