"""Operators under pytest-benchmark: `pytest benchmarks`, with all of its options (--benchmark-compare, -k, …).

The cases, the contenders and the check before every timing are those of `munit-fast bench`, whose rows are the ones to
quote: pytest-benchmark times one contender after the other, so read ratios within a group.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from munit_fast.benchmarks import SETS, Case, select
from munit_fast.benchmarks.contenders import PUBLISHED
from munit_fast.benchmarks.machine import keep_freed_memory
from munit_fast.benchmarks.runner import check, contenders, expected

keep_freed_memory()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = select(SETS["gate" if DEVICE.type == "cuda" else "cpu"], levels=["op"], batches=[1, 8])


def _parameters() -> list[object]:
    found = []
    for case in CASES:
        for contender in contenders(case, DEVICE):
            if not contender.compiled:  # a minute each: `munit-fast bench` has them
                found.append(pytest.param(case, str(contender), id=f"{case} {contender}".replace(" ", "-")))
    return found


@pytest.mark.parametrize(("case", "name"), _parameters())
def test_op(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    """Check one contender of a case, then time it."""
    benchmark.group = str(case)
    contender = next(c for c in contenders(case, DEVICE) if str(c) == name)
    wanted = expected(case, DEVICE)
    if wanted is None:
        wanted = next(c for c in contenders(case, DEVICE) if c.implementation == PUBLISHED).make().step()
    work = contender.make()
    check(case, contender, work.step(), wanted)

    def step() -> None:
        work.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark(step)
