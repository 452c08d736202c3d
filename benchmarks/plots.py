"""Plots of rows: speed-up bars, roofline, memory against resolution, iterations a second against batch."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from munit_fast.benchmarks.rows import Machine, Row
from munit_fast.benchmarks.summary import Summary, by_machine, complete
from munit_fast.io.atomic import atomic_write_bytes

ALT = {
    "speed": "Speed over the fastest baseline and over the published algorithm, case by case",
    "roofline": "Share of the measured matrix rate and copy speed that operations and networks reach",
    "memory": "Peak memory of a training iteration against resolution",
    "throughput": "Training images a second against batch size",
}
_log = logging.getLogger("munit_fast")
OURS_COLOUR, BASE_COLOUR, PUBLISHED_COLOUR = "#1f6f8b", "#e07a3f", "#9a9a9a"


def slug(name: str) -> str:
    """A device's or machine's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "").replace("(tm)", "")).strip("-")


def draw(rows: Sequence[Row], folder: Path) -> dict[Machine, dict[str, Path]]:
    """Draw what the rows allow, as PNG files named after the machine and the plot: {machine: {plot: path}}.

    Without matplotlib nothing is drawn, and that is logged.
    """
    try:
        import matplotlib
    except ImportError:
        _log.warning('no plots: they need matplotlib (pip install "munit-fast[bench]")')
        return {}
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Machine, dict[str, Path]] = {}
    for machine, mine in by_machine(rows).items():
        for name, plot in _PLOTS.items():
            figure = plot(complete(mine))
            if figure is None:
                continue
            path = folder / f"{slug(str(machine))}-{name}.png"
            data = io.BytesIO()
            figure.savefig(data, dpi=110, bbox_inches="tight", metadata={"Software": None})
            atomic_write_bytes(path, data.getvalue())
            written.setdefault(machine, {})[name] = path
    return written


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _speed(summaries: list[Summary]) -> Any:
    """Bars for all of MUNIT above the level of operations."""
    order = {"training": 0, "translation": 1, "network": 2, "block": 3}
    chosen = [s for s in summaries if s.first.level in order]
    if not chosen:
        return None
    chosen.sort(key=lambda s: (order[s.first.level], s.first.name, s.first.side, s.first.batch, s.first.dtype))
    figure, axes = _figure(9, 0.34 * len(chosen) + 1.2)
    for i, s in enumerate(chosen):
        over = s.over_published
        if over is not None:
            axes.barh(i - 0.19, over, 0.36, color=PUBLISHED_COLOUR)
            axes.text(over, i - 0.19, f" {over:.2f}", va="center", fontsize=7, color="#555")
        axes.barh(i + 0.19, s.speedup, 0.36, color=OURS_COLOUR if s.speedup >= 1 else BASE_COLOUR)
        axes.text(s.speedup, i + 0.19, f" {s.speedup:.2f}", va="center", fontsize=7, color="#222")
    what = {"translation": "translation "}
    labels = [
        f"{what.get(s.first.level, '')}{s.first.name}, {s.first.side}², batch {s.first.batch}, {s.first.dtype}"
        for s in chosen
    ]
    axes.set_yticks(range(len(chosen)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast")
    from matplotlib.patches import Patch

    handles = [
        Patch(color=PUBLISHED_COLOUR, label="over the published algorithm (eager NCHW fp32)"),
        Patch(color=OURS_COLOUR, label="over the fastest baseline"),
    ]
    if any(s.speedup < 1 for s in chosen):
        handles.append(Patch(color=BASE_COLOUR, label="slower than the fastest baseline"))
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside upper center", ncols=3)
    return figure


def _roofline(summaries: list[Summary]) -> Any:
    """What is bound by memory beside what is bound by arithmetic, each against its own measured ceiling."""
    moved = [s for s in summaries if s.ours and s.ours.share_of_copy and s.first.level == "op"]
    elsewhere = ("op", "accelerated", "exported")
    counted = [s for s in summaries if s.ours and s.ours.share_of_matrix and s.first.level not in elsewhere]
    if not moved or not counted:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
    markers = {"fp32": "o", "bf16": "s", "fp16": "^"}
    for s in moved:
        assert s.ours is not None and s.ours.bytes is not None
        best = max((r for r in s.rows if not r.ours), key=lambda r: r.share_of_copy or 0)
        for row, colour in ((best, BASE_COLOUR), (s.ours, OURS_COLOUR)):
            left.plot(row.bytes / 1e6, row.share_of_copy, markers[s.first.dtype], color=colour, alpha=0.7, ms=4)  # type: ignore[operator]
    left.set_xlabel("MB that must be moved")
    left.set_ylabel("share of the measured copy speed")
    left.set_title("operations (above 1: they fit in the caches)", fontsize=10)
    for s in counted:
        assert s.ours is not None
        assert s.best_baseline is not None
        for row, colour in ((s.best_baseline, BASE_COLOUR), (s.ours, OURS_COLOUR)):
            if row.flops is None:
                continue
            right.plot(row.flops / 1e9, row.share_of_matrix, markers[row.precision], color=colour, alpha=0.7, ms=5)
    right.set_xlabel("GFLOP, with direct convolutions")
    right.set_ylabel("share of the measured matrix rate")
    right.set_title("blocks, networks, iterations", fontsize=10)
    for marker, dtype, colour, label in (
        ("o", "fp32", OURS_COLOUR, "munit_fast"),
        ("o", "fp32", BASE_COLOUR, "fastest baseline"),
        ("o", "fp32", "#555", "fp32"),
        ("s", "bf16", "#555", "bf16"),
    ):
        if dtype in {s.first.dtype for s in moved + counted}:
            right.plot([], [], marker, color=colour, label=label, ms=5)
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside upper center", ncols=4)
    return figure


def _lines(summaries: list[Summary], x: str, y: Any, labels: tuple[str, str]) -> Any:
    """A line for ours and for the best baseline of each dtype, over cases that differ in `x` alone."""
    figure, axes = _figure(6.5, 3.8)
    drawn = False
    fixed = "batch" if x == "side" else "side"
    groups: dict[tuple[int, int, str], list[Summary]] = {}
    for s in summaries:
        if s.first.level == "training":
            groups.setdefault((getattr(s.first, fixed), s.first.channels, s.first.dtype), []).append(s)
    styles = iter(("-", "--", ":", "-.", (0, (1, 3))))
    for (value, _, dtype), chosen in sorted(groups.items()):
        points = sorted({getattr(s.first, x) for s in chosen})
        if len(points) < 2:
            continue
        style = next(styles, "-")
        size = f"batch {value}" if fixed == "batch" else f"{value}²"
        chosen.sort(key=lambda s: getattr(s.first, x))
        for ours, colour, who in ((True, OURS_COLOUR, "munit_fast"), (False, BASE_COLOUR, "best baseline")):
            pairs = [(getattr(s.first, x), y(s, ours)) for s in chosen]
            pairs = [(a, b) for a, b in pairs if b is not None]
            if len(pairs) > 1:
                axes.plot(*zip(*pairs), "o", linestyle=style, color=colour, label=f"{who}, {size}, {dtype}", ms=4)
                drawn = True
    if not drawn:
        return None
    axes.set_xticks(sorted({getattr(s.first, x) for s in summaries if s.first.level == "training"}))
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _memory(summaries: list[Summary]) -> Any:
    def peak(s: Summary, ours: bool) -> float | None:
        found = [r.peak_bytes for r in s.rows if r.ours == ours and r.peak_bytes]
        return min(found) / 1e6 if found else None

    return _lines(summaries, "side", peak, ("side of the images, pixels", "peak memory of an iteration, MB"))


def _throughput(summaries: list[Summary]) -> Any:
    def rate(s: Summary, ours: bool) -> float | None:
        row = s.ours if ours else s.best_baseline
        return None if row is None else s.first.batch / row.seconds

    return _lines(summaries, "batch", rate, ("batch", "images of each domain a second"))


_PLOTS = {"speed": _speed, "roofline": _roofline, "memory": _memory, "throughput": _throughput}
