"""What changed between two sets of rows, and by how much more than the noise."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

from munit_fast.bench.contenders import OURS
from munit_fast.bench.rows import Row
from munit_fast.bench.summary import Summary, summarize


@dataclass(frozen=True)
class Change:
    """One case of ours, before and after.

    ratio: how much faster it became (above 1) against the fastest baseline of its own run, which takes a busier machine
    out; where a side has no baseline, the plain times are compared and `relative` is False. noise: the ratio that
    the spreads of the four times explain (20th to 80th percentile, combined).
    """

    case: Row
    before: float  # seconds
    after: float
    ratio: float
    noise: float
    relative: bool

    @property
    def beyond_noise(self) -> float:
        """|log ratio| in units of the noise; above 1 is more than noise."""
        return abs(log(self.ratio)) / max(log(self.noise), 1e-9)

    @property
    def verdict(self) -> str:
        if self.beyond_noise <= 1:
            return "within the noise"
        return "faster" if self.ratio > 1 else "slower"


def compare(before: list[Row], after: list[Row]) -> list[Change]:
    """Every case of ours in both, the largest change beyond the noise first. Cases in one alone are left out.

    Rows of another machine are never compared. Raises ValueError where nothing can be compared.
    """
    old = {summary.first.case: summary for summary in summarize(before)}
    changes = []
    for summary in summarize(after):
        earlier = old.get(summary.first.case)
        if earlier is not None and earlier.ours is not None and summary.ours is not None:
            changes.append(_change(earlier, summary))
    if not changes:
        raise ValueError("no case was measured on the same machine on both sides")
    return sorted(changes, key=lambda change: -change.beyond_noise)


def _change(before: Summary, after: Summary) -> Change:
    assert before.ours is not None and after.ours is not None
    common = {row.who for row in before.rows} & {row.who for row in after.rows}
    pairs = [
        (next(r for r in before.rows if r.who == who), next(r for r in after.rows if r.who == who))
        for who in common
        if who[0] != OURS
    ]
    ratio = before.ours.p50 / after.ours.p50
    spreads = [_spread(before.ours), _spread(after.ours)]
    if pairs:  # the steadiest baseline says how fast the machine was
        a, b = min(pairs, key=lambda pair: _spread(pair[0]) + _spread(pair[1]))
        ratio *= b.p50 / a.p50
        spreads += [_spread(a), _spread(b)]
    noise = sqrt(sum(s**2 for s in spreads))
    return Change(after.ours, before.ours.p50, after.ours.p50, ratio, 2.718281828459045**noise, bool(pairs))


def _spread(row: Row) -> float:
    """Half the distance of the percentiles, as a log ratio, and at least half a percent."""
    return max(log(row.p80 / row.p20) / 2, 0.005)
