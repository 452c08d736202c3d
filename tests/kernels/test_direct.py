"""Direct launches: the driver is handed what Triton's own wrapper hands it, over a stub of CUDA's driver."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from munit_fast.benchmarks import stub_driver
from munit_fast.kernels import direct

SCRIPT = Path(__file__).parents[1] / "helpers" / "check_launches.py"
_NO_STUB = stub_driver.unsupported_reason()


@pytest.mark.skipif(_NO_STUB is not None, reason=str(_NO_STUB))
def test_the_driver_gets_what_triton_hands_over(tmp_path: Path) -> None:
    """Ten thousand launches: pointers off alignment, sizes of 1, of 2^31 and multiples of 16, other types, tuples."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["differences"] == [] and found["refused"] == 0
    assert found["launches"] > 6000 and found["direct"] > 5000
    assert set(found["kernels"]) == _kernels()  # each of the package's is launched directly
    assert found["kept"] <= found["compiled"]  # and none is kept twice


def _kernels() -> set[str]:
    folder = Path(str(importlib.util.find_spec("munit_fast.kernels").submodule_search_locations[0]))  # type: ignore
    lines = [line for file in folder.glob("*.py") for line in file.read_text(encoding="utf-8").splitlines()]
    return {line[4:].partition("(")[0] for line in lines if line.startswith("def ") and "_kernel(" in line}


class Kernel:
    """A kernel that Triton launches."""

    pre_run_hooks: list[Any] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **meta: self.launches.append((grid, args, meta))


def test_a_kernel_of_another_kind_is_left_to_triton() -> None:
    """That of the interpreter, for example."""
    pytest.importorskip("triton")
    kernel = Kernel()
    for _ in range(2):
        direct.launch(kernel, (1,), 0, (1, None), {"TILE": 2})
    assert kernel.launches == [((1,), (1, None), {"TILE": 2})] * 2


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """The probe's kernel, which direct launches know, and who launched it."""
    triton = pytest.importorskip("triton")

    from munit_fast.kernels import probe

    said: list[str] = []
    kernel = probe.probe_kernel
    monkeypatch.setattr(type(kernel), "run", lambda self, *args, **meta: said.append("triton"))
    driver = mock.Mock(get_current_stream=lambda device: 7)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    signature = direct._signature(kernel)
    launcher = direct._Launcher(lambda *args: said.append("direct"), 1, (), ())
    key = (0, *direct.properties(kernel, (5,), {"num_warps": 1}))
    monkeypatch.setattr(direct, "_launchers", {key: launcher})
    assert signature.served
    return kernel, said


@pytest.mark.parametrize(
    ("args", "meta", "device", "by"),
    [
        ((5,), {"num_warps": 1}, 0, "direct"),
        ((5,), {"num_warps": 1}, 1, "triton"),  # the code of another device
        ((5,), {"num_warps": 2}, 0, "triton"),
        ((5,), {"num_stages": 1}, 0, "triton"),
        ((5, 5), {"num_warps": 1}, 0, "triton"),
        ((), {"num_warps": 1, "number": 5}, 0, "triton"),
        ((1,), {"num_warps": 1}, 0, "triton"),
        ((16,), {"num_warps": 1}, 0, "triton"),
        ((2**31,), {"num_warps": 1}, 0, "triton"),
        ((True,), {"num_warps": 1}, 0, "triton"),
        ((5.0,), {"num_warps": 1}, 0, "triton"),
        ((torch.float32,), {"num_warps": 1}, 0, "triton"),
        ((5,), {"num_warps": [1]}, 0, "triton"),
    ],
)
def test_only_a_launch_of_the_same_kind_is_direct(
    kept: tuple[Any, list[str]], args: Any, meta: Any, device: int, by: str
) -> None:
    kernel, said = kept
    direct.launch(kernel, (1,), device, args, meta)
    assert said == [by]


def _another(number):  # type: ignore[no-untyped-def]
    pass


def test_another_kernel_with_such_arguments_is_not_launched_for_it(kept: tuple[Any, list[str]]) -> None:
    kernel, said = kept
    direct.launch(type(kernel)(_another), (1,), 0, (5,), {"num_warps": 1})
    assert said == ["triton"]


@pytest.mark.parametrize("watch", ["pre-run hook", "enter hook", "exit hook", "own hook", "debug", "instrumentation"])
def test_hooks_see_every_launch(kept: tuple[Any, list[str]], watch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    runtime, (kernel, said) = triton.knobs.runtime, kept
    hook = mock.Mock()
    if watch == "pre-run hook":
        monkeypatch.setattr(kernel, "pre_run_hooks", [hook])
    elif watch == "own hook":
        monkeypatch.setattr(runtime, "launch_enter_hook", lambda metadata: None)
    elif watch == "debug":
        monkeypatch.setattr(runtime, "debug", True, raising=False)
    elif watch == "instrumentation":
        monkeypatch.setattr(triton.knobs.compilation, "instrumentation_mode", "fpsan", raising=False)
    else:
        chain = runtime.launch_enter_hook if watch == "enter hook" else runtime.launch_exit_hook
        monkeypatch.setattr(chain, "calls", [hook])
    direct.launch(kernel, (1,), 0, (5,), {"num_warps": 1})
    assert said == ["triton"]


def test_an_unknown_release_is_left_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from munit_fast.kernels import probe

    monkeypatch.setattr(direct, "_signatures", {})
    for release, served in (("3.5.1", False), ("3.6.0", True), ("3.7.1", True), ("3.8.0", True), ("3.60.0", False)):
        monkeypatch.setattr(triton, "__version__", release)
        assert direct._signature(probe.probe_kernel).served == served
