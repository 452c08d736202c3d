"""The evaluations of a run as rows, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from munit_fast.evaluate import Evaluation

HIGHER = (
    "ssim",
    "line_f1",
    "diversity",
    "coverage",
    "distinct_hues",
    "fill",
)  # of METRICS, those of which more is better
_WAYS = ("a2b", "b2a")

Curves = dict[str, list[tuple[int, float]]]


class History:
    """What evaluations measured, and the best by one metric.

    Only rows of this metric on these pictures count for the best: another choice begins anew.

    Args:
        rows: Of earlier sessions, as `row` makes them, in order.
        metric: The configuration's `eval_metric`.
        digest: Tells pictures and styles from others.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], metric: str, digest: str) -> None:
        self.rows, self.metric, self.digest = list(rows), metric, digest

    def row(self, iteration: int, values: Mapping[str, float], stderr: Mapping[str, float]) -> dict[str, Any]:
        """An evaluation as a row, with the value of the metric that chooses the best.

        Raises:
            ValueError: The metric is not among the values.
        """
        found = values_of(self.metric, values)
        if not found:
            raise ValueError(f"eval_metric: {self.metric} was not measured")
        mean = {self.metric: sum(found.values()) / len(found)}
        errors = [stderr[name] for name in found if name in stderr]
        error = {self.metric: math.hypot(*errors) / len(found)} if len(errors) == len(found) else {}
        about = {"iteration": iteration, "metric": self.metric, "pictures": self.digest}
        return about | {"values": {**values, **mean}, "stderr": {**stderr, **error}}

    def add(self, row: Mapping[str, Any]) -> bool:
        """Take in a row; whether it is the best so far."""
        self.rows.append(row)
        return self.best is row

    def has(self, iteration: int) -> bool:
        """Whether this metric was measured on these pictures after an iteration."""
        return any(row["iteration"] == iteration for row in self._comparable())

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The best row, of equal ones the first; None without any."""
        sign = -1 if self.metric.startswith(HIGHER) else 1
        return min(self._comparable(), key=lambda row: sign * row["values"][self.metric], default=None)

    @property
    def since_best(self) -> int:
        """How many evaluations came after the best one."""
        rows = self._comparable()
        return len(rows) - 1 - rows.index(self.best) if rows else 0  # type: ignore[arg-type]

    def curves(self, part: str = "values") -> Curves:
        """The "values" or the "stderr" of all rows, {name: [(iteration, value), …]}."""
        found: Curves = {}
        for row in self.rows:
            for name, value in row[part].items():
                found.setdefault(name, []).append((row["iteration"], value))
        return found

    def _comparable(self) -> list[Mapping[str, Any]]:
        return [row for row in self.rows if (row["metric"], row["pictures"]) == (self.metric, self.digest)]


def values_of(metric: str, values: Mapping[str, float]) -> dict[str, float]:
    """The values that a metric is the mean of: "kid" of "kid_a2b" and "kid_b2a", as far as they are there."""
    names = (metric, *(f"{metric}_{way}" for way in _WAYS))
    return {name: values[name] for name in names if name in values}


def scores_of(found: Evaluation) -> tuple[dict[str, float], dict[str, float]]:
    """The finite values of an evaluation and their standard errors: "kid_a2b" for its row "a_to_b.kid_e3"."""
    values, stderr = {}, {}
    for entry in found.entries:
        direction, _, key = entry.key.partition(".")
        name = f"{key.removesuffix('_e3')}_{direction.replace('_to_', '2')}"
        if math.isfinite(entry.value):
            values[name] = entry.value
            if entry.stderr is not None and math.isfinite(entry.stderr):
                stderr[name] = entry.stderr
    return values, stderr


def shown(row: Mapping[str, Any], name: str) -> str:
    """ "kid_a2b 21.3 ± 1.2"."""
    value, error = row["values"][name], row["stderr"].get(name)
    return f"{name} {value:.3g}" + (f" ± {error:.2g}" if error is not None else "")
