"""What rows say: for each case, ours beside the fastest baseline and the published algorithm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from munit_fast.bench.contenders import OURS, PUBLISHED
from munit_fast.bench.rows import Row


@dataclass(frozen=True)
class Summary:
    """One case on one machine."""

    rows: tuple[Row, ...]
    ours: Row | None  # the fastest of ours
    best_baseline: Row | None  # the fastest of all others
    published: Row | None  # the published algorithm as it is: eager NCHW float32
    leanest_baseline: Row | None  # the one of least memory, where that is known

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def speedup(self) -> float:
        """Over the fastest baseline: below 1 is a loss. Both must be there."""
        assert self.ours is not None and self.best_baseline is not None
        return self.best_baseline.p50 / self.ours.p50

    @property
    def over_published(self) -> float | None:
        return None if self.ours is None or self.published is None else self.published.p50 / self.ours.p50

    @property
    def memory(self) -> float | None:
        """Ours over the leanest baseline."""
        if self.ours is None or self.leanest_baseline is None:
            return None
        mine = [row.peak_bytes for row in self.rows if row.implementation == OURS and row.peak_bytes]
        assert self.leanest_baseline.peak_bytes is not None
        return min(mine) / self.leanest_baseline.peak_bytes if mine else None


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """One summary a case, in the order of the first rows."""
    order: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        order.setdefault(row.case, []).append(row)
    return [_summary(tuple(group)) for group in order.values()]


def _summary(rows: tuple[Row, ...]) -> Summary:
    mine = [row for row in rows if row.implementation == OURS]
    others = [row for row in rows if row.implementation != OURS]
    plain = [row for row in others if row.implementation == PUBLISHED and row.layout == "NCHW" and not row.graph]
    # Where the case's own dtype is fp32, its autocast is none; else the float32 contender stands beside.
    plain.sort(key=lambda row: row.precision != "fp32")
    lean = [row for row in others if row.peak_bytes]
    return Summary(
        rows,
        min(mine, key=lambda row: row.p50, default=None),
        min(others, key=lambda row: row.p50, default=None),
        plain[0] if plain else None,
        min(lean, key=lambda row: row.peak_bytes or 0, default=None),
    )


def by_machine(rows: Iterable[Row]) -> dict[tuple[str, str, int], list[Row]]:
    """Rows by (device, cpu, threads)."""
    key = lambda row: (row.device, row.cpu, row.threads)  # noqa: E731
    return {name: list(group) for name, group in groupby(sorted(rows, key=key), key)}
