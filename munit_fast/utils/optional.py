"""Packages that only some commands need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str, *, package: str | None = None, error: type[Exception] = ImportError) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: The module, such as "skimage.metrics".
        extra: The extra of munit-fast that installs it.
        package: The name that pip knows it by, where that is not the module's first part.
        error: What to raise where it cannot be imported.

    Raises:
        Exception: Of type `error`; the message names the package, the reason and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as reason:
        package = package or module.partition(".")[0]
        raise error(f'the package {package} is needed ({reason}): pip install "munit-fast[{extra}]"') from reason
