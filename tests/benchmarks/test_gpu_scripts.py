"""The scripts for a GPU, on the CPU with the smallest work: so that they run when there is one at last."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

from helpers.interpreter import interpreter_unsupported_reason
from munit_fast.benchmarks import rows

ROOT = Path(__file__).parents[2]


def bare(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python as where munit_fast is not installed: what an editable install adds to the path is left out."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": sysconfig.get_path("purelib")}
    return subprocess.run(
        [sys.executable, "-S", *command], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return bare(str(ROOT / "benchmarks" / "scripts" / name), *arguments)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts are importable as where they lie."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "scripts"))


@pytest.mark.usefixtures("scripts")
def test_steps_find_the_checkout() -> None:
    """In the folder that the steps run in, everything is importable, kernels and the compiled part included."""
    import bare_checkout

    bare_checkout.place()
    code = "import munit_fast, munit_fast.kernels, munit_fast.ops.native as n; print(munit_fast.__file__, n.module)"
    assert bare("-c", code).returncode != 0  # a checkout by itself lacks the kernels: the test can fail
    done = bare("-c", code, folder=bare_checkout.PLACE)
    assert done.returncode == 0, done.stderr
    assert str(bare_checkout.PLACE) in done.stdout
    from munit_fast.ops import native

    assert (native.module is None) == ("None" in done.stdout)


@pytest.mark.slow
def test_gpu_check(tmp_path: Path) -> None:
    done = script("gpu_check.py", "--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "smoke-gpu-check.json").read_text())
    assert [step["step"] for step in summary["steps"]] == ["tests", "bench", "report"]
    assert all(step["exit_code"] == 0 for step in summary["steps"])
    assert len(rows.load(tmp_path / "smoke.jsonl")) > 50
    [page] = {*tmp_path.glob("*.md")} - {tmp_path / "goals.md"}
    assert page.read_text().count("| ") > 50
    assert summary["not_measured"] == [] and {goal["verdict"] for goal in summary["goals"]} == {"not measured"}
    goals = (tmp_path / "goals.md").read_text()
    assert goals.count("| not measured |") == len(summary["goals"]) == 10 and "NVIDIA H200" in goals
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["switched_on"] == [] and measured["measured_on"] in page.read_text()
    log = (tmp_path / "gpu-check.log").read_text()
    assert "test_on_gpu.py" in log or importlib.util.find_spec("triton") is None
    assert len(list(tmp_path.iterdir())) <= 8  # what a lent machine may give back


INTERRUPTED = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "time.sleep(120)"])
print(child.pid, flush=True)
if {deaf}:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    time.sleep(120)
except KeyboardInterrupt:
    print("2 failed")
"""


def is_running(process: int) -> bool:
    """A zombie has ended, whoever its parent is now."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("deaf", [False, True])
def test_a_step_that_takes_too_long_is_asked_then_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    import gpu_check

    monkeypatch.setattr(gpu_check, "GRACE_S", 3)
    steps = gpu_check.Steps(tmp_path, 100, [])
    for may_stop in (False, True):
        steps.run("slow", [sys.executable, "-c", INTERRUPTED.format(deaf=deaf)], 8, tmp_path, may_stop)
        result = steps.results[-1]
        assert result["exit_code"] == gpu_check.STOPPED and result["passed"] == may_stop and result["seconds"] < 60
        assert deaf or result["last_line"] == "2 failed"
    children = [int(line) for line in (tmp_path / "gpu-check.log").read_text().splitlines() if line.isdigit()]
    end = time.monotonic() + 30  # a signal is not waited for
    while any(map(is_running, children)) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(children) == 2 and not any(map(is_running, children))


@pytest.mark.usefixtures("scripts")
def test_a_second_call_goes_on_with_the_rows_of_the_first(tmp_path: Path) -> None:
    import gpu_check

    rows, results = tmp_path / "gpu.jsonl", tmp_path / "results"
    gpu_check.bring(rows, results)
    assert not rows.exists()
    results.mkdir()
    (results / "gpu.jsonl").write_text("earlier")
    gpu_check.bring(rows, results)
    assert rows.read_text() == "earlier"
    rows.write_text("later")
    gpu_check.bring(rows, results)
    assert rows.read_text() == "later"


def test_gpu_check_without_a_gpu_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = script("gpu_check.py", "--out", str(tmp_path))
    assert done.returncode == 1 and "--smoke" in done.stderr


@pytest.mark.skipif(bool(interpreter_unsupported_reason()), reason=interpreter_unsupported_reason() or "")
@pytest.mark.slow
def test_gpu_tune(tmp_path: Path) -> None:
    output = tmp_path / "tuned.json"
    refused = script("gpu_tune.py", "--smoke")
    assert refused.returncode == 1 and "--output" in refused.stderr
    done = script("gpu_tune.py", "--smoke", "--output", str(output))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    from munit_fast.kernels import configs

    assert "times mean nothing" in json.loads(output.read_text())["measured_on"]
    tuned = configs.read_tuned(output, "Triton's interpreter: times mean nothing")
    assert configs.read_tuned(output, "NVIDIA H100") == {}
    assert all(table in configs.TABLES and tile.num_warps == 4 for (table, *_), tile in tuned.items())
    for table in ("statistics, columns", "forward, channels_last", "sums, channels_last", "backward, channels_last"):
        assert table in done.stdout  # each kernel of the epilogue was tried


def test_tuned_tiles_are_used_for_their_shape_and_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two GPUs the second was tuned, while the first is the current one."""
    from munit_fast.kernels import configs

    tile = {"pixels": 4, "channels": 8, "num_warps": 2, "tiles": 3}
    entry = {"table": "forward, channels_last", "itemsize": 2, "channels": 64, "area": 100, "tile": tile, "gain": 1.1}
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"measured_on": "x", "date": "y", "tiles": [entry]}))
    monkeypatch.setattr(configs, "TUNED_FILE", path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "wx"[0 if device is None else device.index])
    first, second, cpu = (torch.device(name) for name in ("cuda:0", "cuda:1", "cpu"))
    configs.tuned.cache_clear()
    try:
        assert configs.tile("forward, channels_last", 2, 64, 100, second) == configs.TileConfig(4, 8, 2, 3)
        standing = configs.tile("forward, channels_last", 2, 64, 101, second)
        assert standing != configs.TileConfig(4, 8, 2, 3)
        assert standing == configs.tile("forward, channels_last", 4, 64, 100, second)
        for other in (first, cpu):
            assert standing == configs.tile("forward, channels_last", 2, 64, 100, other)
    finally:
        configs.tuned.cache_clear()


def test_a_damaged_file_of_tiles_is_named(tmp_path: Path) -> None:
    configs = pytest.importorskip("munit_fast.kernels.configs")
    path = tmp_path / "tuned.json"
    for text in ("{", '{"measured_on": "x"}', '{"measured_on": "x", "tiles": [{"table": 1}]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"tuned\.json"):
            configs.read_tuned(path, "x")
