"""Packaging lives in pyproject.toml; this file adds the compiled part, munit_fast._C, which csrc/ninja_build.py builds.

Without a compiler the installation still succeeds, and the first operation says what is missing. MUNIT_FAST_NATIVE=1
and MUNIT_FAST_CUDA=1 make that an error, MUNIT_FAST_NATIVE=0 and MUNIT_FAST_CUDA=0 skip the build.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))  # an isolated build has only site-packages there

import ninja_build
from ninja_build import BuildError


def switch(name: str) -> str:
    """An environment variable that is 0, 1 or, for "if it can be built", empty."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"environment variable {name} must be 0, 1 or unset; got {value!r}")
    return value


class BuildNative(build_ext):
    """Builds munit_fast._C with as much as can be built here."""

    def run(self) -> None:
        wanted = switch("MUNIT_FAST_NATIVE")
        target = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        reason = target.with_name("_C.missing.txt")  # munit_fast/ops/native.py reads it
        reason.unlink(missing_ok=True)
        try:
            if wanted == "0":
                raise BuildError("MUNIT_FAST_NATIVE=0 was set when munit-fast was installed")
            super().run()
        except BuildError as error:
            if wanted == "1":
                raise SystemExit(f"munit_fast._C was not built: {error}") from error
            print(f"munit_fast._C was not built, the package will be slower: {error}", file=sys.stderr)
            target.unlink(missing_ok=True)  # one of an earlier build is for earlier Python files
            reason.write_text(f"{error}\n")

    def build_extension(self, ext: Extension) -> None:
        target, folder = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve()
        wanted, verbose = switch("MUNIT_FAST_CUDA"), self.verbose > 1
        cuda_error = "MUNIT_FAST_CUDA=0 was set"
        if wanted != "0":
            try:
                return ninja_build.build(target, folder, ninja_build.CudaToolkit(), "", verbose)
            except BuildError as error:
                if wanted == "1":
                    raise SystemExit(f"the CUDA kernels were not built: {error}") from error
                cuda_error = str(error)
                print(f"munit_fast._C is built without CUDA: {error}", file=sys.stderr)
        ninja_build.build(target, folder, None, cuda_error, verbose)


setup(
    # pyproject.toml's own finder would take kernels/ and benchmarks/ for packages of that name at the top.
    packages=[*find_packages(include=["munit_fast*"]), "munit_fast.benchmarks", "munit_fast.kernels"],
    ext_modules=[Extension("munit_fast._C", ninja_build.SOURCES)],
    cmdclass={"build_ext": BuildNative},
)
