"""The choice of backend, instruction sets, and working without the compiled part or Triton."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.backends import ISAS
from munit_fast import functional as mf
from munit_fast.ops import backends, native
from munit_fast.ops.backends import registry
from munit_fast.ops.backends.registry import Problem

ROOT = Path(__file__).resolve().parents[2]

# Refuses the modules named in BLOCKED, as if they had never been installed.
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED or name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""

EVERYTHING = """
import torch
torch.set_num_threads(1)
from munit_fast import functional as mf, nn as mnn
x = torch.randn(2, 4, 5, 6, requires_grad=True)
w = torch.randn(2, 4, requires_grad=True)
y = mf.instance_norm(x, act="relu", pad=1) + mf.adain(x, w, w, pad=1) + mf.layer_norm2d(x, pad=1)
y = y + mf.bias_act(x, w[0], act="tanh", residual=x, pad=1)
(y.square().sum() + mf.l1_loss(x, x * 2) + mf.lsgan_loss([x, y], 1.0)).backward()
assert x.grad.isfinite().all() and w.grad.isfinite().all()
for module in (mnn.InstanceNorm2d(4), mnn.LayerNorm2d(4), mnn.BiasAct(4), mnn.AdaptiveInstanceNorm2d(4)):
    repr(module)
"""


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MUNIT_FAST_")} | environment
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=ROOT, timeout=120, check=False
    )


def test_auto_takes_the_compiled_kernels_on_the_cpu(cpu: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert backends.choose("auto", torch.device("cpu"), dtype) is backends.BACKENDS["cpu"]
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(mf.instance_norm(x), mf.instance_norm(x, impl="cpu"))


def test_every_backend_gives_a_reason() -> None:
    meta, here = torch.device("meta"), torch.device("cpu")
    for name in backends.BACKENDS:
        for device in (meta, here):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                reason = backends.unsupported_reason(name, device, dtype)
                assert reason is None or len(reason) > 10
    assert backends.unsupported_reason("reference", here, torch.float32) is None
    assert "meta" in backends.unsupported_reason("cpu", meta, torch.float32)
    assert "cpu" in backends.unsupported_reason("triton", here, torch.float32)


def test_instruction_sets_agree(cpu: str) -> None:
    x = torch.randn(2, 19, 21, 23).contiguous(memory_format=torch.channels_last)
    chosen = native.module.isa()
    results = []
    for isa in ISAS:
        native.module.set_isa(isa)
        assert native.module.isa() == isa
        results.append(mf.instance_norm(x, act="selu", pad=2, impl=cpu))
    native.module.set_isa(chosen)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


def test_set_isa_refuses_an_unknown_name_and_changes_nothing(cpu: str) -> None:
    chosen = native.module.isa()
    with pytest.raises(ValueError, match=rf"^isa .*{ISAS[-1]}.*'mmx'"):
        native.module.set_isa("mmx")
    assert native.module.isa() == chosen
    native.module.set_isa(None)
    assert native.module.isa() == ISAS[0]
    native.module.set_isa(chosen)


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_forces_an_instruction_set(isa: str) -> None:
    done = python(
        "from munit_fast.ops import native; print(native.module.isa())", MUNIT_FAST_CPU_ISA=f" {isa.upper()} "
    )
    assert done.stdout.strip() == isa, done.stderr


def test_an_unknown_instruction_set_in_the_environment_is_an_error(cpu: str) -> None:
    done = python("from munit_fast import functional", MUNIT_FAST_CPU_ISA="avx9000")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "MUNIT_FAST_CPU_ISA" in last and "'avx9000'" in last
    assert all(isa in last for isa in ISAS)


def test_without_the_compiled_part() -> None:
    script = f"BLOCKED = {{'munit_fast._C'}}\n{BLOCKER}\n{EVERYTHING}\n" + (
        "from munit_fast.ops import native\n"
        "assert native.module is None and 'not built' in native.native_error\n"
        "try: mf.bias_act(x, impl='cpu')\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("impl='cpu' ") and "C++20 compiler" in done.stdout
    warnings = [line for line in done.stderr.splitlines() if "slower 'reference' backend" in line]
    assert len(warnings) == 1, done.stderr
    assert "munit_fast._C" in warnings[0]


def test_the_warning_comes_once_whatever_the_dtype() -> None:
    script = f"BLOCKED = {{'munit_fast._C'}}\n{BLOCKER}\n{EVERYTHING}\n" + (
        "for dtype in (torch.bfloat16, torch.float64): mf.bias_act(x.to(dtype))\n"
    )
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("slower 'reference' backend") == 1, done.stderr


def test_without_triton() -> None:
    script = f"BLOCKED = {{'triton'}}\n{BLOCKER}\n{EVERYTHING}\n" + (
        "from munit_fast import kernels\n"
        "from munit_fast.ops import backends\n"
        "assert backends.unsupported_reason('triton', torch.device('cpu'), torch.float32)\n"
        "assert 'triton' not in sys.modules\n"
    )
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert "slower" not in done.stderr


def test_importing_the_functions_does_not_import_triton() -> None:
    done = python("import sys, munit_fast.functional, munit_fast.nn; assert 'triton' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_auto_warns_once_and_gives_the_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.cpu, "unsupported_reason", lambda device, dtype: "no such CPU")
    backends.choose.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="munit_fast"):
            for _ in range(3):
                mf.bias_act(torch.randn(1, 1, 2, 2))
            with pytest.raises(RuntimeError, match=r"^impl='cpu' .*: no such CPU$"):
                mf.bias_act(torch.randn(1, 1, 2, 2), impl="cpu")
    finally:
        backends.choose.cache_clear()
    [record] = caplog.records
    assert re.search("'reference'.* cpu: no such CPU$", record.getMessage())


MODELS = {0: "NVIDIA Y", 1: "NVIDIA X"}
INSTANCE = Problem("epilogue", "instance", sample=256 * 130**2, itemsize=2, channels=256)
STANDING, CLUSTERS = ("triton", "cuda", "reference"), ("cuda", "triton", "reference")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for the file, and a machine with two GPUs of different models, the first of which is the current one."""
    path = tmp_path / "measured.json"
    monkeypatch.setattr(registry, "MEASURED_FILE", path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: MODELS[device.index])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "_capability", lambda device: (9, 0))
    for name in ("cuda", "triton"):
        monkeypatch.setattr(backends.BACKENDS[name], "unsupported_reason", lambda device, dtype: None)
    registry.switches.cache_clear()
    backends.choose.cache_clear()
    yield path
    registry.switches.cache_clear()
    backends.choose.cache_clear()


