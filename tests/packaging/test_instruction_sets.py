"""Each instruction set's file, compiled as csrc/ninja_build.py does it, by GCC and by clang."""

from __future__ import annotations

import platform
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN = """
#include <cstdio>
#include <initializer_list>
#include "cpu/kernels.h"
using namespace munit_fast::cpu;
namespace munit_fast::cpu {
void run_tasks(int64_t, void (*)(int64_t, void*), void*) {}
int64_t thread_count() { return 1; }
float* scratch(int64_t) { return nullptr; }
}
int main() {
  for (const Kernels* k : {avx512_bf16_kernels(), avx512_kernels(), avx2_kernels(), baseline_kernels()})
    std::puts(k ? k->name : "missing");
  std::puts(available()[0]);
}
"""
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "csrc/ninja_build.py"))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:5000]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_instruction_set_is_built_and_shares_nothing(
    compiler: str, script: dict[str, Any], tmp_path: Path
) -> None:
    """Of weak symbols the linker keeps one file's for all: that with AVX-512 in it perhaps, on machines without it.

    Nothing is optimised here, so a function that another compiler would not inline is seen too.
    """
    if not shutil.which(compiler) or not shutil.which("nm"):
        pytest.skip(f"{compiler} or nm is not installed")
    lines = script["ninja_file"](tmp_path, compiler, [], None, tmp_path / "_C.so").splitlines()
    main = tmp_path / "main.cpp"
    main.write_text(MAIN)
    flags = [*script["FLAGS"], "-O0", "-Werror", f"-I{ROOT / 'csrc'}"]
    objects = []
    for source in (str(main), str(ROOT / "csrc/cpu/dispatch.cpp"), *script["INSTRUCTION_SETS"]):
        objects.append(str(tmp_path / (Path(source).stem + ".o")))
        own = (
            next((lines[i + 1] for i, line in enumerate(lines) if line.endswith(source)), "")
            if "isa_" in source
            else ""
        )
        words = own.partition("=")[2].replace("'", "").split()
        assert bool(words) == ("isa_" in source)
        run(compiler, *flags, *words, "-c", str(ROOT / source), "-o", objects[-1])
        if words:
            symbols = [line.split()[-2:] for line in run("nm", objects[-1]).splitlines()]
            assert [name for kind, name in symbols if kind in "WwVvu"] == [], source
            assert len([name for kind, name in symbols if kind == "T"]) == 1, source
    run(compiler, *objects, "-o", str(tmp_path / "main"))
    *built, best = run(str(tmp_path / "main")).split()
    assert built == (["avx512_bf16", "avx512", "avx2", "sse2"] if X86 else ["missing"] * 3 + ["neon"])
    assert best in built
