"""Where the kernels cannot run they say why, and importing their package needs neither Triton nor a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from munit_fast import kernels
from munit_fast.kernels import launch

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[2]

# A machine whose only GPU is made up: what munit_fast and Triton ask torch.cuda before they launch.
MADE_UP = """
import torch
capturing = False
torch.cuda.is_available = lambda: True
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.is_current_stream_capturing = lambda: capturing
torch._C._cuda_getCurrentRawStream = lambda index: 0
from munit_fast.ops import backends
gpu, dtype = torch.device("cuda", 0), torch.float32
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._device_unsupported_reason.cache_clear()
    monkeypatch.setattr(kernels, "_failures", {})


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A GPU on which everything that is launched succeeds; the devices of the launches."""
    probe = pytest.importorskip("munit_fast.kernels.probe")
    found: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(probe, "load_driver", lambda: None)
    monkeypatch.setattr(launch, "run", lambda kernel, grid, device, *args, **meta: found.append(device))
    return found


def on_a_made_up_gpu(program: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs MADE_UP and `program` in a process of its own, with an empty Triton cache and no compiler named in CC."""
    env = {name: value for name, value in os.environ.items() if name not in ("CC", "TRITON_INTERPRET")}
    env |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", MADE_UP + program]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=240, check=False)


@pytest.fixture
def driver(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose CUDA driver agrees to everything and says "launched" on stderr."""
    compiler, triton = shutil.which("gcc"), importlib.util.find_spec("triton")
    source = Path(triton.origin).parent / "backends/nvidia/driver.c" if triton is not None else None
    if compiler is None or source is None or not source.is_file():
        pytest.skip("this needs gcc, and Triton with its NVIDIA driver")
    launcher = source.with_suffix(".py")  # holds the launcher's source in older Tritons
    bodies = {
        "cuFuncGetAttribute": "*(int*)first = 1024;",
        "cuDeviceGetAttribute": "*(int*)first = 1024;",
        "cuLaunchKernelEx": 'write(2, "launched\\n", 9);',
    }
    functions = [
        f"int {name}(void* first) {{ {bodies.get(name, '')} return 0; }}"
        for name in sorted(set(re.findall(r"\bcu[A-Z]\w*", source.read_text() + launcher.read_text())))
    ]
    (tmp_path / "driver.c").write_text("\n".join(["#include <unistd.h>", *functions]))
    library = tmp_path / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *flags, tmp_path / "driver.c", "-o", library], check=True)
    return {"TRITON_LIBCUDA_PATH": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}


def test_other_devices() -> None:
    assert re.search(r"CUDA.*HIP.*\bcpu$", kernels.unsupported_reason(torch.device("cpu"), torch.float32) or "")


def test_other_dtypes() -> None:
    reason = kernels.unsupported_reason(CUDA, torch.float64) or ""
    assert re.search(r"float32, bfloat16, float16.*torch\.float64$", reason)


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.search("^no .*CUDA.*HIP", kernels.unsupported_reason(CUDA, torch.float32) or "")


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert re.search("triton .*not installed", kernels.unsupported_reason(CUDA, torch.float32) or "")


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 0), torch.float16, r"7\.5 .* 7\.0$"),
        ((7, 5), torch.bfloat16, None),
        ((7, 5), torch.float16, None),
        ((9, 0), torch.bfloat16, None),
    ],
)
def test_capability(
    capability: tuple[int, int],
    dtype: torch.dtype,
    reason: str | None,
    launches: list[torch.device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    found = kernels.unsupported_reason(CUDA, dtype)
    assert found is None if reason is None else re.search(reason, found or "")


def test_a_kernel_is_launched_once_on_each_device(launches: list[torch.device]) -> None:
    devices = [torch.device(name) for name in ("cuda:0", "cuda:1", "cuda", "cuda:0")]
    for device in devices:
        for dtype in kernels.DTYPES:
            assert kernels.unsupported_reason(device, dtype) is None
    assert launches == devices[:2]


def test_nothing_is_launched_during_a_capture(launches: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert kernels.unsupported_reason(CUDA, torch.float32) is None and not launches
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert kernels.unsupported_reason(CUDA, torch.float32) is None and launches == [CUDA]


def test_a_failed_launch_is_remembered(launches: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    """During a capture too."""

    def failing(kernel: object, grid: object, device: torch.device, *args: object, **meta: object) -> None:
        launches.append(device)
        raise OSError("no room for the cache\nhere")

    monkeypatch.setattr(launch, "run", failing)
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda c=capturing: c)
        assert re.search("launch.*: no room for the cache$", kernels.unsupported_reason(CUDA, torch.float32) or "")
    assert len(launches) == 1


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("capturing", [False, True])
def test_without_a_compiler_another_backend_is_taken(capturing: bool, tmp_path: Path) -> None:
    """As in most containers that are made to run programs, not to build them."""
    program = f"""
capturing = {capturing}
print(backends.unsupported_reason("triton", gpu, dtype))
backends.cuda.unsupported_reason = lambda device, dtype: None
print(backends.automatic(gpu, dtype))
backends.cuda.unsupported_reason = lambda device, dtype: "there is no nvcc either"
print(backends.choose("auto", gpu, dtype).__name__)
try:
    backends.choose("triton", gpu, dtype)
except RuntimeError as error:
    print(error)
"""
    done = on_a_made_up_gpu(program, tmp_path, PATH="", TRITON_LIBCUDA_PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    reason, second, last, error = done.stdout.splitlines()
    assert re.search("launch.*: Failed to find C compiler", reason)
    assert second == "cuda" and last == "munit_fast.ops.backends.reference"
    assert error.startswith("impl='triton' ") and error.endswith(f": {reason}")
    assert re.search(rf"'reference'.*cuda: triton: {re.escape(reason)}", done.stderr)


def test_a_compiler_that_fails_is_named(tmp_path: Path, driver: dict[str, str]) -> None:
    """Without Python's headers, for one."""
    compiler = tmp_path / "failing"
    compiler.write_text("#!/bin/sh\necho Python.h is missing >&2\nexit 3\n")
    compiler.chmod(0o755)
    done = on_a_made_up_gpu(
        'print(backends.unsupported_reason("triton", gpu, dtype))', tmp_path, **driver, CC=str(compiler)
    )
    assert re.fullmatch(rf".*launch.*: {re.escape(str(compiler))} .*\b3\b.*\n", done.stdout), done.stderr
    assert "Python.h is missing" in done.stderr


def test_triton_is_taken_where_its_launcher_launches(tmp_path: Path, driver: dict[str, str]) -> None:
    """Triton's own compiler and launcher, over a driver that agrees to everything; also while tensors are faked."""
    program = """
from torch._subclasses import FakeTensorMode
with FakeTensorMode():
    print(backends.unsupported_reason("triton", gpu, dtype))
print(backends.automatic(gpu, dtype))
"""
    done = on_a_made_up_gpu(program, tmp_path, **driver)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None", "triton"]
    assert done.stderr.splitlines().count("launched") == 1  # beside what a newer Triton warns of


def test_the_package_imports_without_triton() -> None:
    program = "import sys; sys.modules['triton'] = None; from munit_fast import kernels; print(kernels.DTYPES)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_does_not_import_triton() -> None:
    program = "import sys; from munit_fast import kernels; assert 'triton' not in sys.modules, 'triton was imported'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
