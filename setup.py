"""Packaging lives in pyproject.toml; this file builds the native part, munit_fast._C, with ninja.

The native part needs torch's headers and a C++20 compiler; its kernels for NVIDIA GPUs also nvcc (CUDA 12.8 or newer
for all architectures), whatever CUDA torch was built with. Without them the installation still succeeds, and
`munit-fast doctor` says what is missing. MUNIT_FAST_NATIVE=1 and MUNIT_FAST_CUDA=1 make that an error,
MUNIT_FAST_NATIVE=0 and MUNIT_FAST_CUDA=0 skip the build.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
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
CUDA_SOURCES = ["csrc/cuda/ops.cpp", "csrc/cuda/launch.cpp", "csrc/cuda/plan.cpp"]
CUDA_KERNELS = [f"csrc/cuda/{name}.cu" for name in ("epilogue_bf16", "epilogue_f16", "epilogue_f32", "losses")]
# For each virtual architecture, whose code needs no later one, the real ones: the front half of the compiler runs three
# times instead of seven. The PTX of 9.0 is for devices that have no code of their own, from 11.0 on.
ARCHITECTURES = {"75": ["75"], "80": ["80", "86", "89"], "90": ["90", "100", "120"]}
PTX = "90"
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


CUDA_FLAGS = ["-std=c++20", "-O3", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"]


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


def find_nvcc() -> str:
    """nvcc: $CUDACXX, beside $CUDA_HOME, on the PATH, or where toolkits are installed."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    for name in [*candidates, *sorted(glob.glob("/usr/local/cuda*/bin/nvcc"), reverse=True)]:
        if name and (found := shutil.which(name)):
            return str(Path(found).resolve())
    raise NativeBuildError("nvcc was not found (tried $CUDACXX, $CUDA_HOME/bin, the PATH and /usr/local/cuda*)")


class Cuda:
    """The toolkit: its compiler, headers, and the architectures that it knows."""

    def __init__(self) -> None:
        self.nvcc = find_nvcc()
        dry = self._ask("--dryrun", "-x", "cu", "-c", "nothing.cu", check=False)
        top = re.search(r"^#\$ (?:_HERE_|TOP)=(.+)$", dry, re.MULTILINE)
        root = Path(top[1].strip() if top else Path(self.nvcc).parent)
        places = [root / "include", root.parent / "include", *root.parent.glob("targets/*/include")]
        self.include = next((place for place in places if (place / "cuda_runtime.h").is_file()), None)
        if self.include is None:
            raise NativeBuildError(f"{self.nvcc} has no cuda_runtime.h beside it")
        version = re.search(r"V(\d+(?:\.\d+)+)", self._ask("--version"))
        self.version = f"nvcc {version[1] if version else 'of unknown version'}"
        known = self._ask("--list-gpu-code").split()
        self.architectures = {
            virtual: found
            for virtual, real in ARCHITECTURES.items()
            if (found := [name for name in real if f"sm_{name}" in known])
        }
        if not self.architectures:
            raise NativeBuildError(f"{self.nvcc} knows none of the architectures that the kernels are for")

    def _ask(self, *words: str, check: bool = True) -> str:
        try:
            done = subprocess.run([self.nvcc, *words], capture_output=True, text=True, check=check)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NativeBuildError(f"{self.nvcc} does not run: {error}") from error
        return done.stdout + done.stderr

    def flags(self) -> list[str]:
        result = list(CUDA_FLAGS)
        for virtual, real in self.architectures.items():
            codes = [f"sm_{name}" for name in real] + ([f"compute_{virtual}"] if virtual == PTX else [])
            result.append(f"-gencode=arch=compute_{virtual},code=[{','.join(codes)}]")
        return result

    def names(self) -> str:
        real = [f"sm_{name}" for names in self.architectures.values() for name in names]
        return ", ".join([*real, *([f"compute_{PTX}"] if PTX in self.architectures else [])])


def read_resources(logs: list[Path]) -> list[tuple[str, str, int, int, int, int]]:
    """Kernel, architecture, registers, static shared memory, stack and spilled bytes, from what ptxas says."""
    table = []
    for log in filter(Path.is_file, logs):
        entry = None
        stack = spilled = 0
        for line in log.read_text().splitlines():
            if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
                entry = found.groups()
            elif found := re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
            ):
                stack, spilled = int(found[1]), int(found[2]) + int(found[3])
            elif entry and (found := re.search(r"Used (\d+) registers", line)):
                shared = re.search(r"(\d+) bytes smem", line)
                table.append((*entry, int(found[1]), int(shared[1]) if shared else 0, stack, spilled))
                entry = None
    return sorted(table)


