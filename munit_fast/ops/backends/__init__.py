"""The backends: one module each, with the same functions, and the choice between them.

Every backend has these functions. The operators allocate; a backend fills what it is given:

- `unsupported_reason(device, dtype)`: why it cannot serve, or None; one that does not serve every operation also has
  `unsupported_problem_reason(problem)`.
- `epilogue_forward(spec, inputs, y, stats, has_stats)`: writes y, and stats unless the caller has them already.
- `epilogue_backward(spec, inputs, grad, stats, out)`: writes the members of `out` (`EpilogueGradients`) that are there.
- `phase_border(y, a, border_weight)`: adds to y; `phase_border_backward(grad, a, border_weight, grad_a, grad_border)`:
  adds to grad_a and writes grad_border, where they are there. Not in `cpu`.
- `l1_losses(first, second)`, `lsgan_loss(outputs, target)`: return the value.
- `l1_losses_backward(grad, first, second, out)`, `lsgan_loss_backward(grad, outputs, target, out)`: write the
  gradients in the list `out` (for L1 those of `first`, then those of `second`; None: not needed).

`registry` has the table that "auto" follows.
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
__all__ = ["BACKENDS", "IMPLEMENTATIONS", "Problem", "automatic", "choose", "unsupported_reason"]

_log = logging.getLogger("munit_fast")


def unsupported_reason(
    impl: str, device: torch.device, dtype: torch.dtype, problem: Problem | None = None
) -> str | None:
    """Why the backend called `impl` cannot serve this; None if it can.

    Args:
        impl: a key of BACKENDS.
        device: of the tensors.
        dtype: of x.
        problem: what is to be computed; None: only device and dtype are asked about.
    """
    backend = BACKENDS[impl]
    reason = backend.unsupported_reason(device, dtype)
    if reason is None and problem is not None and hasattr(backend, "unsupported_problem_reason"):
        reason = backend.unsupported_problem_reason(problem)
    return reason


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def _capability(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return (0, 0)
    return torch.cuda.get_device_capability(device)


def _indexed(device: torch.device) -> str:
    """The device with the index of the GPU that is meant, as the registry asks for its model."""
    if device.type != "cuda" or device.index is not None or not torch.cuda.is_available():
        return str(device)
    return f"cuda:{torch.cuda.current_device()}"


def automatic(device: torch.device, dtype: torch.dtype, problem: Problem | None = None) -> str:
    """The name of the backend that "auto" takes.

    Args:
        device: of the tensors.
        dtype: of x.
        problem: what is to be computed; None: whatever no other row of the table is about.
    """
    order = registry.order(_indexed(device), _capability(device), problem)
    return next(name for name in order if unsupported_reason(name, device, dtype, problem) is None)


@lru_cache(4096)
def choose(impl: str, device: torch.device, dtype: torch.dtype, problem: Problem | None = None) -> ModuleType:
    """The backend for `impl`; "auto" takes the best that can and says once why it is not a fast one.

    Args:
        impl: one of IMPLEMENTATIONS.
        device: of the tensors.
        dtype: of x.
        problem: as in `automatic`.

    Raises:
        RuntimeError: `impl` names a backend that cannot serve this device, dtype or problem.
    """
    if impl != "auto":
        if reason := unsupported_reason(impl, device, dtype, problem):
            raise RuntimeError(f"impl={impl!r} cannot be used here: {reason}")
        return BACKENDS[impl]
    name = automatic(device, dtype, problem)
    better = [other for other in registry.order(_indexed(device), _capability(device), problem) if other != name]
    if name in registry.FALLBACK and better:
        reasons = [unsupported_reason(other, device, dtype, problem) for other in better]
        said = "; ".join(f"{other}: {reason}" for other, reason in zip(better, reasons))
        _warn_once(f"using the slower {name!r} backend on {device.type}: {reasons[0] if len(better) == 1 else said}")
    return BACKENDS[name]
