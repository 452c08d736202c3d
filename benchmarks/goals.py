"""What a GPU is to reach, held to rows: met or missed, and by how much. What has no row is not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean
from typing import Any, NamedTuple

from munit_fast.benchmarks.cases import DTYPES, EPILOGUES
from munit_fast.benchmarks.contenders import COMPILED, OURS, PUBLISHED
from munit_fast.benchmarks.rows import Row

DEFINED_FOR = "H200"  # part of the device's name; times and shares of another GPU say nothing about these goals
ITERATION_MS = {1: 7.0, 4: 18.0, 8: 33.0}  # by batch: 256², bf16, in a CUDA graph
COPY_SHARES = {"forward": 0.85, "backward": 0.75}  # of an epilogue on LARGE, with a cold L2
LARGE = 64 * 10**6  # bytes of x: more than an L2 holds
OVER_COMPILE, WORST_OVER_COMPILE = 1.2, 0.95  # over the fastest torch.compile, all epilogue cases
MEMORY = 0.5  # of eager autocast's peak beyond weights and moments, in an iteration


class Figure(NamedTuple):
    """A measured value, and the case it comes from."""

    value: float
    case: str


@dataclass(frozen=True)
class Verdict:
    """One goal and what became of it.

    Attributes:
        goal: What is asked.
        at_most: Whether the limit is an upper one.
        limit: In `unit`.
        unit: "ms", "×" or "of copy speed".
        value: What was measured; None: nothing.
        case: That the value comes from.
    """

    goal: str
    at_most: bool
    limit: float
    unit: str
    value: float | None
    case: str | None

    @property
    def verdict(self) -> str:
        """ "met", "missed" or "not measured"."""
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.limit if self.at_most else self.value >= self.limit) else "missed"

    @property
    def by(self) -> float | None:
        """How far the value is from the limit, as a part of the limit; positive on the good side."""
        if self.value is None:
            return None
        return (self.limit - self.value if self.at_most else self.value - self.limit) / self.limit

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        rounded = {
            name: None if value is None else float(f"{value:.4g}")
            for name, value in (("value", self.value), ("by", self.by))
        }
        return asdict(self) | rounded | {"verdict": self.verdict}


def is_defined_for(device: str) -> bool:
    """Whether the goals are about this GPU."""
    return DEFINED_FOR in device


def assess(rows: Sequence[Row]) -> list[Verdict]:
    """Every goal beside the rows of the newest run's device, commit and torch.

    Args:
        rows: of any machines. Those of a device that the goals are not defined for leave every goal without a value.
    """
    rows = _newest(rows)
    found = []
    for batch, limit in ITERATION_MS.items():
        goal = f"training iteration, 256², batch {batch}, bf16, in a CUDA graph"
        found.append(_verdict(goal, True, limit, "ms", _iteration_ms(rows, batch)))
    for mode, limit in COPY_SHARES.items():
        goal = f"epilogue {mode}, x of at least {LARGE // 10**6} MB, cold L2: the worst"
        found.append(_verdict(goal, False, limit, "of copy speed", _copy_share(rows, mode)))
    ratios = _over_compile(rows)
    mean = Figure(geometric_mean(f.value for f in ratios), f"{len(ratios)} cases") if ratios else None
    goal = "epilogues over the fastest torch.compile"
    found.append(_verdict(f"{goal}: geometric mean", False, OVER_COMPILE, "×", mean))
    found.append(_verdict(f"{goal}: the worst", False, WORST_OVER_COMPILE, "×", min(ratios, default=None)))
    for batch in ITERATION_MS:
        goal = f"peak memory of an iteration, batch {batch}, bf16, beside eager autocast"
        found.append(_verdict(goal, True, MEMORY, "×", _memory(rows, batch)))
    return found


def _verdict(goal: str, at_most: bool, limit: float, unit: str, figure: Figure | None) -> Verdict:
    return Verdict(goal, at_most, limit, unit, *(figure or (None, None)))


def _newest(rows: Sequence[Row]) -> list[Row]:
    """The rows with a time that the goals are held to."""
    if not rows:
        return []
    newest = max(rows, key=lambda row: row.run)
    if not is_defined_for(newest.device):
        return []
    names = ("device", "commit", "torch")
    mine = [row for row in rows if all(getattr(row, name) == getattr(newest, name) for name in names)]
    return [row for row in mine if row.failure is None]


def _runs(rows: Sequence[Row], level: str, needed: Sequence[Callable[[Row], bool]]) -> list[list[Row]]:
    """The rows of each case of a level, in the newest run that has one of each kind needed."""
    cases: dict[tuple[object, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if row.level == level:
            cases.setdefault(row.case, {}).setdefault(row.run, []).append(row)
    found = []
    for runs in cases.values():
        whole = [name for name, mine in runs.items() if all(any(map(is_kind, mine)) for is_kind in needed)]
        found += [runs[max(whole)]] if whole else []
    return found


def _title(row: Row) -> str:
    return f"{row.name} {row.mode} {row.shape} {row.dtype}" + (f", {row.l2} L2" if row.level == "op" else "")


def _is_ours(row: Row) -> bool:
    return row.implementation == OURS


def _is_compiled(row: Row) -> bool:
    return row.implementation in COMPILED


def _iterations(rows: Sequence[Row], batch: int, needed: Sequence[Callable[[Row], bool]]) -> list[Row]:
    """Those of the published size, in bfloat16; [] where they were not measured."""
    for mine in _runs(rows, "training", needed):
        row = mine[0]
        if (row.name, row.side, row.channels, row.batch, row.dtype) == ("MUNIT iteration", 256, 64, batch, "bf16"):
            return mine
    return []


def _iteration_ms(rows: Sequence[Row], batch: int) -> Figure | None:
    def counts(row: Row) -> bool:
        return _is_ours(row) and row.graph

    mine = [row for row in _iterations(rows, batch, [counts]) if counts(row)]
    return min((Figure(row.seconds * 1e3, _title(row)) for row in mine), default=None)


def _memory(rows: Sequence[Row], batch: int) -> Figure | None:
    """Ours over the leaner layout of the published updates under autocast, eager: a graph's memory is its pool's."""

    def ours(row: Row) -> bool:
        return _is_ours(row) and not row.graph and bool(row.peak_bytes)

    def autocast(row: Row) -> bool:
        is_eager = row.implementation == PUBLISHED and not row.graph
        return is_eager and row.precision == row.dtype and bool(row.peak_bytes)

    mine = _iterations(rows, batch, [ours, autocast])
    if not mine:
        return None
    least = [min(row.peak_bytes or 0 for row in mine if is_kind(row)) for is_kind in (ours, autocast)]
    return Figure(least[0] / least[1], _title(mine[0]))


def _epilogues(rows: Sequence[Row], needed: Sequence[Callable[[Row], bool]]) -> list[list[Row]]:
    return [mine for mine in _runs(rows, "op", needed) if mine[0].name in EPILOGUES]


def _copy_share(rows: Sequence[Row], mode: str) -> Figure | None:
    """That of the case with the smallest one; each in the faster layout, and without the host's time, in a graph."""

    def counts(row: Row) -> bool:
        size = row.batch * row.channels * row.side**2 * DTYPES[row.dtype].itemsize
        is_large = size >= LARGE and row.l2 == "cold"
        return _is_ours(row) and row.graph and row.mode == mode and is_large and row.share_of_copy is not None

    best = []
    for mine in _epilogues(rows, [counts]):
        best.append(max(Figure(row.share_of_copy or 0.0, _title(row)) for row in mine if counts(row)))
    return min(best, default=None)


