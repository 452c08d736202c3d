"""The machine code of every kernel that MUNIT's networks launch: nothing spilled, 16 bytes at a time,
few instructions. Needs no GPU."""

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
    assert len({row["kernel"] for row in rows}) == 11, f"{target}: {sorted({row['kernel'] for row in rows})}"
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


# Instructions an element of the kernels, on sm_90 in bf16, channels_last: forward, and the backward's two passes.
BEFORE = {
    "instance-relu-block1-reflect1-w-none-b-none": (11.9, 30.5, 32.5),
    "instance-none-block1-reflect1-w-none-b-none-residual": (12.1, 28.5, 31.3),
    "instance-none-block1-reflect1-w-none-b-none-window": (12.6, 28.5, 31.3),
    "instance-none-block1-reflect0-w-none-b-none-window": (12.1, 9.1, 10.8),
    "instance-relu-block1-reflect1-w-sample-b-sample": (12.9, 31.6, 33.4),
    "instance-none-block1-reflect1-w-sample-b-sample-residual": (14.2, 28.5, 31.4),
    "instance-none-block1-reflect1-w-sample-b-sample-window": (14.7, 28.5, 31.4),
    "instance-none-block1-reflect3-w-sample-b-sample-window": (14.4, 29.1, 31.8),
    "instance-none-block1-replicate1-w-sample-b-sample-window": (13.8, 27.6, 30.4),
    "group-silu-block1-reflect0-w-shared-b-shared": (21.8, 31.1, 33.1),
    "group-none-block1-reflect0-w-shared-b-shared-residual": (9.6, 9.1, 10.8),
    "instance-gelu-block1-reflect1-w-none-b-none": (41.1, 61.9, 62.6),
    "layer-relu-block1-reflect2-w-shared-b-shared": (12.8, 32.1, 33.9),
    "layer-relu-block1-reflect3-w-shared-b-shared": (12.8, 32.1, 33.9),
    "layer-relu-block2-replicate1-w-shared-b-shared": (13.6, 30.8, 32.9),
    "layer-relu-block2-reflect1-w-shared-b-shared": (14.2, 31.3, 33.4),
    "layer-relu-block2-reflect3-w-shared-b-shared": (14.1, 31.6, 33.7),
    "none-lrelu-block1-zero1-w-none-b-shared": (13.4, 12.9, 0),
    "none-lrelu-block1-reflect1-w-none-b-shared": (10.9, 29.8, 0),
    "none-lrelu-block1-reflect0-w-none-b-shared": (6.6, 9.8, 0),
    "none-relu-block1-reflect1-w-none-b-shared": (10.9, 29.4, 0),
    "none-tanh-block1-reflect0-w-none-b-shared": (37.1, 41.5, 0),
}
BEFORE_STATISTICS = {"instance": 11.9, "group": 11.9, "layer": 22.5}


def _instructions(compiled: list[dict[str, Any]]) -> list[tuple[str, str, float, int]]:
    """Case, kernel, instructions an element and those outside the loop, on sm_90 in bf16, channels_last."""
    found = []
    for row in compiled:
        if row["job"] == ["sm_90", "bf16", "nhwc"] and "instructions" in row:
            kernel = row["kernel"].removesuffix("_kernel")
            if kernel == "epilogue_bwd" and "p_partial" in row["tensors"]:
                kernel = "sums_bwd"
            found += [
                (case.partition("nhwc-")[2], kernel, row["instructions"], row["outside"])
                for case in dict.fromkeys(row["cases"])
            ]
    assert {kernel for _, kernel, *_ in found} == {"statistics_fwd", "epilogue_fwd", "sums_bwd", "epilogue_bwd"}
    assert all(each > 1 for _, _, each, _ in found)
    return found


def test_statistics_divide_once_a_tile(compiled: list[dict[str, Any]]) -> None:
    """A division takes more instructions than all the rest of an element's."""
    bad = [row for row in _instructions(compiled) if row[1] == "statistics_fwd" and row[2] > 10]
    assert not bad, "\n".join(map(str, bad))


def test_the_backward_of_munit_reads_its_border_by_rows(compiled: list[dict[str, Any]]) -> None:
    rows = [row for row in _instructions(compiled) if row[1].endswith("_bwd") and row[0].startswith(("inst", "layer"))]
    bad = [row for row in rows if row[2] > 24 and "gelu" not in row[0]]
    assert not bad, "\n".join(map(str, bad))


def test_no_loop_grows(compiled: list[dict[str, Any]]) -> None:
    if not metadata.version("triton").startswith("3.7."):
        pytest.skip("the numbers are those of Triton 3.7")
    for case, kernel, each, _ in _instructions(compiled):
        if kernel == "statistics_fwd":
            before = BEFORE_STATISTICS[case.partition("-")[0]]
        else:
            before = BEFORE[case][("epilogue_fwd", "sums_bwd", "epilogue_bwd").index(kernel)]
        assert each <= before + 0.2, (case, kernel, each, before)


def test_what_a_program_does_once_stays_small(compiled: list[dict[str, Any]]) -> None:
    """Instructions of a thread outside the loop, those included that only the first program along the pixels runs.

    They unite the partial results of up to 64 channels; see `configs` for how many elements share them.
    """
    most = {"statistics_fwd": 1100, "epilogue_fwd": 650, "sums_bwd": 650, "epilogue_bwd": 900}
    bad = [row for row in _instructions(compiled) if row[3] > most[row[1]]]
    assert not bad, "\n".join(map(str, bad))
