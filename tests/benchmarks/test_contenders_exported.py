"""Exported translators in ONNX Runtime, OpenVINO and torch: the published one, and the files of `munit-fast export`."""

from __future__ import annotations

import platform
import re
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from helpers.bench import QUICK, only, quiet
from munit_fast.benchmarks import Case, contenders_exported, contenders_translation, run, tables
from munit_fast.benchmarks.contenders import (
    EXPORTED,
    EXPORTED_ONNX,
    EXPORTED_OPENVINO,
    EXPORTED_PT2,
    FROZEN,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    PUBLISHED,
    Unavailable,
)
from munit_fast.benchmarks.summary import summarize

CPU = torch.device("cpu")


# Two images in three styles each: that the codes reach their images is part of what is checked.
_FEW = Case("translation", "in 3 styles", "forward", "bf16", 2, 8, 32)


@pytest.fixture(scope="module")
def programs() -> list[bytes]:
    """What the first export gave: all tests export the same model at the same size, which takes seconds."""
    return []


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, programs: list[bytes]) -> Case:
    export = contenders_exported.export

    def once(*arguments: Any) -> bytes:
        programs.extend([] if programs else [export(*arguments)])
        return programs[0]

    monkeypatch.setattr(contenders_exported, "export", once)
    monkeypatch.setitem(contenders_translation.STYLES, _FEW.name, 3)
    return _FEW


