"""Whether rows of this GPU switch on a row of the table that `impl="auto"` follows.

`make gpu-check` writes the file; `munit_fast.ops.backends.registry` reads it where it lies beside that module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import geometric_mean
from typing import Any

from munit_fast.benchmarks.cases import EPILOGUES
from munit_fast.benchmarks.contenders import OURS
from munit_fast.benchmarks.rows import Row

SWITCH = "clusters"  # of munit_fast.ops.backends.registry
LEAST_GAIN = 1.02  # the same kernel timed twice differs by about a percent: less than this is no gain
LEAST_RATIO = 0.9  # of any case: what is clearly slower somewhere is no default, whatever the mean
NAMES = tuple(name for name in EPILOGUES if name.startswith(("instance", "adain")))  # both are norm "instance"
_MODES, _L2 = ("forward", "backward"), ("warm", "cold")
_TRITON, _CUDA = f"{OURS} triton", f"{OURS} cuda"


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """What the file says: the GPU, where its rows come from, what is switched on, and the ratios behind that.

    Compared is what the GPU does, channels_last and in a CUDA graph, in the newest run of each case that timed both. A
    ratio is Triton's time over that of CUDA C++. Nothing is switched on where a case is missing or has no time.

    Args:
        rows: at least one; those of the newest run's GPU, commit and torch count.
    """
    newest = max(rows, key=lambda row: row.run)
    provenance = ("device", "commit", "torch")
    mine = [row for row in rows if _counts(row) and all(getattr(row, n) == getattr(newest, n) for n in provenance)]
    ratios = _ratios([row for row in mine if row.failure is None])
    timed = {(row.name, row.mode, row.l2) for row in ratios}
    missing = [case for case in product(NAMES, _MODES, _L2) if case not in timed]
    failed = [row for row in mine if row.implementation == _CUDA and row.failure is not None]
    mean = geometric_mean(ratios.values()) if ratios else math.inf
    worst = min(ratios.values(), default=math.inf)
    against = [f"{row.name} {row.mode} {row.shape} {row.dtype}: {row.failure}" for row in failed]
    against += [f"{' '.join(case)} L2 was not measured" for case in missing]
    against += [f"the geometric mean, {mean:.3f}, is not above {LEAST_GAIN}"] if mean <= LEAST_GAIN else []
    against += [f"the worst case, {worst:.3f}, is below {LEAST_RATIO}"] if worst < LEAST_RATIO else []
    cases = {f"{r.name} {r.mode} {r.shape} {r.dtype}, {r.l2} L2": round(ratio, 4) for r, ratio in ratios.items()}
    return {
        "measured_on": newest.device,
        "date": newest.date,
        "commit": newest.commit,
        "torch": newest.torch,
        "switched_on": [] if against else [SWITCH],
        "against": against,
        "ratios": {"geometric_mean": round(mean, 4), "worst": round(worst, 4), "cases": cases} if ratios else {},
    }


def _counts(row: Row) -> bool:
    is_compared = row.level == "op" and row.name in NAMES and row.mode in _MODES and row.layout == "channels_last"
    was_run = row.graph or row.failure is not None  # what failed was not captured
    return is_compared and was_run and row.cuda is not None


def _ratios(rows: Sequence[Row]) -> dict[Row, float]:
    """Triton's time over that of CUDA C++, by the row of the latter."""
    triton = {(row.case, row.run): row for row in rows if row.implementation == _TRITON}
    found: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row.run):
        if row.implementation == _CUDA and (row.case, row.run) in triton:
            found[row.case] = row
    return {row: triton[row.case, row.run].seconds / row.seconds for row in found.values()}
