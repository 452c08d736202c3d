"""`munit_fast.accelerate(module)`: a third-party network, with its norms and convolutions run by the fused functions.

`search` finds these and what belongs to them, `probe` tries out whether a class computes what its name says, `swaps`
gives a module another forward and takes it back, `norms`, `convolutions` and `containers` have these forwards, `report`
says what was done.
"""

from __future__ import annotations

import sys
from types import ModuleType

from torch import nn

from munit_fast.accelerate.report import Fused, Report, Skipped, restore
from munit_fast.accelerate.search import accelerate

__all__ = ["Fused", "Report", "Skipped", "accelerate", "restore"]


class _CallableModule(ModuleType):
    """`munit_fast.accelerate` is this package and its function: importing from the one must not hide the other."""

    def __call__(self, module: nn.Module, impl: str = "auto") -> Report:
        return accelerate(module, impl)


sys.modules[__name__].__class__ = _CallableModule
