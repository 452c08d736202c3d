"""The script that measures convolutions: its rows follow from what it measured, and it measures what it names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from munit_fast.ops import winograd
from munit_fast.ops.conv_plans import ConvShape

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scripts" / "conv_tune.py"


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("MUNIT_FAST_CONV", "OMP_WAIT_POLICY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.setenv(name, "")  # so that what the script sets is undone
    spec = importlib.util.spec_from_file_location("conv_tune", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "conv_tune", module)
    spec.loader.exec_module(module)
    return module


def test_rows_follow_from_the_points(tune: Any) -> None:
    def point(channels: int, tiles: int, joined: float, kept: float) -> Any:
        return tune.Point(channels, tiles, {"joined": joined, "joined, kept": kept, "weight gradient": 2 * joined})

    points = [
        *(point(8, tiles, 0.5, gain) for tiles, gain in ((4, 0.9), (16, 1.5), (64, 1.6))),
        *(point(16, tiles, gain, 2.0) for tiles, gain in ((4, 1.3), (16, 0.9), (64, 1.2))),
        *(point(32, tiles, 1.5, 2.0) for tiles in (4, 16, 64)),
    ]
    assert [tune.least_tiles(points, c, "joined") for c in (8, 16, 32)] == [None, 64, 4]
    assert [tune.least_tiles(points, c, "joined, kept") for c in (8, 16, 32)] == [16, 4, 4]
    shape = ConvShape(3, 1, 8, 8, 1, 8, 8, torch.float32, False)
    rows = [row.split(", ") for row in tune.rows(points, "avx2", shape, "f43")]
    assert [row[4:9] for row in rows] == [
        ["8", "None", "16", "None", "'f43'"],
        ["16", "64", "4", "4", "'f43'"],
        ["32", "4", "4", "4", "'f43'"],
    ]
    assert "training 1.2×" in ", ".join(rows[1]) and "training 1.5×" in ", ".join(rows[2])
    assert len(list(tune.rows([p for p in points if p.channels != 16], "avx2", shape, "f43"))) == 2


@pytest.mark.skipif(not winograd.available(), reason="the instruction set in use has no such convolutions")
@pytest.mark.parametrize(("kernel", "plan"), [(3, "f43"), (4, "f42")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_compute_the_same(tune: Any, kernel: int, plan: str, dtype: torch.dtype) -> None:
    shape = ConvShape(kernel, kernel - 2, 16, 16, 2, 8, 8, dtype, False)
    made = tune.steps(shape, plan)
    assert tuple(made) == tune.COLUMNS
    assert set(tune.DECIDE) <= set(tune.COLUMNS)
    for name, (direct, by_plan) in made.items():
        expected, got = direct(), by_plan()
        if name == "input gradient":  # by the plan what was padded is added to where it came from
            expected, got = expected[0][:, :, 3:-3, 3:-3], got[:, :, 2:-2, 2:-2]
        elif name == "weight gradient":
            expected = expected[1]
        pairs = zip(expected, got) if isinstance(expected, tuple) else [(expected, got)]
        for a, b in pairs:
            error = float((a.double() - b.double()).norm() / a.double().norm())
            assert error < (1e-5 if dtype == torch.float32 else 0.02), name


def test_every_column_is_measured(tune: Any) -> None:
    if winograd.available():
        point = tune.measure(ConvShape(3, 1, 16, 16, 1, 4, 4, torch.float32, False), "f43", 2)
        assert tuple(point.ratios) == tune.COLUMNS and min(point.ratios.values()) > 0 and point.tiles == 1
