"""The compiled part, when there is one that fits this version; else the reason why it is missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from munit_fast.ops.spec import ENUMS
from munit_fast.utils import env
from munit_fast.utils.version import check_torch

check_torch(torch.__version__)

F = TypeVar("F", bound=Callable[..., Any])

module: ModuleType | None = None
native_error: str | None = None

_REBUILD = "install munit-fast again (in a checkout: python setup.py build_ext --inplace)"


def _missing_reason(error: ImportError) -> str:
    """One line: the reason, and what to do."""
    if not isinstance(error, ModuleNotFoundError):  # it is there, but for another torch or C++ library
        reason = " ".join(str(error).split())
        return f"munit_fast._C does not load into torch {torch.__version__} ({reason}); install munit-fast again"
    noted = Path(__file__).parents[1] / "_C.missing.txt"  # written by setup.py
    reason = " ".join(noted.read_text().split()) if noted.is_file() else "its file is not there"
    return (
        f"munit_fast._C is not built for this Python ({reason}); install a C++20 compiler and then munit-fast again "
        "(in a checkout: python setup.py build_ext --inplace), or a wheel, which needs none"
    )


def _outdated_reason(built: ModuleType) -> str | None:
    """Why a compiled part would take the codes of norms, activations or pad modes for others; None if it does not."""
    if not hasattr(built, "enums"):
        return f"munit_fast._C was built from an older version; {_REBUILD}"
    enums = built.enums()
    for kind, names in ENUMS.items():
        found = tuple(enums.get(kind, ()))
        if found != names:
            kind = kind.replace("_", " ")
            return (
                f"munit_fast._C was built from another version: its {kind} are {', '.join(found) or 'not stated'}, "
                f"this version's {', '.join(names)}; {_REBUILD}"
            )
    return None


def constant_when_compiled(function: F) -> F:
    """As `torch.compiler.assume_constant_result`, which imports torch._dynamo, and Triton with it, at once.

    Args:
        function: asks the compiled part, which torch.compile cannot trace.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


try:
    module = importlib.import_module("munit_fast._C")
except ImportError as error:
    native_error = _missing_reason(error)

if module is not None and (native_error := _outdated_reason(module)):
    module = None

if module is not None:
    # Raises with the known names: a forced instruction set that silently did nothing would spoil a measurement.
    try:
        module.set_isa(env.cpu_isa())
    except ValueError as error:
        raise ValueError(f"environment variable MUNIT_FAST_CPU_ISA: {error}") from None