def _over_compile(rows: Sequence[Row]) -> list[Figure]:
    """The fastest torch.compile over ours, both in the faster layout, eager or in a graph."""
    found = []
    for mine in _epilogues(rows, [_is_ours, _is_compiled]):
        ours, theirs = (min(row.seconds for row in mine if is_kind(row)) for is_kind in (_is_ours, _is_compiled))
        found.append(Figure(theirs / ours, _title(mine[0])))
    return found


def page(device: str, verdicts: Sequence[Verdict], not_measured: Sequence[str], choice: dict[str, Any] | None) -> str:
    """A page on the goals, on what was not measured and on the choice of a backend, as Markdown.

    Args:
        device: the one that was measured.
        verdicts: of `assess`.
        not_measured: the cases that the time was too short for.
        choice: of `backend_choice.choose`; None: there are no rows.
    """
    parts = [f"# Goals on {device}"]
    if not is_defined_for(device):
        parts.append(f"The goals are defined for the NVIDIA {DEFINED_FOR}; this is {device}, so none is held to them.")
    lines = ["| goal | limit | measured | verdict | case |", "| --- | --- | --- | --- | --- |"]
    for v in verdicts:
        limit = f"{'≤' if v.at_most else '≥'} {v.limit:g} {v.unit}"
        value = "–" if v.value is None else f"{v.value:.3g} {v.unit}"
        by = "" if v.by is None else f" by {abs(v.by):.1%}"
        lines.append(f"| {v.goal} | {limit} | {value} | {v.verdict}{by} | {v.case or '–'} |")
    parts.append("\n".join(lines))
    if not_measured:
        named = "\n".join(f"- {name}" for name in not_measured)
        parts.append(f"## Not measured\n\nCases without a row, {len(not_measured)} in all:\n\n{named}")
    else:
        parts.append("## Not measured\n\nEvery case has rows.")
    if choice is not None:
        named = ", ".join(choice["switched_on"]) or "nothing"
        against = "".join(f"\n- {reason}" for reason in choice["against"])
        parts.append(f"## Choice of a backend\n\n`measured.json` switches on: {named}.{against and chr(10)}{against}")
    return "\n\n".join(parts) + "\n"
