"""Packaging lives in pyproject.toml; this file builds the native part, munit_fast._C, with ninja.

The native part needs torch's headers and a C++20 compiler. Without either the installation still succeeds, and
`munit-fast doctor` says what is missing. MUNIT_FAST_NATIVE=1 makes that an error, MUNIT_FAST_NATIVE=0 skips the build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = [
    "csrc/module.cpp",
    "csrc/ops.cpp",
    "csrc/cpu/choose.cpp",
    "csrc/cpu/isa_avx512_bf16.cpp",
    "csrc/cpu/isa_avx512.cpp",
    "csrc/cpu/isa_avx2.cpp",
    "csrc/cpu/isa_baseline.cpp",
]
# The oldest torch that the result loads into: 2.11.
FLAGS = [
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]


class NativeBuildError(Exception):
    """The native part cannot be built here; the message says why."""


def find_torch() -> Path:
    """The folder of the installed torch, which a build isolated by pip cannot import but can see."""
    places = [Path(sysconfig.get_path(kind)) / "torch" for kind in ("platlib", "purelib")]
    places += [Path(entry) / "torch" for entry in sys.path if entry]
    for place in places:
        if (place / "include/torch/csrc/stable/library.h").is_file():
            return place
    raise NativeBuildError(
        "torch's headers were not found: install torch first, then munit-fast again "
        "(in a checkout: python setup.py build_ext --inplace)"
    )


def find_compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise NativeBuildError("no C++ compiler was found (tried $CXX, c++, g++ and clang++)")


def find_ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        if found := shutil.which("ninja"):
            return found
    raise NativeBuildError("ninja was not found: pip install ninja")


class BuildNative(build_ext):
    def run(self) -> None:
        wanted = os.environ.get("MUNIT_FAST_NATIVE", "")
        if wanted == "0":
            return
        try:
            super().run()
        except (NativeBuildError, OSError, subprocess.CalledProcessError) as error:
            if wanted == "1":
                raise SystemExit(f"munit_fast._C was not built: {error}") from error
            print(f"munit_fast._C was not built, the package will be slower: {error}", file=sys.stderr)

    def build_extension(self, ext: Extension) -> None:
        try:
            import pybind11
        except ImportError:
            raise NativeBuildError("pybind11 was not found: pip install pybind11") from None
        torch, compiler, ninja = find_torch(), find_compiler(), find_ninja()
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        version = (torch / "version.py").read_text().split("__version__ = '")[-1].split("'")[0]
        includes = [torch / "include", sysconfig.get_path("include"), pybind11.get_include(), ROOT / "csrc"]
        defines = [f'-DMUNIT_FAST_FLAGS="{" ".join(FLAGS)}"', f'-DMUNIT_FAST_TORCH="{version}"']

        def shell(words: list[str]) -> str:
            return " ".join("'" + word.replace("$", "$$") + "'" for word in words)

        objects = [str(folder / (source.replace("/", "_") + ".o")) for source in ext.sources]
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        lines = [
            f"cxx = {compiler}",
            f"flags = {shell(FLAGS + defines + [part for path in includes for part in ('-isystem', str(path))])}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = $cxx -shared $in -o $out {shell([f'-L{torch}/lib', '-ltorch', '-ltorch_cpu', *undefined])}",
        ]

        def escape(path: object) -> str:
            return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        for source, result in zip(ext.sources, objects):
            lines.append(f"build {escape(result)}: compile {escape(ROOT / source)}")
        lines.append(f"build {escape(target)}: link {' '.join(map(escape, objects))}")
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        subprocess.run([ninja, "-C", str(folder), *(["-v"] if self.verbose > 1 else [])], check=True)


setup(ext_modules=[Extension("munit_fast._C", SOURCES)], cmdclass={"build_ext": BuildNative})
