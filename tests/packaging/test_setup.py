"""What the build finds, writes and says; the compilation itself is tested by its results."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from munit_fast.ops import native
from munit_fast.utils.version import check_torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "csrc/ninja_build.py"))


def test_without_nvcc(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason gets into the module, whatever characters it has."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(glob, "glob", lambda pattern: [])
    with pytest.raises(script["BuildError"], match=r"nvcc .*not found") as raised:
        script["CudaToolkit"]()
    text = script["build_header"](None, f'{raised.value} "C:\\here"\nand there')
    assert "#define MUNIT_FAST_CUDA 0" in text and len(text.splitlines()) == 3
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
    cuda = script["CudaToolkit"]()
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


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`setup.py build_ext` into an empty folder, without the CUDA kernels."""
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={folder}", f"--build-temp={folder / 'temp'}"]
    settings = {k: v for k, v in os.environ.items() if k != "CXX"} | {"MUNIT_FAST_CUDA": "0"} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=settings)


def complaining_compiler(folder: Path) -> str:
    compiler = folder / "compiler"
    compiler.write_text("#!/bin/sh\necho '/usr/x.h:3:1: error: no such thing'\nexit 1\n")
    compiler.chmod(0o755)
    return str(compiler)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": ""}, "$CXX, c++, g++ and clang++"),
        ({"MUNIT_FAST_NATIVE": "0"}, "MUNIT_FAST_NATIVE=0"),
        ({"CXX": "complaining"}, "x.h:3:1: error: no such thing"),
    ],
)
def test_an_installation_without_the_compiled_part_notes_why(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    if "CXX" in environment:
        environment = {"CXX": complaining_compiler(tmp_path)}
    noted = tmp_path / "munit_fast/_C.missing.txt"
    earlier = tmp_path / f"munit_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    earlier.parent.mkdir()
    earlier.touch()
    done = build(tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert not earlier.exists()  # what an earlier version built
    note = noted.read_text()
    assert reason in note and note.count("\n") == 1 and note.endswith("\n")
    assert re.search(rf"munit_fast\._C .*: {re.escape(note.strip())}", done.stderr)
    if "MUNIT_FAST_NATIVE" not in environment:
        noted.unlink()
        done = build(tmp_path, **environment, MUNIT_FAST_NATIVE="1")
        assert done.returncode != 0 and re.search(rf"munit_fast\._C .*: {re.escape(note.strip())}", done.stderr)
        assert not noted.exists()


@pytest.mark.parametrize("name", ["MUNIT_FAST_NATIVE", "MUNIT_FAST_CUDA"])
def test_switches_are_zero_or_one(name: str, tmp_path: Path) -> None:
    done = build(tmp_path, **{name: "yes"})
    assert done.returncode != 0 and re.search(f"{name} .*0, 1 .*'yes'", done.stderr)


def test_a_compiled_part_that_exists_is_used() -> None:
    """One whose enums differ from Python's would be left out, and the tests of the kernels with it."""
    if importlib.util.find_spec("munit_fast._C") is None:
        pytest.skip(str(native.native_error))
    assert native.native_error is None and native.module is not None


def test_building_needs_no_torch() -> None:
    """Neither setup.py nor the compiled part's sources name its headers; an isolated build has none."""
    assert "torch" not in "".join(build_requirements())
    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    includes = [line for path in files for line in path.read_text().splitlines() if line.startswith("#include")]
    assert len(includes) > 50
    assert [line for line in includes if re.search(r"<(torch|ATen|c10)/", line)] == []


def build_requirements() -> list[str]:
    """[build-system] requires of pyproject.toml."""
    found = re.search(r"^requires = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return json.loads(found[1])
