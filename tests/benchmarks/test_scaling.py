"""The arithmetic of the page about many devices is that of a ring all-reduce."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scripts" / "scaling.py"


@pytest.fixture(scope="module")
def scaling() -> Any:
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_ring(scaling: Any) -> None:
    link = scaling.Link("", 1e9, 0.0)
    assert scaling.ring(1e9, 1, link) == 0
    assert scaling.ring(1e9, 2, link) == pytest.approx(1.0)
    assert scaling.ring(1e9, 8, link) == pytest.approx(1.75)
    assert scaling.ring(20e6, 8, scaling.Link("", 1e30, 1e-3)) == pytest.approx(
        12e-3
    )  # two trees of three levels, up and down
    inside = scaling.Link("", 10e9, 0.0)
    assert scaling.exchange(1e9, 32, link, inside) == pytest.approx(0.175 + 1.5)  # 8 in a node, 4 nodes
    assert scaling.efficiency(1.0, 0.25) == pytest.approx(0.8)
