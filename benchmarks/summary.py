"""Rows case by case: ours beside the fastest baseline and the published algorithm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from munit_fast.benchmarks.contenders import OURS, PUBLISHED
from munit_fast.benchmarks.rows import Machine, Row


@dataclass(frozen=True)
class Summary:
    """One case on one machine, in one run."""

    rows: tuple[Row, ...]  # with a time
    failed: tuple[Row, ...]
    ours: Row | None  # the faster layout of what impl="auto" takes
    best_baseline: Row | None  # the fastest of all others
    published: Row | None  # the published algorithm as it is: eager NCHW, float32 where that was measured
    leanest_baseline: Row | None  # the one of least memory, where that is known

    @property
    def first(self) -> Row:
        """Any row of the case: the first."""
        return (*self.rows, *self.failed)[0]

    @property
    def complete(self) -> bool:
        """Whether ours and a baseline were both timed."""
        return self.ours is not None and self.best_baseline is not None

    @property
    def speedup(self) -> float:
        """Over the fastest baseline: below 1 is a loss. The summary must be complete."""
        assert self.ours is not None and self.best_baseline is not None
        return self.best_baseline.seconds / self.ours.seconds

    @property
    def over_published(self) -> float | None:
        """The published algorithm's time over ours; None where one of them was not timed."""
        return None if self.ours is None or self.published is None else self.published.seconds / self.ours.seconds

    @property
    def memory(self) -> float | None:
        """Ours over the leanest baseline, beyond weights and moments."""
        mine = [row.peak_bytes for row in self.rows if row.implementation == OURS and row.peak_bytes]
        if self.leanest_baseline is None or not mine:
            return None
        assert self.leanest_baseline.peak_bytes is not None
        return min(mine) / self.leanest_baseline.peak_bytes


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """One summary a case, in the order of the first rows: of the newest run that timed ours and the most baselines.

    Times of two runs are never set against each other, and a later run that lacks a baseline does not hide it.
    """
    order: dict[tuple[object, ...], dict[str, list[Row]]] = {}
    for row in rows:
        order.setdefault(row.case, {}).setdefault(row.run, []).append(row)
    found = []
    for runs in order.values():
        summaries = [_summary(runs[name]) for name in sorted(runs, reverse=True)]
        found.append(max(summaries, key=lambda s: (s.complete, len({row.contender for row in s.rows if not row.ours}))))
    return found


def complete(rows: Iterable[Row]) -> list[Summary]:
    """Those that have ours and a baseline."""
    return [summary for summary in summarize(rows) if summary.complete]


def _summary(rows: list[Row]) -> Summary:
    timed = tuple(row for row in rows if row.failure is None)
    mine = [row for row in timed if row.implementation == OURS]
    others = [row for row in timed if not row.ours]
    plain = [row for row in others if row.implementation == PUBLISHED and row.layout == "NCHW" and not row.graph]
    plain.sort(key=lambda row: row.precision != "fp32")
    lean = [row for row in others if row.peak_bytes]
    return Summary(
        timed,
        tuple(row for row in rows if row.failure is not None),
        min(mine, key=lambda row: row.seconds, default=None),
        min(others, key=lambda row: row.seconds, default=None),
        plain[0] if plain else None,
        min(lean, key=lambda row: row.peak_bytes or 0, default=None),
    )


def by_machine(rows: Iterable[Row]) -> dict[Machine, list[Row]]:
    """Rows by the machine that they were measured on."""
    found: dict[Machine, list[Row]] = {}
    for row in sorted(rows, key=lambda row: str(row.machine)):
        found.setdefault(row.machine, []).append(row)
    return found
