"""The operators of a phase convolution's border behind reflection padding, and their backends.

`munit_fast.ops.upsample_conv` has the formulas. The operators change their first tensor in place, as those do.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from munit_fast.ops.backends import Problem, choose
from munit_fast.ops.library import LIBRARY

LIBRARY.define("phase_border(Tensor(a!) y, Tensor a, Tensor border_weight, str impl) -> ()")
# What is not needed comes back empty.
LIBRARY.define(
    "phase_border_backward(Tensor grad, Tensor a, Tensor border_weight, Tensor(a!)? grad_a, bool need_border, "
    "str impl) -> Tensor"
)


def _check(of_result: Tensor, a: Tensor, border_weight: Tensor, grad_a: Tensor | None = None) -> None:
    n, c, h, w = a.shape
    o = border_weight.shape[0]
    if h < 4 or w < 4:
        raise ValueError(f"the border of a phase convolution needs two pixels a side; a has shape {tuple(a.shape)}")
    if of_result.shape != (n, 4 * o, h - 2, w - 2) or border_weight.shape[1:] != (c, 5, 5):
        shapes = ", ".join(str(tuple(t.shape)) for t in (of_result, a, border_weight))
        raise ValueError(f"[N, 4·O, H, W], [N, C, H + 2, W + 2] and [O, C, 5, 5] are needed; got {shapes}")
    if a.dtype != of_result.dtype or border_weight.dtype not in (a.dtype, torch.float32):
        dtypes = ", ".join(str(t.dtype) for t in (of_result, a, border_weight))
        raise ValueError(f"one dtype is needed, of the weight float32 or the same; got {dtypes}")
    if grad_a is not None and (grad_a.shape != a.shape or grad_a.dtype != a.dtype):
        raise ValueError(f"grad_a must be like a, {tuple(a.shape)} of {a.dtype}; got {tuple(grad_a.shape)}")
    for t in (of_result, a, grad_a):
        if t is not None and not t.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"channels_last tensors are needed; got shape {tuple(t.shape)}, strides {t.stride()}")


def problem_of(of_result: Tensor, a: Tensor) -> Problem:
    """What the operators are asked to do.

    Args:
        of_result: [N, 4·O, H, W].
        a: [N, C, H + 2, W + 2].
    """
    n, c, h, w = a.shape
    phases = of_result.shape[1]
    sample = max(c * h * w, phases * (h - 2) * (w - 2))
    return Problem("phase_border", "none", True, n, sample, a.element_size(), max(c, phases))


def _backend(impl: str, of_result: Tensor, a: Tensor) -> ModuleType:
    return choose(impl, a.device, a.dtype, problem_of(of_result, a))


@torch.library.impl(LIBRARY, "phase_border", "CompositeExplicitAutograd")
def _forward(y: Tensor, a: Tensor, border_weight: Tensor, impl: str) -> None:
    _check(y, a, border_weight)
    _backend(impl, y, a).phase_border(y, a, border_weight)


@torch.library.register_fake("munit_fast::phase_border", lib=LIBRARY)
def _forward_fake(y: Tensor, a: Tensor, border_weight: Tensor, impl: str) -> None:
    return None


@torch.library.impl(LIBRARY, "phase_border_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor, a: Tensor, border_weight: Tensor, grad_a: Tensor | None, need_border: bool, impl: str
) -> Tensor:
    _check(grad, a, border_weight, grad_a)
    grad_border = _empty_gradient(border_weight, need_border)
    out = grad_border if need_border else None
    _backend(impl, grad, a).phase_border_backward(grad, a, border_weight, grad_a, out)
    return grad_border


@torch.library.register_fake("munit_fast::phase_border_backward", lib=LIBRARY)
def _backward_fake(
    grad: Tensor, a: Tensor, border_weight: Tensor, grad_a: Tensor | None, need_border: bool, impl: str
) -> Tensor:
    return _empty_gradient(border_weight, need_border)


def _empty_gradient(border_weight: Tensor, need_border: bool) -> Tensor:
    return torch.empty_like(border_weight) if need_border else border_weight.new_empty(0)


def phase_border(y: Tensor, a: Tensor, border_weight: Tensor, impl: str) -> None:
    """Add to the result of a phase convolution what reflection padding changes at its border.

    Args:
        y: [N, 4·O, H, W], channels_last, H and W ≥ 2; changed in place.
        a: what was convolved, [N, C, H + 2, W + 2], channels_last, padded by replication, in y's dtype.
        border_weight: [O, C, 5, 5], float32 or in y's dtype.
        impl: the backend.

    Raises:
        ValueError: the tensors do not belong together.
        RuntimeError: `impl` cannot serve them.
    """
    torch.ops.munit_fast.phase_border.default(y, a, border_weight, impl)


def phase_border_backward(
    grad: Tensor, a: Tensor, border_weight: Tensor, grad_a: Tensor | None, need_border: bool, impl: str
) -> Tensor | None:
    """The backward of `phase_border`.

    Args:
        grad: [N, 4·O, H, W], channels_last, in a's dtype.
        a: as the forward had it.
        border_weight: as the forward had it.
        grad_a: the gradient of `a` so far, like it; the border's is added in place. None: not needed.
        need_border: whether the gradient of `border_weight` is needed.
        impl: the backend.

    Returns:
        The gradient of `border_weight`, like it; None where it is not needed.

    Raises:
        ValueError: the tensors do not belong together.
        RuntimeError: `impl` cannot serve them.
    """
    operator = torch.ops.munit_fast.phase_border_backward.default
    found: Tensor = operator(grad, a, border_weight, grad_a, need_border, impl)
    return found if need_border else None
