"""Who computes: one module for each backend, with the same functions, and the choice between them.

A backend has `why_not(device, dtype)` (None, or in words why it cannot serve), `epilogue_forward`,
`epilogue_backward`, `l1_losses`, `l1_losses_backward`, `lsgan_loss` and `lsgan_loss_backward`; one that does not serve
every problem also `why_not_problem(problem)`. `choice` has the table that "auto" follows.
"""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from types import ModuleType

import torch

from munit_fast.ops.backends import cpu, cuda, reference, registry, triton
from munit_fast.ops.backends.registry import Problem

BACKENDS: dict[str, ModuleType] = {"triton": triton, "cuda": cuda, "cpu": cpu, "reference": reference}
IMPLEMENTATIONS = ("auto", *BACKENDS)
__all__ = ["BACKENDS", "IMPLEMENTATIONS", "Problem", "automatic", "choose", "why_not"]

_log = logging.getLogger("munit_fast")


def why_not(impl: str, device: torch.device, dtype: torch.dtype, problem: Problem | None = None) -> str | None:
    """None if the backend called `impl` can serve this, or the reason in words; no problem: its best one."""
    backend = BACKENDS[impl]
    reason = backend.why_not(device, dtype)
    if reason is None and problem is not None and hasattr(backend, "why_not_problem"):
        reason = backend.why_not_problem(problem)
    return reason


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def _capability(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return (0, 0)
    return torch.cuda.get_device_capability(device)


def automatic(device: torch.device, dtype: torch.dtype, problem: Problem | None = None) -> str:
    """The name of the backend that "auto" takes."""
    order = registry.order(device.type, _capability(device), problem)
    return next(name for name in order if why_not(name, device, dtype, problem) is None)


@lru_cache(4096)
def choose(impl: str, device: torch.device, dtype: torch.dtype, problem: Problem | None = None) -> ModuleType:
    """The backend for `impl`; "auto" takes the best that can and says once why it is not a fast one.

    Raises:
        RuntimeError: `impl` names a backend that cannot serve this device, dtype or problem.
    """
    if impl != "auto":
        if reason := why_not(impl, device, dtype, problem):
            raise RuntimeError(f"impl={impl!r} cannot be used here: {reason}")
        return BACKENDS[impl]
    name = automatic(device, dtype, problem)
    better = [other for other in registry.order(device.type, _capability(device), problem) if other != name]
    if name in registry.FALLBACK and better:
        reasons = [why_not(other, device, dtype, problem) for other in better]
        said = "; ".join(f"{other}: {reason}" for other, reason in zip(better, reasons))
        _warn_once(f"using the slower {name!r} backend on {device.type}: {reasons[0] if len(better) == 1 else said}")
    return BACKENDS[name]
