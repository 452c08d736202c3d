"""What is switched on for a GPU by its rows; made up here, and never to be committed."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from helpers.bench import row
from munit_fast.benchmarks import SETS
from munit_fast.benchmarks.backend_choice import LEAST_GAIN, LEAST_RATIO, NAMES, SWITCH, choose
from munit_fast.benchmarks.rows import Row
from munit_fast.ops.backends import registry

CASES = list(product(NAMES, ("forward", "backward"), ("warm", "cold")))


def pair(gain: float, name: str = NAMES[0], mode: str = "forward", l2: str = "warm", **changes: Any) -> list[Row]:
    """Rows of Triton and of CUDA C++, the latter faster by `gain`."""
    shared: dict[str, Any] = {"name": name, "mode": mode, "l2": l2, "dtype": "bf16", "graph": True}
    shared |= {"device": "NVIDIA X", "cuda": "13.0", "run": "2"} | changes
    found = []
    for implementation, seconds in (("munit_fast triton", 1.0), ("munit_fast cuda", 1 / gain)):
        found.append(row(implementation=implementation, p20=seconds, p50=seconds, p80=seconds, **shared))
    return found


def every(gain: float, **changes: Any) -> list[Row]:
    return [r for name, mode, l2 in CASES for r in pair(gain, name, mode, l2, **changes)]


def test_a_clear_gain_switches_on(tmp_path: Path) -> None:
    found = choose(every(1.5))
    assert found["switched_on"] == [SWITCH] and found["against"] == [] and found["measured_on"] == "NVIDIA X"
    assert found["ratios"]["geometric_mean"] == found["ratios"]["worst"] == 1.5
    assert len(found["ratios"]["cases"]) == len(CASES) == 12
    assert (found["date"], found["commit"], found["torch"]) == ("2026-01-02", "abc", "2.13")
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(found))
    assert registry.read_measured(path, "NVIDIA X") == {SWITCH}  # what is written is what is read
    assert registry.read_measured(path, "NVIDIA Y") == frozenset()


@pytest.mark.parametrize(("gain", "switched"), [(1.0, False), (LEAST_GAIN, False), (LEAST_GAIN + 0.01, True)])
def test_the_mean_must_be_in_favour(gain: float, switched: bool) -> None:
    assert bool(choose(every(gain))["switched_on"]) == switched


@pytest.mark.parametrize(("gain", "switched"), [(LEAST_RATIO - 0.01, False), (LEAST_RATIO + 0.01, True)])
def test_no_case_may_lose_much(gain: float, switched: bool) -> None:
    rows = [r for r in every(1.5) if (r.name, r.mode, r.l2) != CASES[-1]] + pair(gain, *CASES[-1])
    found = choose(rows)
    assert bool(found["switched_on"]) == switched and found["ratios"]["worst"] == pytest.approx(gain)


@pytest.mark.parametrize("case", CASES)
def test_a_case_that_is_missing_is_named(case: tuple[str, str, str]) -> None:
    found = choose([r for r in every(1.5) if (r.name, r.mode, r.l2) != case])
    assert found["switched_on"] == [] and len(found["against"]) == 1 and " ".join(case) in found["against"][0]


def test_wrong_numbers_switch_nothing_on() -> None:
    failed = replace(pair(1.5, batch=8)[1], graph=False, l2=None, p20=None, p50=None, p80=None, failure="off by 1")
    found = choose([*every(1.5), failed])
    assert found["switched_on"] == [] and "off by 1" in found["against"][0]


def test_only_what_the_gpu_does_is_compared() -> None:
    """Eager rows have the host's time, NCHW is not served, other modes and epilogues are other questions."""
    noise = [*every(0.1, graph=False), *every(0.1, layout="NCHW"), *pair(0.1, mode="training")]
    noise += pair(0.1, name="layer + relu + pad")
    assert choose([*every(1.5), *noise])["ratios"] == choose(every(1.5))["ratios"]


def test_runs_are_never_mixed_and_the_newest_counts() -> None:
    old, newer = every(0.5, run="1"), every(1.5, run="3")
    assert choose([*newer, *old])["ratios"]["worst"] == 1.5
    for implementation in ("munit_fast triton", "munit_fast cuda"):
        alone = [r for r in every(9.0, run="4") if r.implementation == implementation]
        assert choose([*newer, *alone])["ratios"]["worst"] == 1.5
    for changes in ({"commit": "old"}, {"torch": "2.11"}, {"device": "NVIDIA Y"}):
        assert choose([*every(1.5, run="1", **changes), *pair(1.5, run="3")])["switched_on"] == []


def test_rows_of_a_cpu_switch_nothing_on() -> None:
    found = choose([row(cuda=None)])
    assert found["switched_on"] == [] and found["ratios"] == {} and found["measured_on"] == "A CPU"
    assert choose(every(1.5, cuda=None))["switched_on"] == []


def test_the_gate_measures_every_case_that_is_asked_for() -> None:
    """And the row of the table covers those: a sample is that of the padded result."""
    asked = {case[:2] for case in CASES}
    gate = [case for case in SETS["gate"] if (case.name, case.mode) in asked]
    assert {(case.name, case.mode) for case in gate} == asked
    problems = [
        registry.Problem("epilogue", "instance", True, c.batch, c.channels * (c.side + 2) ** 2, size, c.channels)
        for c in gate
        for size in [4 if c.dtype == "fp32" else 2]
    ]
    [rule] = [rule for rule in registry.TABLE if rule.switch == SWITCH]
    assert max(p.sample * p.itemsize for p in problems) <= rule.sample_bytes
    assert all(registry._fits(rule, p) for p in problems)
