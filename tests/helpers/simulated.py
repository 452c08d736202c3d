"""The CUDA kernels on a simulated GPU: csrc/cuda compiled by the host's compiler against simt/cuda_runtime.h.

What that finds and what it cannot find stands in simt/simulator.cpp.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc/cuda"
KERNELS = [
    f"{name}.cu" for name in ("epilogue_bf16", "epilogue_f16", "epilogue_f32", "group", "losses", "phase_border")
]
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fsanitize=alignment", f"-I{HERE / 'simt'}"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-subobject-linkage", "-x", "c++"]
FLAGS += ["-DMUNIT_FAST_SIMULATED"]

# What simt/simulator.cpp has, by number; "partly" is an H100 that holds clusters of at most 4 blocks.
H100, A100, T4, PARTLY, RTX50 = range(5)
DEVICES = {"H100": H100, "A100": A100, "T4": T4, "partly": PARTLY, "RTX50": RTX50}
FORWARDS, BACKWARDS, SEEDS = 0, 1, range(2, 1 << 30)  # schedules: first thread first, last first, at random


def compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and shutil.which(name):
            return name
    pytest.skip("no C++ compiler for the simulated GPU")


def build(folder: Path, sources: list[tuple[Path, list[str]]], libraries: list[str]) -> Path:
    """A shared library of these sources with their own flags and the simulator."""
    cxx = compiler()

    def compile_one(source: Path, own: list[str]) -> str:
        result = str(folder / f"{source.name}.o")
        done = subprocess.run(
            [cxx, *FLAGS, *own, "-c", str(source), "-o", result], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"\n{done.stderr[:20000]}"
        return result

    with ThreadPoolExecutor(2) as pool:
        jobs = [*sources, (HERE / "simt/simulator.cpp", [])]
        objects = list(pool.map(lambda job: compile_one(*job), jobs))
    target = folder / "simulated.so"
    done = subprocess.run(
        [cxx, "-shared", *objects, "-o", str(target), *libraries], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


class Simulator:
    """The controls of a library that `build` made."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.simulated_problem.restype = ctypes.c_char_p

    def set(self, device: int = H100, schedule: int = FORWARDS, launch: int = -1, barrier: int = -1) -> None:
        """Which device, which order of threads, and the barrier (by number, in which launch) that no thread waits at.

        Forgets problems and counts.
        """
        self.library.simulated_set(device, schedule, launch, barrier)

    @property
    def problem(self) -> str:
        """The first thing that a device would not have put up with; empty if there was none."""
        return self.library.simulated_problem().decode()

    @property
    def barriers(self) -> list[int]:
        """For each launch, how many barriers a thread passed."""
        return [self.library.simulated_barriers(i) for i in range(self.library.simulated_launches())]

    @property
    def largest_cluster(self) -> int:
        return self.library.simulated_cluster()

    @property
    def largest_shared(self) -> int:
        """Bytes of shared memory that one block was given at most."""
        return self.library.simulated_shared()


def build_operators(folder: Path) -> Simulator:
    """torch.ops.munit_fast_simulated: the operators of csrc/cuda/ops.cpp, for tensors on the CPU."""
    sources = [(SOURCES / name, []) for name in [*KERNELS, "tiling.cpp", "launch.cpp", "ops.cpp"]]
    path = build(folder, sources, [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"])
    torch.ops.load_library(str(path))
    return Simulator(path)


MARGIN = 64


class Margins:
    """Tensors inside larger buffers of NaN: what is read beside them spoils the result, what is written is seen."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, int]] = []

    def empty(self, size: Any, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
        like = torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format)
        buffer = torch.full((like.numel() + 2 * MARGIN,), float("nan"), dtype=dtype)
        self.buffers.append((buffer, like.numel()))
        return buffer.as_strided(like.size(), like.stride(), MARGIN)

    def copy(self, t: Tensor) -> Tensor:
        """A dense tensor's copy, in its layout."""
        layout = torch.channels_last if t.dim() == 4 and not t.is_contiguous() else torch.contiguous_format
        with torch.no_grad():
            return self.empty(t.shape, t.dtype, layout).copy_(t)

    def check(self) -> None:
        for buffer, size in self.buffers:
            assert buffer[:MARGIN].isnan().all() and buffer[MARGIN + size :].isnan().all(), "written beside a tensor"
        self.buffers.clear()
