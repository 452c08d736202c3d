"""Who computes: one module for each backend, with the same functions, and the choice between them.

A backend has `why_not(device, dtype)` (None, or in words why it cannot serve), `epilogue_forward`,
`epilogue_backward`, `l1_losses`, `l1_losses_backward`, `lsgan_loss` and `lsgan_loss_backward`.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch

from munit_fast.ops.backends import cpu, reference, triton

# Best first: "auto" takes the first that can.
BACKENDS: dict[str, ModuleType] = {"triton": triton, "cpu": cpu, "reference": reference}
IMPLEMENTATIONS = ("auto", *BACKENDS)
_BEST_FOR = {"cpu": "cpu", "cuda": "triton"}

_log = logging.getLogger("munit_fast")


def why_not(impl: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the backend called `impl` can serve tensors of this device and dtype, or the reason in words."""
    return BACKENDS[impl].why_not(device, dtype)


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


@cache
def choose(impl: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The backend for `impl`; "auto" takes the best that can and says once why it is not the fast one.

    Raises:
        RuntimeError: `impl` names a backend that cannot serve this device and dtype.
    """
    if impl != "auto":
        if reason := why_not(impl, device, dtype):
            raise RuntimeError(f"impl={impl!r} cannot be used here: {reason}")
        return BACKENDS[impl]
    for name, backend in BACKENDS.items():
        if backend.why_not(device, dtype) is None:
            best = _BEST_FOR.get(device.type)
            if best is not None and name != best:
                _warn_once(f"using the slower {name!r} backend on {device.type}: {why_not(best, device, dtype)}")
            return backend
    raise AssertionError("the reference serves everything")
