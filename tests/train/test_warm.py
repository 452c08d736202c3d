"""Kernels that are compiled ahead are those that an iteration launches, and are compiled once."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from helpers.trainers import hyperparameters
from munit_fast import cli, kernels
from munit_fast.benchmarks import stub_driver
from munit_fast.kernels import configs
from munit_fast.train import warm
from munit_fast.train.trace import trace_iteration

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[1] / "helpers" / "check_warm.py"
_NO_STUB = stub_driver.unsupported_reason()


def _run(what: str, cache: Path) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON")} | {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, str(SCRIPT), what]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(_NO_STUB is not None, reason=str(_NO_STUB))
def test_a_process_that_launches_finds_every_kernel(tmp_path: Path) -> None:
    """One process compiles ahead; another launches, aligned as on a GPU, and compiles nothing, nor does a third."""
    first = _run("warm", tmp_path)
    assert first["kernels"] == first["compiled"] > 10
    assert first["reported"] == [[i, first["kernels"]] for i in range(first["kernels"] + 1)]
    launched = _run("launch", tmp_path)
    assert (launched["kernels"], launched["compiled"]) == (first["kernels"], 0)
    assert launched["launches"] > launched["kernels"]
    again = _run("warm", tmp_path)
    assert (again["kernels"], again["compiled"]) == (first["kernels"], 0)


def test_launches_are_one_kernel_where_triton_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Triton's own key, for what it specialises on."""
    import triton
    from triton.runtime.jit import compute_cache_key

    from helpers.compile_kernels import TARGETS, Driver

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver(TARGETS["sm_90"]))
    launches = trace_iteration(hyperparameters(), amp="fp16").triton
    keys = set()
    for kernel, _, arguments, meta in launches:
        *_, bind = kernel.device_caches[str(TARGETS["sm_90"])]
        _, specialization, options = bind(*arguments, **meta)
        keys.add((kernel.__name__, compute_cache_key({}, specialization, options)))
    assert len(warm.distinct(launches)) == len(keys) > 20


class Kernel:
    """Stands for one of Triton's."""

    def __init__(self, fault: bool = False) -> None:
        self.fault, self.compiled = fault, 0

    def warmup(self, *arguments: Any, grid: Any, **meta: Any) -> None:
        self.compiled += 1
        if self.fault:
            raise RuntimeError("no ptxas")


def _launches(*kernels: Kernel) -> list[Any]:
    return [warm.TritonLaunch(kernel, (1,), (), {}) for kernel in kernels for _ in range(3)]


def test_the_first_failure_ends_it() -> None:
    import triton

    listener = triton.knobs.compilation.listener
    kernels = [Kernel(fault=True), *(Kernel() for _ in range(50))]
    with pytest.raises(RuntimeError, match="ptxas"):
        warm.warm(_launches(*kernels), threads=1)
    assert triton.knobs.compilation.listener is listener


def test_every_kernel_is_compiled_once_in_threads_of_the_device() -> None:
    kernels, begun = [Kernel() for _ in range(5)], []
    done = warm.warm(_launches(*kernels), begin_thread=lambda: begun.append(1), threads=2)
    assert [kernel.compiled for kernel in kernels] == [1] * 5 and 1 <= len(begun) <= 2
    assert done.kernels == 5


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A GPU that Triton serves, with tiles of its own; the launches that are compiled for it."""
    compiled: list[Any] = []
    tile = configs.TileConfig(64, 8, 2, 1)
    tuned = {("forward, channels_last", 2, 8, 34 * 42): tile}

    def compile_all(launches: Any, report: Any, begin_thread: Any) -> warm.Compiled:
        compiled.extend(launches)
        report(0, 7)
        return warm.Compiled(7, 3, 2.0)

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(configs, "tuned", lambda device: tuned if device == torch.device("cuda", 1) else {})
    monkeypatch.setattr(warm, "warm", compile_all)
    return compiled


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_compiled_is_said(gpu: list[Any], terminal: bool) -> None:
    """In one line where there is no terminal; the tiles are those of the device, and no random number is drawn."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    before = torch.get_rng_state()
    warm.compile_kernels(hyperparameters(), "MUNIT", "bf16", 1, torch.device("cuda", 1), console)
    assert torch.equal(before, torch.get_rng_state())
    lines = [line for line in out.getvalue().splitlines() if line]
    assert "Some GPU" in lines[-1] and "7 kernels" in lines[-1] and ("3" in lines[-1])
    assert (out.getvalue().count("\n") == 1) != terminal
    assert terminal == ("compiling 7 kernels for Some GPU" in out.getvalue())
    tiles = {
        one.meta["TILE_PIXELS"] for one in gpu if one.meta.get("TILE_CHANNELS") == 8 and one.meta["num_warps"] == 2
    }
    assert tiles == {64}


def test_both_kinds_of_iterations_are_compiled(gpu: list[Any]) -> None:
    """Those with R1, which is float32 beside bf16, and those without; one kind where every iteration is alike."""
    console = Console(quiet=True)
    found = []
    for over in ({}, {"r1_w": 1, "r1_iter": 5}):
        gpu.clear()
        warm.compile_kernels(hyperparameters(**over), "MUNIT", "bf16", 1, torch.device("cuda", 1), console)
        found.append(len(warm.distinct(gpu)))
    assert found[1] > found[0] > 20


def test_what_is_ready_is_said_shortly() -> None:
    assert str(warm.Compiled(66, 0, 0.3)) == "66 kernels ready"


def test_where_triton_does_not_serve_there_is_nothing_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cpu" in str(warm.unsupported_reason(torch.device("cpu"), "off"))
    monkeypatch.setattr(kernels, "unsupported_reason", lambda device, dtype: None)
    monkeypatch.setattr(warm, "automatic", lambda device, dtype: "triton" if dtype == torch.bfloat16 else "cuda")
    device = torch.device("cuda", 0)
    assert warm.unsupported_reason(device, "bf16") is None
    assert "cuda" in str(warm.unsupported_reason(device, "fp16"))
    assert "cpu" in str(warm.unsupported_reason(device, "bf16", "cpu"))
    assert warm.unsupported_reason(device, "fp16", "triton") is None


def _doctor(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["munit-fast", "doctor", "--warm", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise


def test_the_command_needs_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump({"batch_size": 2}))
    with pytest.raises(SystemExit):
        _doctor(monkeypatch, str(config), "--device", "cpu")
    said = capsys.readouterr()
    assert "GPU" in said.err and "cpu" in said.err and said.err.count("\n") == 1 and not said.out


def test_the_command_compiles_what_a_training_launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump({"batch_size": 2, "accumulation": 3, "gen": {"dim": 8}}))
    called: list[Any] = []
    monkeypatch.setattr(warm, "unsupported_reason", lambda device, amp: None)
    monkeypatch.setattr(warm, "compile_kernels", lambda *arguments: called.append(arguments))
    _doctor(monkeypatch, str(config), "--device", "cpu", "--trainer", "UNIT", "--amp", "off")
    [(values, trainer, amp, batch, device, _)] = called
    assert (values["gen"]["dim"], trainer, amp, batch, device.type) == (8, "UNIT", "off", 6, "cpu")
