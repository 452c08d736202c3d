"""The scripts for a GPU, on the CPU with the smallest work: so that they run when there is one at last."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from munit_fast.bench import rows

ROOT = Path(__file__).parent.parent


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_gpu_check(tmp_path: Path) -> None:
    done = script("gpu_check.py", "--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "smoke-gpu-check.json").read_text())
    assert [step["step"] for step in summary["steps"]] == ["tests", "bench", "report"]
    assert all(step["exit_code"] == 0 for step in summary["steps"])
    assert len(rows.load(tmp_path / "smoke.jsonl")) > 50
    assert (tmp_path / "smoke-report.md").read_text().count("| ") > 50
    log = (tmp_path / "gpu-check.log").read_text()
    assert "test_on_gpu.py" in log or importlib.util.find_spec("triton") is None
    assert len(list(tmp_path.iterdir())) <= 8  # what a lent machine may give back


def test_gpu_check_without_a_gpu_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = script("gpu_check.py", "--out", str(tmp_path))
    assert done.returncode == 1 and "needs an NVIDIA GPU" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.slow
def test_gpu_tune(tmp_path: Path) -> None:
    output = tmp_path / "tuned.json"
    done = script("gpu_tune.py", "--smoke", "--output", str(output))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    from munit_fast.kernels import configs

    assert "times mean nothing" in json.loads(output.read_text())["measured_on"]
    tuned = configs.read_tuned(output)
    assert all(table in configs.TABLES and tile.num_warps == 4 for (table, *_), tile in tuned.items())
    for table in ("statistics, columns", "forward, channels_last", "sums, channels_last", "backward, channels_last"):
        assert table in done.stdout  # each kernel of the epilogue was tried


def test_tuned_tiles_are_used_for_their_shape_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = pytest.importorskip("munit_fast.kernels.configs")
    tile = {"pixels": 4, "channels": 8, "num_warps": 2, "tiles": 3}
    entry = {"table": "forward, channels_last", "itemsize": 2, "channels": 64, "area": 100, "tile": tile, "gain": 1.1}
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"measured_on": "x", "date": "y", "tiles": [entry]}))
    monkeypatch.setattr(configs, "TUNED", configs.read_tuned(path))
    assert configs.tile("forward, channels_last", 2, 64, 100) == configs.Tile(4, 8, 2, 3)
    standing = configs.tile("forward, channels_last", 2, 64, 101)
    assert standing != configs.Tile(4, 8, 2, 3) and standing == configs.tile("forward, channels_last", 4, 64, 100)
