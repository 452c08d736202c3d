"""What changed between two sets of rows, and by how much more than the noise."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, pvariance

from munit_fast.benchmarks.rows import Row
from munit_fast.benchmarks.summary import Summary, summarize


@dataclass(frozen=True)
class Change:
    """One case of ours, before and after.

    ratio: how much faster it became (above 1) beside the baselines that both runs have, which takes a busier machine
    out; without any, the plain times are compared and `relative` is False. noise: the ratio that the spreads of our
    times and the scatter of the baselines explain.
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
        """ "faster", "slower" or "within the noise"."""
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
    old = {row.contender: row for row in before.rows if not row.ours}
    new = {row.contender: row for row in after.rows if not row.ours}
    # How much slower the machine was, as each common baseline saw it.
    drifts = [log(new[who].seconds / old[who].seconds) for who in old if who in new]
    shift = log(before.ours.seconds / after.ours.seconds)
    variance = _spread(before.ours) ** 2 + _spread(after.ours) ** 2
    if drifts:
        shift += fmean(drifts)
        # One baseline says nothing of the scatter between runs; its own spread stands in.
        alone = [_spread(old[who]) ** 2 + _spread(new[who]) ** 2 for who in old if who in new]
        variance += max(pvariance(drifts), fmean(alone) / len(alone))
    return Change(after.ours, before.ours.seconds, after.ours.seconds, exp(shift), exp(sqrt(variance)), bool(drifts))


def _spread(row: Row) -> float:
    """Half the distance of the percentiles, as a log ratio, and at least half a percent."""
    assert row.p20 is not None and row.p80 is not None
    return max(log(row.p80 / row.p20) / 2, 0.005)
