"""A quick run of the benchmark suite, and rows to report on."""

from __future__ import annotations

from dataclasses import fields
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console

from munit_fast.benchmarks import BenchOptions, Case, runner
from munit_fast.benchmarks.contenders import OURS, PUBLISHED, Contender
from munit_fast.benchmarks.rows import Row

QUICK = BenchOptions(rounds=2, least_s=0, compile=False)


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def only(monkeypatch: pytest.MonkeyPatch, *implementations: str) -> None:
    """Let the runner build and time these alone."""
    every = runner.contenders

    def chosen(case: Case, device: torch.device) -> list[Contender]:
        return [c for c in every(case, device) if c.implementation in implementations]

    monkeypatch.setattr(runner, "contenders", chosen)


def row(**changes: Any) -> Row:
    values: dict[str, Any] = {f.name: None for f in fields(Row)}
    values |= {
        "run": "1",
        "version": "0",
        "date": "2026-01-02",
        "commit": "abc",
        "device": "A CPU",
        "cpu": "A CPU",
        "isa": "avx2",
        "threads": 2,
    }
    values |= {"torch": "2.13", "python": "3.11", "level": "op", "name": "layer + relu + pad", "mode": "training"}
    values |= {
        "dtype": "fp32",
        "batch": 1,
        "channels": 8,
        "side": 16,
        "implementation": OURS,
        "layout": "channels_last",
    }
    values |= {"precision": "fp32", "graph": False, "rounds": 9, "p20": 0.9, "p50": 1.0, "p80": 1.1, "bytes": 4 * 10**9}
    values |= {"copy_speed": 8e9, "matrix_rate": 1e11, "peak_bytes": 100, "error": 1e-7}
    return Row(**(values | changes))


def baseline(p50: float, **changes: Any) -> Row:
    times = {"p20": 0.9 * p50, "p50": p50, "p80": 1.1 * p50}
    return row(**({"implementation": PUBLISHED, "layout": "NCHW", "peak_bytes": 200} | times | changes))
