"""What setup.py finds, and what it writes for the compiled part; the compilation itself is tested by its results."""

from __future__ import annotations

import glob
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools

from munit_fast.version import check_torch

ROOT = Path(__file__).resolve().parents[1]
LOG = """
ptxas info    : Compiling entry function 'munit_fast_forward_bf16_wide' for 'sm_80'
ptxas info    : Function properties for munit_fast_forward_bf16_wide
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 103 registers, used 1 barriers, 584 bytes cmem[0], 16 bytes cmem[2]
ptxas info    : Compiling entry function 'munit_fast_backward_bf16_wide' for 'sm_80'
ptxas info    : Function properties for munit_fast_backward_bf16_wide
    8 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 8 bytes cumulative stack size, 96 bytes smem, 584 bytes cmem[0]
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def test_the_resources_that_ptxas_reports(script: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(LOG)
    assert script["read_resources"]([tmp_path / "a.log"]) == [
        ("munit_fast_backward_bf16_wide", "sm_80", 128, 96, 8, 12),
        ("munit_fast_forward_bf16_wide", "sm_80", 103, 0, 0, 0),
    ]


def test_without_nvcc(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason gets into the module, whatever characters it has."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(glob, "glob", lambda pattern: [])
    with pytest.raises(script["NativeBuildError"], match="nvcc was not found") as raised:
        script["Cuda"]()
    text = script["cuda_header"](None, f'{raised.value} "C:\\here"\nand there', [])
    assert "#define MUNIT_FAST_CUDA 0" in text and len(text.splitlines()) == 2
    assert '\\"C:\\\\here\\" and there";' in text


def test_an_older_nvcc_builds_what_it_knows(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda_runtime.h").touch()
    nvcc = tmp_path / "bin/nvcc"
    nvcc.touch(mode=0o755)
    answers = {
        "--version": "Cuda compilation tools, release 12.4, V12.4.131\nBuild x",
        "--list-gpu-code": "sm_80 sm_90",
    }

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, answers.get(command[1], ""), "")

    monkeypatch.setenv("CUDACXX", str(nvcc))
    monkeypatch.setattr(subprocess, "run", run)
    cuda = script["Cuda"]()
    assert cuda.version == "nvcc 12.4.131" and cuda.include == tmp_path / "include"
    assert cuda.names() == "sm_80, sm_90, compute_90"
    assert [flag for flag in cuda.flags() if "gencode" in flag] == [
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    ]


@pytest.mark.parametrize("installed", ["2.10.0", "2.9.1+cpu", "1.13.1"])
def test_an_older_torch_is_named_with_the_oldest_that_works(installed: str) -> None:
    with pytest.raises(ImportError) as raised:
        check_torch(installed)
    assert installed in str(raised.value) and "2.11" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("installed", ["2.11.0", "2.13.0+cpu", "2.100.1", "3.0.0a0+gitabc", "unknown"])
def test_no_torch_is_too_new(installed: str) -> None:
    check_torch(installed)


def test_a_command_says_that_torch_is_too_old_in_one_line() -> None:
    code = "import torch; torch.__version__ = '2.9.0'; from munit_fast.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "2.9.0" in line and "2.11" in line
