"""Whether Triton's interpreter runs here."""

from __future__ import annotations

from importlib import metadata


def interpreter_unsupported_reason() -> str | None:
    """Why it does not; None if it does."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "triton is not installed"
    numpy = metadata.version("numpy")
    if _numbers(triton) < (3, 7) and _numbers(numpy) >= (2, 4):
        return f"the interpreter of triton {triton} does not run with numpy {numpy}; it does with numpy 2.3"
    return None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
