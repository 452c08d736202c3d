"""The CUDA kernels as compiled into munit_fast._C: what each takes on each architecture, and its machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from munit_fast.ops import backends, native
from munit_fast.ops.backends import cuda, registry
from munit_fast.ops.backends.registry import Problem

BUILT = native.module.build_info() if native.module is not None else {"cuda_error": str(native.native_error)}
needs_cuda = pytest.mark.skipif("cuda_error" in BUILT, reason=f"no CUDA kernels: {BUILT.get('cuda_error')}")
needs_nvcc_13 = pytest.mark.skipif("compute_90" not in BUILT.get("cuda_architectures", ""), reason="an older nvcc")

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
PASSES = ("statistics", "forward", "backward_sums", "backward")
SLABS = ("slab_forward", "slab_backward")
TYPES = ("f32", "bf16", "f16")
KERNELS = {f"munit_fast_{kernel}_{t}_{width}" for kernel in PASSES for t in TYPES for width in ("wide", "single")}
KERNELS |= {f"munit_fast_{kernel}_{t}_wide" for kernel in SLABS for t in TYPES}
GROUP = {"munit_fast_group_statistics", "munit_fast_group_terms"}
BORDER = {f"munit_fast_phase_border_{way}{t}" for way in ("", "backward_") for t in TYPES}
LOSSES = {*(f"munit_fast_losses_{t}" for t in TYPES), "munit_fast_combine"}
ALL = KERNELS | GROUP | BORDER | LOSSES
THREADS = 256
REGISTERS = 65536  # of a multiprocessor, on all of these
# Blocks that a multiprocessor holds at once (csrc/cuda/params.h).
RESIDENT = {**dict.fromkeys(KERNELS | GROUP | BORDER, 2), **dict.fromkeys(LOSSES, 4)}


def _cuobjdump(*flags: str) -> str:
    beside_triton = Path(sys.prefix).glob("lib/python*/site-packages/triton/backends/nvidia/bin/cuobjdump")
    for tool in (shutil.which("cuobjdump"), *map(str, beside_triton)):
        if tool:
            command = [tool, *flags, native.module.__file__]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pytest.skip("cuobjdump is neither on the PATH nor in a triton package")


@pytest.fixture(scope="module")
def table() -> list[dict[str, Any]]:
    """What each kernel takes on each architecture; what does not fit its registers is on the stack, or local."""
    rows = []
    for part in _cuobjdump("--dump-resource-usage").split("arch = ")[1:]:
        for kernel, numbers in re.findall(r"Function (\w+):\n +(.+)", part):
            used = {
                name.lower(): int(number) for name, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", numbers)
            }
            rows.append({"kernel": kernel, "architecture": part.split()[0], **used})
    return rows


@needs_cuda
@needs_nvcc_13
def test_every_kernel_is_there_for_every_architecture(table: list[dict[str, Any]]) -> None:
    found = {(row["kernel"], row["architecture"]) for row in table}
    assert found == {(kernel, architecture) for kernel in ALL for architecture in ARCHITECTURES}
    assert len(found) == len(table)
    assert BUILT["cuda_architectures"] == ", ".join([*ARCHITECTURES, "compute_90"])
    assert BUILT["cuda_compiler"].startswith("nvcc ") and "-std=c++20" in BUILT["cuda_flags"]


@needs_cuda
def test_nothing_is_spilled(table: list[dict[str, Any]]) -> None:
    assert table and [row for row in table if row["stack"] or row["local"]] == []


@needs_cuda
def test_registers_and_shared_memory_leave_room_for_the_stated_blocks(table: list[dict[str, Any]]) -> None:
    """Shared memory is given at the launch; test_cuda_simulated.py looks at how much."""
    for row in table:
        granted = -(-row["reg"] // 8) * 8  # in units of 8 a thread
        assert granted * THREADS * RESIDENT[row["kernel"]] <= REGISTERS, row
        reserved = 1024 if int(row["architecture"].removeprefix("sm_")) >= 90 else 0  # by the hardware, for each block
        assert row["shared"] == reserved, row


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_machine_code(architecture: str) -> None:
    """16 bytes at a time where a kernel says so, clusters where there are any, and no atomics anywhere."""
    if architecture not in BUILT["cuda_architectures"]:
        pytest.skip(f"nvcc did not know {architecture}")
    text = _cuobjdump("-sass", "-arch", architecture)
    code = dict(re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*Function :|\Z)", text, re.DOTALL))
    assert set(code) == ALL
    for kernel, body in code.items():
        found = set(re.findall(r"\b([A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*)\b", body))
        assert not any(re.match(r"(ATOM|ATOMG|ATOMS|RED|REDG)(\.|$)", name) for name in found), kernel
        assert not found & {"LDL", "STL", "LDL.64", "STL.64"}, kernel
        wide = [name for name in found if re.fullmatch(r"(LDG|STG)\.E(\.\w+)*\.128(\.\w+)*", name)]
        if "_wide" in kernel or "_losses_" in kernel:
            assert any(name.startswith("LDG") for name in wide), (kernel, sorted(found))
        if re.search(r"_(forward|backward)_\w+_wide|_backward_sums_\w+_wide|_losses_", kernel):
            assert any(name.startswith("STG") for name in wide), (kernel, sorted(found))
        if "_slab_" in kernel:
            assert {"LDS.128", "STS.128"} <= {re.sub(r"\.U(?=\.)", "", name) for name in found}, (kernel, sorted(found))
            clusters = int(architecture.removeprefix("sm_")) >= 90
            assert any(name.startswith("UCGABAR_ARV") for name in found) == clusters, kernel


@needs_cuda
def test_reasons_for_what_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    assert re.search(r"NVIDIA.*\bcpu$", cuda.unsupported_reason(torch.device("cpu"), torch.float32) or "")
    assert re.search(r"float32, bfloat16.*float16.*torch\.float64", cuda.unsupported_reason(gpu, torch.float64) or "")
    for problem, expected in (
        (Problem("epilogue", channels_last=False), r"NCHW \(x\.to\(memory_format=torch\.channels_last\)\)"),
        (Problem("epilogue", samples=70000), "65535 samples.*70000"),
        (Problem("epilogue", channels=70000), "65535 channels.*70000"),
    ):
        assert re.search(expected, cuda.unsupported_problem_reason(problem) or "")
    assert "2^30" in cuda.unsupported_problem_reason(Problem("epilogue", sample=2**31))
    assert cuda.unsupported_problem_reason(Problem("epilogue", sample=2**30)) is None
    cuda._device_unsupported_reason.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert re.search("torch .*not built", cuda.unsupported_reason(gpu, torch.float32) or "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    for capability, expected in (
        ((7, 0), r"7\.5 .* 7\.0$"),
        ((9, 0), "load.*: munit_fast: "),
    ):
        cuda._device_unsupported_reason.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, c=capability: c)
        if capability < (7, 5) or not torch.cuda.is_available():
            assert re.search(expected, cuda.unsupported_reason(gpu, torch.float32) or "")
    cuda._device_unsupported_reason.cache_clear()


def test_without_the_cuda_part_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(native, "module", SimpleNamespace(build_info=lambda: {"cuda_error": "nvcc was not found"}))
    assert re.match(r"munit_fast\._C .*CUDA: nvcc was not found$", cuda.unsupported_reason(gpu, torch.float32) or "")
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "native_error", "there is no compiler")
    assert cuda.unsupported_reason(gpu, torch.float32) == "there is no compiler"


def test_the_table_of_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row that fits decides; then the first backend that serves the problem."""
    small, large = (Problem("epilogue", "instance", True, 1, size, 2) for size in (1000, 10**8))
    row = registry.BackendRule("cuda", "epilogue", (9, 0), ("instance",), 2, 2**20, ("cuda", "triton"), "in this test")
    monkeypatch.setattr(registry, "TABLE", [row, *registry.TABLE])
    assert registry.order("cuda", (9, 0), small) == ("cuda", "triton", "reference")
    assert registry.order("cuda", (8, 0), small) == ("triton", "cuda", "reference")
    assert registry.order("cuda", (9, 0), large) == ("triton", "cuda", "reference")
    assert registry.order("cuda", (9, 0), small._replace(norm="layer")) == ("triton", "cuda", "reference")
    assert registry.order("cuda", (9, 0), small._replace(op="losses")) == ("triton", "cuda", "reference")
    assert registry.order("cpu", (0, 0), small) == ("cpu", "reference")
    assert registry.order("meta", (0, 0), None) == ("reference",)

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(backends, "_capability", lambda device: (9, 0))
    for name in ("cuda", "triton"):
        monkeypatch.setattr(backends.BACKENDS[name], "unsupported_reason", lambda device, dtype: None)
    assert backends.automatic(gpu, torch.bfloat16, small) == "cuda"
    assert backends.automatic(gpu, torch.bfloat16, small._replace(channels_last=False)) == "triton"
    assert backends.automatic(gpu, torch.bfloat16, large) == "triton"
    monkeypatch.setattr(
        backends.BACKENDS["triton"], "unsupported_reason", lambda device, dtype: "triton is not installed"
    )
    assert backends.automatic(gpu, torch.bfloat16, large) == "cuda"
    assert backends.automatic(gpu, torch.bfloat16, large._replace(channels_last=False)) == "reference"


@needs_cuda
def test_the_one_binary_loads_beside_a_torch_without_cuda() -> None:
    """What it needs of CUDA it carries or looks up later; nothing of its runtime is visible to torch's own."""
    if (tool := shutil.which("nm")) is None:
        pytest.skip("nm is not installed")
    command = [tool, "-D", native.module.__file__]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not re.search(r"\bcuda[A-Z]\w+", names), "the CUDA runtime is linked or exported"
    assert not re.search(r" U aoti_torch_(get_current_cuda_stream|\w*cuda_guard)", names)
