"""csrc/torch/abi.h, which declares what the compiled part calls of torch, against the installed torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from munit_fast.ops import native

ROOT = Path(__file__).resolve().parents[2]
ABI = ROOT / "csrc/torch/abi.h"
HEADERS = Path(torch.__file__).parent / "include"
BOTH = """
#define USE_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include "abi.h"
#include "cuda/launch.h"
#include <type_traits>
static_assert(std::is_same_v<decltype(&aoti_torch_get_current_cuda_stream), munit_fast::cuda::CurrentStream>);
"""


def declared(text: str) -> set[str]:
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\(", re.sub(r"//.*", "", text)))


def compile_both(folder: Path, abi: str) -> subprocess.CompletedProcess[str]:
    """Compiles a file that includes torch's headers and `abi` in the place of ours."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((name for name in names if name and shutil.which(name)), None)
    if compiler is None or not (HEADERS / "torch/csrc/stable/c/shim.h").is_file():
        pytest.skip("there is no C++ compiler, or this torch has no headers")
    (folder / "abi.h").write_text(abi)
    (folder / "both.cpp").write_text(BOTH)
    places = [f"-I{folder}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/helpers/simt'}", f"-isystem{HEADERS}"]
    target = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the oldest that is supported: what came later is hidden
    command = [compiler, "-std=c++20", "-fsyntax-only", target, *places, str(folder / "both.cpp")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_declarations_are_those_of_the_installed_torch(tmp_path: Path) -> None:
    text = ABI.read_text()
    # A function that torch's headers do not have conflicts with none: each is named once without our declaration.
    uses = "".join(f"constexpr auto use_{name} = &{name};\n" for name in sorted(declared(text)))
    done = compile_both(tmp_path, uses + text)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        ("get_dim(AtenTensorOpaque* tensor, int64_t* dimensions)", "get_dim(AtenTensorOpaque* tensor, int32_t* d)"),
        ("int32_t aoti_torch_get_numel", "int64_t aoti_torch_get_numel"),
        ("using StableIValue = uint64_t", "using StableIValue = int64_t"),
        ("struct StableListOpaque;", "struct StableListOpaque;\nextern int32_t torch_list_size;"),
    ],
)
def test_another_declaration_is_found(ours: str, other: str, tmp_path: Path) -> None:
    text = ABI.read_text()
    assert text.count(ours) == 1
    assert compile_both(tmp_path, text.replace(ours, other)).returncode != 0


@pytest.mark.skipif(native.module is None, reason="the compiled part is missing")
def test_nothing_else_of_torch_is_called() -> None:
    if (nm := shutil.which("nm")) is None:
        pytest.skip("nm is not installed")
    command = [nm, "-D", "--undefined-only", native.module.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    called = set(re.findall(r" U ((?:aoti_)?torch_\w+)", text))
    without_cuda = "cuda_error" in native.module.build_info()
    assert called <= declared(ABI.read_text()) if without_cuda else called == declared(ABI.read_text())
    assert not re.search(r" U _Z\w*(N3c10|N2at|N5torch)", text)  # of torch's C++ interface, which changes


@pytest.mark.skipif(native.module is None, reason="the compiled part is missing")
def test_what_torch_refuses_is_an_import_error(tmp_path: Path) -> None:
    """A second module that registers the same operators."""
    copy = shutil.copy(native.module.__file__, tmp_path)
    code = (
        "import importlib.util as u, munit_fast.ops.native\n"
        f"spec = u.spec_from_file_location('_C', {copy!r})\n"
        "try: spec.loader.exec_module(u.module_from_spec(spec))\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and re.fullmatch("munit_fast: .*registering.*\n", done.stdout), done.stderr


@pytest.mark.skipif(native.module is None, reason="the compiled part is missing")
def test_an_error_in_an_operator_reaches_python() -> None:
    x = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"^munit_fast: a and b "):
        torch.ops.munit_fast_cpu.l1_sum(x, x.double())


@pytest.mark.skipif(native.module is None, reason="the compiled part is missing")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_parameters_of_every_dtype_are_read(dtype: torch.dtype) -> None:
    """Ordinary, tiny (below the smallest normal number), zero, infinite and undefined numbers, with their sign."""
    tiny = torch.finfo(dtype).tiny
    bias = torch.tensor([1.5, -2.75, 1e-3, tiny, -tiny / 2, 0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    x = torch.zeros(1, 10, 1, 1, dtype=torch.float64)
    y, stats = torch.empty_like(x), torch.empty(2, 0, dtype=torch.float64)
    torch.ops.munit_fast_cpu.epilogue_forward(
        x, None, bias, None, None, y, stats, False, 0, 1e-5, 0, 0.2, 1, 0, 0, 1, False
    )
    torch.testing.assert_close(y.flatten(), bias.double(), rtol=0, atol=0, equal_nan=True)
