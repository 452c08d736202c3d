"""Compiles csrc/ into munit_fast._C: finds the compilers, writes build.ninja and runs it, as setup.py asks.

It needs a C++20 compiler, and no torch: csrc/torch/abi.h declares what is called there. The kernels for NVIDIA GPUs
need nvcc too (CUDA 12.8 or newer for all architectures), whatever CUDA torch is built with.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
]
# An instruction set's file takes its own flags, on x86-64. Without exceptions nothing in it is shared with other files.
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [*_AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")), "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {
    "csrc/cpu/isa_avx512_bf16.cpp": [*_AVX512, "-mavx512bf16"],
    "csrc/cpu/isa_avx512.cpp": _AVX512,
    "csrc/cpu/isa_avx2.cpp": _AVX2,
    "csrc/cpu/isa_baseline.cpp": [],
}
SOURCES = [
    "csrc/module.cpp",
    "csrc/cpu/ops.cpp",
    "csrc/cpu/conv_ops.cpp",
    "csrc/cpu/dispatch.cpp",
    *INSTRUCTION_SETS,
]
CUDA_SOURCES = ["csrc/cuda/ops.cpp", "csrc/cuda/launch.cpp", "csrc/cuda/tiling.cpp"]
CUDA_KERNELS = [
    f"csrc/cuda/{name}.cu"
    for name in ("epilogue_bf16", "epilogue_f16", "epilogue_f32", "group", "losses", "phase_border")
]
CUDA_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"]
# For each virtual architecture, whose code needs no later one, the real ones: the front half of the compiler runs three
# times instead of seven. The PTX of 9.0 is for devices that have no code of their own, from 11.0 on.
ARCHITECTURES = {"75": ["75"], "80": ["80", "86", "89"], "90": ["90", "100", "120"]}
PTX = "90"


class BuildError(Exception):
    """The compiled part, or its CUDA kernels, cannot be built here; the message says why."""


def run(*command: str, check: bool = True) -> str:
    """The output of a program.

    Raises:
        BuildError: if it fails and `check` is set; with its first complaint, without the folders of this machine.
    """
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if check and done.returncode:
        print(done.stdout, file=sys.stderr)
        lines = done.stdout.splitlines()
        first = next((line for line in lines if re.search(r"(?i)\b(error|fatal)\b\s*[:#]", line)), "".join(lines[-1:]))
        raise BuildError(re.sub(r"(/[^\s/:]+)+/", "", first.strip())[:200] or f"{command[0]} failed")
    return done.stdout


def find_program(what: str, names: list[str | None], tried: str) -> str:
    """The first of these commands that exists.

    Raises:
        BuildError: if none does.
    """
    for name in names:
        if name and (shutil.which(name) or shutil.which(name.split()[0])):  # with flags, as in CXX="ccache g++"
            return name
    raise BuildError(f"{what} was not found (tried {tried})")


class CudaToolkit:
    """nvcc, its headers, and the architectures that it knows.

    Raises:
        BuildError: if there is none, or none that compiles the kernels.
    """

    def __init__(self) -> None:
        homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
        names = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
        names += sorted(glob.glob("/usr/local/cuda*/bin/nvcc"), reverse=True)
        found = find_program("nvcc", names, "$CUDACXX, $CUDA_HOME/bin, the PATH and /usr/local/cuda*")
        self.nvcc = str(Path(str(shutil.which(found))).resolve())
        top = re.search(
            r"^#\$ (?:_HERE_|TOP)=(.+)$", run(self.nvcc, "--dryrun", "-x", "cu", "-c", "nothing.cu", check=False), re.M
        )
        root = Path(top[1].strip() if top else Path(self.nvcc).parent)
        places = [root / "include", root.parent / "include", *root.parent.glob("targets/*/include")]
        self.include = next((place for place in places if (place / "cuda_runtime.h").is_file()), None)
        if self.include is None:
            raise BuildError(f"{self.nvcc} has no cuda_runtime.h beside it")
        version = re.search(r"V(\d+(?:\.\d+)+)", run(self.nvcc, "--version"))
        self.version = f"nvcc {version[1] if version else 'of unknown version'}"
        known = run(self.nvcc, "--list-gpu-code").split()
        real = {virtual: [n for n in names if f"sm_{n}" in known] for virtual, names in ARCHITECTURES.items()}
        self.architectures = {virtual: names for virtual, names in real.items() if names}
        if not self.architectures:
            raise BuildError(f"{self.nvcc} knows none of the architectures that the kernels are for")

    def flags(self) -> list[str]:
        result = list(CUDA_FLAGS)
        for virtual, real in self.architectures.items():
            codes = [f"sm_{name}" for name in real] + ([f"compute_{virtual}"] if virtual == PTX else [])
            result.append(f"-gencode=arch=compute_{virtual},code=[{','.join(codes)}]")
        return result

    def names(self) -> str:
        real = [f"sm_{name}" for names in self.architectures.values() for name in names]
        return ", ".join([*real, *([f"compute_{PTX}"] if PTX in self.architectures else [])])


def build_header(cuda: CudaToolkit | None, cuda_error: str) -> str:
    """build.inl, which csrc/module.cpp includes: how the parts were built, or why the CUDA part is missing."""
    constants = {"build_flags": " ".join(FLAGS)}
    if cuda is None:
        constants["cuda_error"] = cuda_error
    else:
        constants |= {
            "cuda_compiler": cuda.version,
            "cuda_architectures": cuda.names(),
            "cuda_flags": " ".join(cuda.flags()),
        }
    lines = [f"#define MUNIT_FAST_CUDA {int(cuda is not None)}"]
    for name, text in constants.items():
        lines.append(f"constexpr const char* {name} = {json.dumps(' '.join(text.split()), ensure_ascii=False)};")
    return "\n".join(lines) + "\n"


def ninja_file(folder: Path, compiler: str, includes: list[str], cuda: CudaToolkit | None, target: Path) -> str:
    """build.ninja, for objects in `folder` and the library `target`."""

    def shell(*words: object) -> str:
        return " ".join("'" + str(word).replace("$", "$$") + "'" for word in words)

    def escape(path: object) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path))

    x86 = run(*compiler.split(), "-dumpmachine").startswith(("x86_64", "amd64"))
    flags = [*FLAGS, f"-I{folder}", *(part for path in includes for part in ("-isystem", path))]
    link, sources = "$cxx", list(SOURCES)
    lines = [f"cxx = {compiler}", f"flags = {shell(*flags)}"]
    compiles = "  command = {} -c $in -o $out\n  depfile = $out.d\n  deps = gcc"
    lines += ["rule compile", compiles.format("$cxx -MMD -MF $out.d $flags $own")]
    if cuda is not None:
        sources += [*CUDA_SOURCES, *CUDA_KERNELS]
        host = [word for word in compiler.split() if not word.startswith("-")][-1]  # of "ccache g++ -m64"
        nvcc = shell(cuda.nvcc, f"-ccbin={host}")
        lines += ["rule cuda", compiles.format(f"{nvcc} -MD -MF $out.d {shell(*cuda.flags())}")]
        # nvcc links: the runtime is inside, and hidden, so that torch's own is another one.
        link = f"{nvcc} -cudart=static -Xlinker=--exclude-libs,ALL"
    if sys.platform == "darwin":
        implicit, named = "", "-undefined dynamic_lookup"
    else:
        # An empty library with the name of torch's: the loader takes the one that `import torch` has loaded.
        stub = folder / "libtorch_cpu.so"
        lines += ["rule stub", "  command = $cxx -shared -nostdlib -Wl,-soname,libtorch_cpu.so -x c /dev/null -o $out"]
        lines += [f"build {escape(stub)}: stub"]
        to_linker = "-Wl," if cuda is None else "-Xlinker="
        implicit, named = f" | {escape(stub)}", shell(f"{to_linker}--no-as-needed", f"{to_linker}{stub}")
    lines += ["rule link", f"  command = {link} -shared $in -o $out {named}"]
    objects = []
    for source in sources:
        objects.append(escape(folder / (source.replace("/", "_") + ".o")))
        lines.append(f"build {objects[-1]}: {'cuda' if source.endswith('.cu') else 'compile'} {escape(ROOT / source)}")
        if source in INSTRUCTION_SETS:
            lines.append(f"  own = -fno-exceptions {shell(*INSTRUCTION_SETS[source] if x86 else [])}")
        elif source in CUDA_SOURCES:
            lines.append(f"  own = {shell('-isystem', cuda.include)}")
    return "\n".join([*lines, f"build {escape(target)}: link {' '.join(objects)}{implicit}"]) + "\n"


def build(target: Path, folder: Path, cuda: CudaToolkit | None, cuda_error: str, verbose: bool = False) -> None:
    """Compile the library `target`, with objects in `folder`, with the CUDA kernels if there is a toolkit.

    Args:
        cuda_error: the reason for which there is no toolkit; munit_fast._C.build_info() gives it.

    Raises:
        BuildError: if a tool is missing or the compiler fails.
    """
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 was not found: pip install pybind11") from None
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = ""
    ninja = find_program("ninja", [str(Path(BIN_DIR) / "ninja"), "ninja"], "the package and the PATH")
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = find_program("a C++ compiler", names, "$CXX, c++, g++ and clang++")
    folder.mkdir(parents=True, exist_ok=True)
    includes = [sysconfig.get_path("include"), pybind11.get_include()]
    for name, text in (
        ("build.inl", build_header(cuda, cuda_error)),
        ("build.ninja", ninja_file(folder, compiler, includes, cuda, target)),
    ):
        if not (folder / name).is_file() or (folder / name).read_text() != text:  # else nothing to compile again
            (folder / name).write_text(text)
    print(run(ninja, "-C", str(folder), *(["-v"] if verbose else [])))
