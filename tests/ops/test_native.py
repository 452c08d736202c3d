"""What is said where the compiled part is missing: the reason and what to do, once, in one line."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from munit_fast.ops import native, spec

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
    assert re.search(r"munit_fast\._C .*file", native._missing_reason(missing))
    (tmp_path / "_C.missing.txt").write_text("tried g++\nand clang++\n")
    reason = native._missing_reason(missing)
    assert "tried g++ and clang++" in reason and "build_ext --inplace" in reason and "\n" not in reason


def built_with(**changes: list[str]) -> types.SimpleNamespace:
    """A compiled part with the names of this version, but for the changes."""
    enums = {kind: list(names) for kind, names in spec.ENUMS.items()} | changes
    return types.SimpleNamespace(enums=lambda: enums)


def test_a_compiled_part_with_the_same_names_is_taken() -> None:
    assert native._outdated_reason(built_with()) is None


@pytest.mark.parametrize("kind", spec.ENUMS)
@pytest.mark.parametrize("change", ["swapped", "short", "long", "missing"])
def test_a_compiled_part_with_other_codes_is_refused(kind: str, change: str) -> None:
    """In another order, a code would silently mean another activation."""
    first, second, *rest = spec.ENUMS[kind]
    names = {
        "swapped": [second, first, *rest],
        "short": [first, second, *rest][:-1],
        "long": [first, second, *rest, "other"],
        "missing": [],
    }[change]
    reason = native._outdated_reason(built_with(**{kind: names}))
    assert reason is not None and kind.replace("_", " ") in reason and "build_ext --inplace" in reason
    assert all(name in reason for name in names)


def test_a_compiled_part_that_states_no_names_is_refused() -> None:
    reason = native._outdated_reason(types.SimpleNamespace())
    assert reason is not None and "build_ext --inplace" in reason


def test_the_import_refuses_other_codes() -> None:
    program = (
        "import sys, types\n"
        "enums = {'norms': ['none', 'layer', 'instance'], 'activations': [], 'pad_modes': []}\n"
        "sys.modules['munit_fast._C'] = types.SimpleNamespace(enums=lambda: enums)\n"
        "import torch, munit_fast.functional as mf\n"
        "from munit_fast.ops import native\n"
        "assert native.module is None\n"
        "try: mf.bias_act(torch.ones(1, 1, 2, 2), impl='cpu')\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "impl='cpu'" in done.stdout and "norms" in done.stdout and "build_ext --inplace" in done.stdout


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
    said = native._missing_reason(raised.value)
    assert said.startswith("munit_fast._C ") and f"torch {torch.__version__} (" in said
    assert "aoti_torch_no_such_function" in said and "install munit-fast" in said
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
    # The whole message, from the backend to the last remedy.
    assert re.search(r"'reference'.* cpu: munit_fast\._C .*build_ext --inplace.*wheel", said[0])
