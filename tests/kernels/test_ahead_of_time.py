"""The machine code of every kernel that MUNIT's networks launch: nothing spilled, 16 bytes at a time. Needs no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]

TARGETS = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "gfx942")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("kernels") / "compiled.json"
    script = Path(__file__).parents[1] / "helpers" / "compile_kernels.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([sys.executable, script, out], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"\n{done.stdout[-5000:]}\n{done.stderr[-20000:]}"
    return json.loads(out.read_text())


def _of(compiled: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    rows = [row for row in compiled if row["job"][0] == target]
    assert len({row["kernel"] for row in rows}) == 12, f"{target}: {sorted({row['kernel'] for row in rows})}"
    return rows


# Bytes of stack that some ptxas gives a kernel: two registers. With Triton 3.7, the pinned one, on an architecture
# without asynchronous copies, and for float32 alone.
STACK = {
    ("3.7", "sm_75", "phase_border_bwd_kernel"): 8,
    ("3.6", "sm_90", "epilogue_bwd_kernel"): 8,
    ("3.8", "sm_90", "epilogue_bwd_kernel"): 8,
}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled(compiled: list[dict[str, Any]], target: str) -> None:
    triton = metadata.version("triton").rpartition(".")[0]
    rows = [(row, STACK.get((triton, target, row["kernel"]), 0)) for row in _of(compiled, target)]
    bad = [row for row, allowed in rows if row["STACK"] > allowed or row["LOCAL"]]
    assert not bad, "\n".join(map(str, bad))


@pytest.mark.parametrize("target", TARGETS)
def test_channels_last_moves_16_bytes_at_a_time(compiled: list[dict[str, Any]], target: str) -> None:
    """In the kernels that touch the images, whose channels are a multiple of 16 bytes."""
    rows = [row for row in _of(compiled, target) if row["job"][2] == "nhwc" and not row["case"].startswith("1x3x")]
    bad = [row for row in rows if row["loads"] < row["expected"]["loads"] or row["stores"] < row["expected"]["stores"]]
    assert not bad, "\n".join(map(str, bad))
    assert any(row["expected"]["loads"] for row in rows) and any(row["expected"]["stores"] for row in rows)
