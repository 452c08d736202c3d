"""Where the kernels cannot run they say why, and importing their package needs neither Triton nor a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from munit_fast import kernels
from munit_fast.kernels import launch
from munit_fast.ops import layout as operators

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    kernels._why_not_here.cache_clear()


def test_other_devices() -> None:
    assert kernels.why_not(torch.device("cpu"), torch.float32) == (
        "the Triton kernels run on CUDA and HIP devices, not on cpu"
    )


def test_other_dtypes() -> None:
    assert kernels.why_not(CUDA, torch.float64) == (
        "the Triton kernels take float32, bfloat16, float16; got torch.float64"
    )


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.why_not(CUDA, torch.float32) == "no CUDA or HIP device is visible"


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert kernels.why_not(CUDA, torch.float32) == "triton is not installed"


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 0), torch.float16, "Triton needs compute capability 7.5 or higher; this device has 7.0"),
        ((7, 5), torch.bfloat16, None),
        ((7, 5), torch.float16, None),
        ((9, 0), torch.bfloat16, None),
    ],
)
def test_capability(
    capability: tuple[int, int], dtype: torch.dtype, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert kernels.why_not(CUDA, dtype) == reason


def test_the_package_imports_without_triton() -> None:
    program = "import sys; sys.modules['triton'] = None; from munit_fast import kernels; print(kernels.DTYPES)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_does_not_import_triton() -> None:
    program = "import sys; from munit_fast import kernels; assert 'triton' not in sys.modules, 'triton was imported'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (1, 1, 4, 5), (2, 1, 1, 1), (1, 4, 1, 6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_are_read_as_the_operators_read_them(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x = torch.empty(shape, memory_format=layout)
    assert launch.is_channels_last(x) == operators.is_channels_last(x)
