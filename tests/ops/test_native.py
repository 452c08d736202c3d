"""What is said where the compiled part is missing: the reason and what to do, once, in one line."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from munit_fast.ops import native

ROOT = Path(__file__).resolve().parents[2]
# Runs a command in a process where the compiled part cannot be imported.
WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "munit_fast._C":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from munit_fast import cli
sys.argv = ["munit-fast", *sys.argv[1:]]
cli.main()
"""


def test_the_reason_that_the_installation_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "ops" / "native.py"))
    missing = ModuleNotFoundError("No module named 'munit_fast._C'", name="munit_fast._C")
    assert "(its file is not there); install a C++20 compiler" in native._why_missing(missing)
    (tmp_path / "_C.missing.txt").write_text("no C++ compiler\nwas found\n")
    assert native._why_missing(missing) == (
        "munit_fast._C is not built for this Python (no C++ compiler was found); install a C++20 compiler and then "
        "munit-fast again (in a checkout: python setup.py build_ext --inplace), or a wheel, which needs none"
    )


def test_a_function_that_torch_lacks_is_named(tmp_path: Path) -> None:
    if (compiler := shutil.which("g++") or shutil.which("c++")) is None:
        pytest.skip("there is no C++ compiler")
    (tmp_path / "c.cpp").write_text(
        'extern "C" int aoti_torch_no_such_function();\n'
        'extern "C" void* PyInit__C() { return aoti_torch_no_such_function() ? nullptr : nullptr; }\n'
    )
    library = str(tmp_path / "_C.so")
    subprocess.run([compiler, "-shared", "-fPIC", str(tmp_path / "c.cpp"), "-o", library], check=True)
    loader = importlib.machinery.ExtensionFileLoader("_C", library)
    with pytest.raises(ImportError) as raised:
        importlib.util.module_from_spec(importlib.util.spec_from_loader("_C", loader))
    said = native._why_missing(raised.value)
    assert said.startswith(f"munit_fast._C does not load into torch {torch.__version__} (")
    assert "aoti_torch_no_such_function" in said and said.endswith("; install munit-fast again")
    assert "\n" not in said


def test_a_command_says_it_once_in_one_line(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    Image.new("RGB", (64, 80), "white").save(tmp_path / "b.png")
    command = [sys.executable, "-c", WITHOUT, "translate", "--pretrained", "openmoji-lines2color", "--num_style", "1"]
    command += ["--input", str(tmp_path), "--output_folder", str(tmp_path / "out"), "--device", "cpu"]
    environment = os.environ | {"COLUMNS": "60"}  # it is not folded to a terminal's width either
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "_C" in line or "C++" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith(
        "using the slower 'reference' backend on cpu: munit_fast._C is not built for this Python ("
    )
    assert said[0].endswith("or a wheel, which needs none")
