"""Where a row was measured: names and versions, and the two ceilings of this machine, measured."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from munit_fast.amp import cpu_features
from munit_fast.benchmarks.timing import seconds_per_call
from munit_fast.doctor import cpu_model, gpu_driver
from munit_fast.ops import native
from munit_fast.utils.env import commit_override
from munit_fast.utils.version import __version__

# What decides how fast a CPU multiplies in float32 and bfloat16, as /proc/cpuinfo spells it on x86 and ARM.
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
COPY_BYTES = 256 * 2**20  # more than a cache holds


def describe(device: torch.device) -> dict[str, Any]:
    """What every row says of its machine: plain values, no host names and no paths."""
    gpu = device.type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit_override() or _commit(),
        "device": torch.cuda.get_device_name(device) if gpu else cpu_model(),
        "driver": gpu_driver() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "cpu": cpu_model(),
        "isa": native.module.isa() if native.module else None,
        "cpu_flags": cpu_flags(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "version": __version__,
        "tf32": torch.backends.cudnn.allow_tf32 if gpu else None,
    }


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Those of CPU_FLAGS that this CPU has, separated by spaces; None where nothing tells."""
    found = cpu_features(cpuinfo)
    return " ".join(flag for flag in CPU_FLAGS if flag in found) if found else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """The revision of the sources, `-dirty` if they differ from it; None outside a checkout.

    Results are no sources: rows that are being written do not make a tree dirty.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # another project's checkout may lie around an install
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", ":/*.py", ":/munit_fast", ":/csrc", ":/kernels")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-dirty" if changed else "")


@cache
def copy_speed(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy of 256 MB."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / seconds_per_call(lambda: target.copy_(source), device)


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a product of two square matrices, through the library that torch uses."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # as the convolutions
    try:
        return 2 * n**3 / seconds_per_call(lambda: a @ b, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, instead of mapping each large tensor anew; False where there is no glibc.

    A large tensor would be returned to the kernel and zeroed again at its next use, which costs more than most of the
    operations that are timed. This spares those most who need most temporaries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    m_mmap_max, m_trim_threshold = -4, -1
    return mallopt is not None and bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))
