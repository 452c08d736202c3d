"""The compiled part, when there is one: what it is, or in words why it is missing."""

from __future__ import annotations

from types import ModuleType

import torch

from munit_fast import env
from munit_fast.version import check_torch

check_torch(torch.__version__)

module: ModuleType | None = None
native_error: str | None = None

try:
    from munit_fast import _C as module  # type: ignore[no-redef, attr-defined, unused-ignore]
except ImportError as error:
    native_error = (
        f"munit_fast._C is not built for this Python ({error}); it needs torch and a C++20 compiler when munit-fast "
        "is installed (in a checkout: python setup.py build_ext --inplace)"
    )

if module is not None:
    # Raises with the known names: a forced instruction set that silently did nothing would spoil a measurement.
    try:
        module.set_isa(env.cpu_isa())
    except ValueError as error:
        raise ValueError(f"environment variable MUNIT_FAST_CPU_ISA: {error}") from None
