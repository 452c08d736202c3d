"""The one place that reads ``MUNIT_FAST_*`` environment variables."""

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


def _positive_int(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"environment variable {name} must be a positive whole number, not {text!r}")
    return int(text)


def cpu_isa() -> str | None:
    """``MUNIT_FAST_CPU_ISA``: the instruction set that the CPU kernels use (``munit-fast doctor`` lists them)."""
    return os.environ.get("MUNIT_FAST_CPU_ISA", "").strip().lower() or None


def commit_override() -> str | None:
    """``MUNIT_FAST_COMMIT``: the revision that benchmark rows name, where the sources lie without their history."""
    return os.environ.get("MUNIT_FAST_COMMIT", "").strip() or None