def write_measured(path: Path, model: str = "NVIDIA X", switched_on: Any = ("clusters",)) -> None:
    content = {"measured_on": model, "date": "2026-01-02", "commit": "abc", "torch": "2.13", "ratios": {}}
    path.write_text(json.dumps(content | {"switched_on": switched_on}))


def test_without_a_measurement_no_row_is_switched_on(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: pytest.fail("the model is not needed"))
    for device in ("cuda", "cuda:0", "cuda:1"):
        assert registry.order(device, (9, 0), INSTANCE) == STANDING


def test_a_measurement_counts_on_its_gpu_model_alone(measured: Path) -> None:
    write_measured(measured)
    assert registry.order("cuda:1", (9, 0), INSTANCE) == CLUSTERS
    for other in ("cuda:0", "cuda"):  # another model; a model that is not known, as of what is traced without a GPU
        assert registry.order(other, (9, 0), INSTANCE) == STANDING
    taken = [backends.automatic(torch.device("cuda", i), torch.bfloat16, INSTANCE) for i in (0, 1)]
    assert taken == ["triton", "cuda"]
    chosen = backends.choose("auto", torch.device("cuda", 1), torch.bfloat16, INSTANCE)
    assert chosen is backends.BACKENDS["cuda"]
    measured.unlink()  # read once
    assert registry.order("cuda:1", (9, 0), INSTANCE) == CLUSTERS


def test_a_device_without_an_index_is_the_current_gpu(measured: Path) -> None:
    write_measured(measured, MODELS[0])
    assert backends.automatic(torch.device("cuda"), torch.bfloat16, INSTANCE) == "cuda"
    assert backends.automatic(torch.device("cuda", 1), torch.bfloat16, INSTANCE) == "triton"


def test_a_measurement_counts_for_what_was_measured(measured: Path) -> None:
    write_measured(measured)
    assert registry.order("cuda:1", (9, 0), INSTANCE._replace(sample=2**24)) == CLUSTERS
    for capability, problem in (
        ((8, 9), INSTANCE),
        ((9, 0), INSTANCE._replace(norm="layer")),
        ((9, 0), INSTANCE._replace(norm="none")),
        ((9, 0), INSTANCE._replace(op="losses")),
        ((9, 0), INSTANCE._replace(sample=2**24 + 1)),
        ((9, 0), None),
    ):
        assert registry.order("cuda:1", capability, problem) == STANDING
    contiguous = INSTANCE._replace(channels_last=False)
    assert backends.automatic(torch.device("cuda", 1), torch.bfloat16, contiguous) == "triton"


def test_a_measurement_that_was_lost_switches_nothing_on(measured: Path) -> None:
    write_measured(measured, switched_on=())
    assert registry.order("cuda:1", (9, 0), INSTANCE) == STANDING


def test_a_damaged_measurement_is_named(measured: Path) -> None:
    whole = {"measured_on": "NVIDIA X", "switched_on": ["clusters"]}
    for damaged in (
        "{",
        "[]",
        json.dumps({"measured_on": "NVIDIA X"}),
        json.dumps({"switched_on": []}),
        json.dumps(whole | {"switched_on": "clusters"}),
        json.dumps(whole | {"switched_on": {"clusters": 1}}),
        json.dumps(whole | {"switched_on": ["slabs"]}),
        json.dumps(whole | {"switched_on": [["clusters"]]}),
        json.dumps(whole | {"measured_on": None}),
    ):
        measured.write_text(damaged)
        with pytest.raises(ValueError, match=r"measured\.json .*make gpu-check"):
            registry.order("cuda:1", (9, 0), INSTANCE)
        assert registry.order("cuda:1", (8, 0), INSTANCE) == STANDING  # not asked