def test_translation_outside_of_torch(few: Case) -> None:
    """ONNX Runtime and OpenVINO in each precision that they have, with as many threads as torch."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    found, failures = run([few], QUICK, quiet())
    assert failures == []
    timed = {(r.implementation, r.precision): r for r in found if r.failure is None}
    assert {(ONNX_RUNTIME, "fp32"), (OPENVINO, "fp32")} <= timed.keys()
    missing = [r for r in found if r.failure is not None]
    assert all(r.implementation == OPENVINO and r.precision == "bf16" for r in missing)  # a CPU without bfloat16
    for runtime in (ONNX_RUNTIME, OPENVINO):
        error = timed[runtime, "fp32"].error
        assert error is not None and error < 1e-4 and timed[runtime, "fp32"].flops == timed[PUBLISHED, "fp32"].flops
    if not missing:  # bfloat16 is computed in bfloat16
        error = timed[OPENVINO, "bf16"].error
        assert error is not None and 1e-3 < error < 0.1


@pytest.mark.parametrize("runtime", [ONNX_RUNTIME, OPENVINO])
def test_a_runtime_gets_torchs_threads(few: Case, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(contenders_exported.PACKAGES[runtime])
    seen = []
    load = contenders_exported.load
    monkeypatch.setattr(contenders_exported, "load", lambda *arguments: seen.append(arguments[-1]) or load(*arguments))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        next(c for c in contenders_translation.translation_contenders(few, CPU) if c.implementation == runtime).make()
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


def test_the_threads_reach_the_runtimes() -> None:
    """One stream of that many threads, and no second pool."""
    runtime = MagicMock()
    runtime.InferenceSession().get_inputs.return_value = [MagicMock(), MagicMock()]
    contenders_exported._onnx_runtime(runtime, "fp32", b"", 3)
    assert (runtime.SessionOptions().intra_op_num_threads, runtime.SessionOptions().inter_op_num_threads) == (3, 1)
    runtime = MagicMock()
    runtime.Core().compile_model().get_property.return_value = runtime.Type.f32
    contenders_exported._openvino(runtime, "fp32", b"", 3)
    settings = runtime.Core().compile_model.call_args.args[-1]
    assert (settings["INFERENCE_NUM_THREADS"], settings["NUM_STREAMS"]) == (3, "1")
    with pytest.raises(Unavailable, match="instead of bf16"):  # a CPU without it gets float32
        contenders_exported._openvino(runtime, "bf16", b"", 3)


@pytest.mark.parametrize("runtime", [ONNX_RUNTIME, OPENVINO])
def test_a_wrong_exported_model_gets_no_time(few: Case, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of the exported weights is wrong."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(contenders_exported.PACKAGES[runtime])
    export = contenders_exported.export

    def spoiled(*arguments: Any) -> bytes:
        program = onnx.load_from_string(export(*arguments))
        last = next(node for node in reversed(program.graph.node) if node.op_type == "Conv")
        weight = next(value for value in program.graph.initializer if value.name == last.input[1])
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return program.SerializeToString()

    monkeypatch.setattr(contenders_exported, "export", spoiled)
    only(monkeypatch, PUBLISHED, runtime)
    found, failures = run([few], QUICK, quiet())
    wrong = [r for r in found if r.implementation == runtime and r.precision == "fp32"]
    assert [r.p50 for r in wrong] == [None] and wrong[0].failure
    assert any(re.search(f"{runtime} NCHW fp32: .*off by", line) for line in failures)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "onnxscript"])
def test_a_runtime_that_is_not_installed_is_named(few: Case, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a row and a line, not the run, and it is no failure."""
    needed = {"onnxruntime": {ONNX_RUNTIME}, "openvino": {OPENVINO}, "onnxscript": {ONNX_RUNTIME, OPENVINO}}[package]
    only(monkeypatch, OURS, PUBLISHED, *needed)
    find = contenders_exported.importlib.util.find_spec
    monkeypatch.setattr(
        contenders_exported.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    console = quiet()
    found, failures = run([few], QUICK, console)
    reason = rf'^{package} .*pip install "munit-fast\[bench\]"'
    missing = {r.implementation: r.failure for r in found if r.failure and re.search(reason, r.failure)}
    assert failures == [] and set(missing) == needed
    for other in {ONNX_RUNTIME, OPENVINO} - needed:
        contenders_exported.require(other)
    assert all(failure in console.file.getvalue() for failure in missing.values())  # type: ignore[attr-defined]
    text = tables.page(found[0].machine, found)
    assert all(failure in text for failure in missing.values()) and FROZEN in text


@pytest.mark.slow
def test_exported_files_are_timed_and_are_no_baselines(few: Case) -> None:
    """In every runtime, of two images in three styles, with fewer multiplications than the published networks."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    found, failures = run([replace(few, level="exported", dtype="fp32")], QUICK, quiet())
    assert failures == []
    timed = {r.implementation: r for r in found if r.failure is None and r.precision == "fp32" and r.layout == "NCHW"}
    assert timed.keys() == {PUBLISHED, ONNX_RUNTIME, OPENVINO, *EXPORTED}
    assert any(r.implementation == OURS for r in found)
    assert {r.implementation for r in found if r.precision == "fp16"} == EXPORTED.keys()
    published = timed[PUBLISHED].flops
    assert published is not None
    for name in EXPORTED:
        error, flops = timed[name].error, timed[name].flops
        assert error is not None and error < 1e-4
        assert flops == timed[EXPORTED_PT2].flops and flops is not None and 0 < flops < published
        assert (timed[name].peak_bytes is None) == (name != EXPORTED_PT2)  # other runtimes' memory is not torch's
    [summary] = summarize(found)
    assert summary.ours is not None and summary.ours.implementation == OURS
    assert summary.best_baseline is not None and summary.best_baseline.implementation not in EXPORTED


@pytest.mark.parametrize("implementation", [ONNX_RUNTIME, OPENVINO, EXPORTED_ONNX, EXPORTED_OPENVINO])
def test_exported_files_and_the_baseline_run_in_the_same_sessions(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = contenders_exported.PACKAGES[implementation]
    runtime, seen = MagicMock(), []
    runtime.InferenceSession().get_inputs.return_value = [MagicMock(), MagicMock()]
    runtime.Core().compile_model().get_property.return_value = runtime.Type.f32
    monkeypatch.setattr(contenders_exported.importlib, "import_module", lambda name: seen.append(name) or runtime)
    contenders_exported.load(implementation, "fp32", b"", 3)
    assert seen == [package]
    if package == "onnxruntime":
        assert runtime.SessionOptions().intra_op_num_threads == 3
    else:
        assert runtime.Core().compile_model.call_args.args[-1]["INFERENCE_NUM_THREADS"] == 3


def test_a_wrong_exported_file_gets_no_time(few: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    load = contenders_exported.load

    def spoiled(*arguments: Any) -> contenders_exported.Run:
        run = load(*arguments)
        return lambda x, codes: 1.01 * run(x, codes)

    monkeypatch.setattr(contenders_exported, "load", spoiled)
    only(monkeypatch, PUBLISHED, EXPORTED_PT2)
    found, failures = run([replace(few, level="exported", dtype="fp32")], QUICK, quiet())
    [wrong] = [r for r in found if r.implementation == EXPORTED_PT2 and r.precision == "fp32"]
    assert wrong.p50 is None and any(EXPORTED_PT2 in line and "off by" in line for line in failures)


@pytest.mark.parametrize("implementation", EXPORTED)
def test_a_precision_that_the_cpu_lacks_is_named_before_anything_is_exported(
    few: Case, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = contenders_exported.PACKAGES.get(implementation, "torch")
    pytest.importorskip(package)
    written: list[Any] = []
    monkeypatch.setattr(contenders_exported, "write", lambda *arguments: written.append(arguments))
    made = contenders_translation.exported_contenders(replace(few, level="exported", dtype="fp32"), CPU)
    [half] = [c for c in made if c.implementation == implementation and c.precision == "fp16"]
    monkeypatch.setitem(contenders_exported._HALF, package, (lambda: False, "no halves here"))
    with pytest.raises(Unavailable, match="no halves here"):
        half.make()
    assert written == []
    contenders_exported.require(implementation, "fp32")
    monkeypatch.setitem(contenders_exported._HALF, package, (lambda: True, ""))
    contenders_exported.require(implementation, "fp16")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="onnxruntime has float16 convolutions on some ARM CPUs")
def test_onnxruntime_computes_float32_instead_of_float16_on_x86() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert not contenders_exported._onnx_runtime_computes_half()


def test_on_a_gpu_there_are_no_exported_files(few: Case) -> None:
    made = contenders_translation.exported_contenders(replace(few, level="exported"), torch.device("cuda"))
    assert {c.implementation for c in made} == {OURS, PUBLISHED}