def cuda_header(cuda: Cuda | None, error: str, resources: list[tuple[str, str, int, int, int, int]]) -> str:
    """What csrc/module.cpp includes: how the CUDA part was built and what its kernels take, or why it is missing."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'

    if cuda is None:
        return f"#define MUNIT_FAST_CUDA 0\nconstexpr const char* cuda_error = {quoted(error)};\n"
    resources = resources or [("none", "none", 0, 0, 0, 0)]  # an array cannot be empty
    rows = ",\n".join(f'    {{"{r[0]}", "{r[1]}", {r[2]}, {r[3]}, {r[4]}, {r[5]}}}' for r in resources)
    return (
        "#define MUNIT_FAST_CUDA 1\n"
        f"constexpr const char* cuda_compiler = {quoted(cuda.version)};\n"
        f"constexpr const char* cuda_architectures = {quoted(cuda.names())};\n"
        f"constexpr const char* cuda_flags = {quoted(' '.join(cuda.flags()))};\n"
        f"constexpr Resources resources[] = {{\n{rows}}};\n"
    )


def write_if_new(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


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
        includes = [torch / "include", sysconfig.get_path("include"), pybind11.get_include()]
        flags = [*FLAGS, f'-DMUNIT_FAST_FLAGS="{" ".join(FLAGS)}"', f'-DMUNIT_FAST_TORCH="{version}"']
        flags += [f"-I{folder}", *(part for path in includes for part in ("-isystem", str(path)))]
        libraries = [f"-L{torch}/lib", "-ltorch", "-ltorch_cpu"]

        def make(cuda: Cuda | None, goal: str) -> None:
            text = build_file(folder, compiler, flags, libraries, ext.sources, cuda, target)
            (folder / "build.ninja").write_text(text)
            subprocess.run([ninja, "-C", str(folder), *(["-v"] if self.verbose > 1 else []), goal], check=True)

        logs = [folder / (object_of(source) + ".log") for source in CUDA_KERNELS]

        def build(cuda: Cuda | None, why: str) -> None:
            write_if_new(folder / "cuda_build.inl", cuda_header(cuda, why, read_resources(logs) if cuda else []))
            make(cuda, "all")

        cuda, why = self._cuda(make, logs)
        try:
            build(cuda, why)
        except (OSError, subprocess.CalledProcessError) as error:
            if cuda is None or os.environ.get("MUNIT_FAST_CUDA") == "1":
                raise
            print(f"munit_fast._C is built without CUDA: linking it failed: {error}", file=sys.stderr)
            build(None, "the CUDA kernels were compiled but could not be linked; the build's output says why")

    def _cuda(self, make: Callable[[Cuda, str], None], logs: list[Path]) -> tuple[Cuda | None, str]:
        """The toolkit, its kernels compiled; or None, and why not."""
        wanted = os.environ.get("MUNIT_FAST_CUDA", "")
        if wanted == "0":
            return None, "MUNIT_FAST_CUDA=0 was set"
        try:
            cuda = Cuda()
            make(cuda, "cuda")
            return cuda, ""
        except (NativeBuildError, OSError, subprocess.CalledProcessError) as error:
            if wanted == "1":
                raise SystemExit(f"the CUDA kernels were not built: {error}") from error
            print(f"munit_fast._C is built without CUDA: {error}", file=sys.stderr)
            if isinstance(error, subprocess.CalledProcessError):  # whose words are a command line
                return None, f"nvcc failed: {first_error(logs)}"
            return None, str(error)


def first_error(logs: list[Path]) -> str:
    """What nvcc complained of first, without the folders of this machine."""
    for log in logs:
        for line in log.read_text(errors="replace").splitlines() if log.is_file() else []:
            if "error" in line.lower():
                return re.sub(r"(/[^\s/:]+)+/", "", line.strip())[:200]
    return "the build's output says why"


def object_of(source: str) -> str:
    return source.replace("/", "_") + ".o"


def build_file(
    folder: Path,
    compiler: str,
    flags: list[str],
    libraries: list[str],
    sources: list[str],
    cuda: Cuda | None,
    target: Path,
) -> str:
    """ninja's: "cuda" is what nvcc compiles, "all" the module."""

    def shell(words: list[str]) -> str:
        return " ".join("'" + word.replace("$", "$$") + "'" for word in words)

    def escape(path: object) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    link = f"$cxx -shared $in -o $out {shell([*libraries, *undefined])}"
    kernels: list[str] = []
    lines = [
        f"cxx = {compiler}",
        f"flags = {shell(flags)}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    if cuda is not None:
        kernels, sources = CUDA_KERNELS, [*sources, *CUDA_SOURCES]
        host = [word for word in compiler.split() if not word.startswith("-")][-1]  # of "ccache g++ -m64"
        # nvcc links: the runtime is inside, and hidden, so that torch's own is another one.
        hidden = ["-cudart=static", "-Xlinker=--exclude-libs,ALL"]
        link = f"{shell([cuda.nvcc])} -shared $in -o $out {shell([f'-ccbin={host}', *hidden, *libraries])}"
        lines += [
            f"cuda_flags = {shell([*cuda.flags(), f'-ccbin={host}'])}",
            "rule cuda",
            f"  command = {shell([cuda.nvcc])} -MD -MF $out.d $cuda_flags -c $in -o $out > $out.log 2>&1 "
            "|| (cat $out.log; exit 1)",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
        lines.append(f"flags_cuda = $flags {shell(['-isystem', str(cuda.include)])}")
    lines += ["rule link", f"  command = {link}"]
    objects = []
    for source in [*sources, *kernels]:
        rule = "cuda" if source.endswith(".cu") else "compile"
        objects.append(escape(folder / object_of(source)))
        lines.append(f"build {objects[-1]}: {rule} {escape(ROOT / source)}")
        if source in CUDA_SOURCES:
            lines.append("  flags = $flags_cuda")
    lines.append(f"build cuda: phony {' '.join(objects[len(objects) - len(kernels) :])}")
    lines.append(f"build {escape(target)}: link {' '.join(objects)}")
    lines.append(f"build all: phony {escape(target)}")
    return "\n".join(lines) + "\n"


setup(ext_modules=[Extension("munit_fast._C", SOURCES)], cmdclass={"build_ext": BuildNative})
