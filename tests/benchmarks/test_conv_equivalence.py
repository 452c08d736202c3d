"""A short run of the script that compares trainings: other convolutions, the same losses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from munit_fast.ops import winograd

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "scripts" / "conv_equivalence.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("conv_equivalence", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "conv_equivalence", module)
    spec.loader.exec_module(module)
    return module


def test_the_difference_of_two_curves(script: ModuleType) -> None:
    assert script.difference([1.0] * 10, [1.0] * 10, 4) == 0
    assert script.difference([1.0] * 10, [1.0] * 9 + [1.4], 4) == pytest.approx(0.1)
    assert script.difference([2.0] * 3, [1.0] * 3, 50) == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.skipif(not winograd.available(), reason="no instruction set with these convolutions")
def test_training_with_winograds_convolutions(script: ModuleType) -> None:
    """Every loss's moving average within 3 % of direct convolution's; seen: less than 0.1 % in so few iterations."""
    ways = {name: script.WAYS[name] for name in ("direct", "F(4×4)", "F(2×2)")}
    rows = script.compare(20, 8, 32, 1, 10, ways)
    assert len(rows) > 10
    for name, (_, *differences) in rows.items():
        assert max(differences) < 0.03, name
