"""Environment variables: the one place that reads those of munit-fast, and that sets those of libraries."""

from __future__ import annotations

import os


def max_pixels(default: int) -> int:
    """``MUNIT_FAST_MAX_PIXELS``: the largest picture, in pixels, that is decoded.

    Raises:
        ValueError: the variable is set to something other than a positive whole number.
    """
    return _positive_int("MUNIT_FAST_MAX_PIXELS", default)


def traceback_wanted() -> bool:
    """``MUNIT_FAST_TRACEBACK``: whether the commands show the traceback of an error."""
    return bool(os.environ.get("MUNIT_FAST_TRACEBACK"))


def cpu_isa() -> str | None:
    """``MUNIT_FAST_CPU_ISA``: the instruction set that the CPU kernels use (``munit-fast doctor`` lists them)."""
    return os.environ.get("MUNIT_FAST_CPU_ISA", "").strip().lower() or None


CONVOLUTIONS = ("auto", "direct", "winograd", "winograd2")


def conv() -> str:
    """``MUNIT_FAST_CONV``: which convolutions run on CPUs, one of CONVOLUTIONS (see `munit_fast.ops.conv_plans`).

    Raises:
        ValueError: the variable is set to something else.
    """
    value = os.environ.get("MUNIT_FAST_CONV", "").strip().lower() or "auto"
    if value not in CONVOLUTIONS:
        known = ", ".join(CONVOLUTIONS)
        raise ValueError(f"environment variable MUNIT_FAST_CONV must be one of {known}, not {value!r}")
    return value


def commit_override() -> str | None:
    """``MUNIT_FAST_COMMIT``: the revision that benchmark rows name, where the sources lie without their history."""
    return os.environ.get("MUNIT_FAST_COMMIT", "").strip() or None


def set_process_defaults() -> None:
    """Set up this process to train fast on a CPU, as the commands do; a library must not do that to its user.

    Call it before torch is imported: both variables are read then. What the user has set stays.
    """
    # OpenMP threads that spin while they wait starve each other on a busy machine: with a third process on two cores a
    # training took 285 s for what it does in 40.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A tensor of more than 32 MB is mapped afresh each time and zeroed by the kernel page by page; with huge pages,
    # which torch asks for under this variable, cloning 64 MB took 14 ms instead of 34.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _positive_int(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"environment variable {name} must be a positive whole number, not {text!r}")
    return int(text)
