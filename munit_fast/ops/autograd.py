"""What the autograd functions of the operators share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

T = TypeVar("T", Tensor, Tensor | None)


class _NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "the fused operators of munit_fast have no second derivative; for a gradient penalty through them, use the "
            "formulas of munit_fast.reference (PyTorch differentiates those as often as needed)"
        )


def once_differentiable(backward: Callable[..., tuple[Tensor | None, ...]]) -> Any:
    """Makes a backward(ctx, saved, *grads) whose own derivative raises; saved: ctx.saved_tensors.

    Those are unpacked once only: activation checkpointing refuses a second time, and save_on_cpu would copy again.
    torch's decorator of this name is silent where the upstream gradient needs no gradient but the inputs do: the second
    derivative is then zero instead of missing.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if torch.compiler.is_compiling():  # which refuses second derivatives itself
            return backward(ctx, saved, *grads)
        if not torch.is_grad_enabled():  # without create_graph=True
            return backward(ctx, saved, *grads)
        with torch.no_grad():
            results = backward(ctx, saved, *grads)
        sources = [t for t in (*grads, *saved) if t is not None and t.requires_grad]
        if not sources:
            return results
        return tuple(None if result is None else _NoSecondDerivative.apply(result, *sources) for result in results)

    return wrapped


def needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd must see an operation on these: outside of it, forward-mode derivatives would be zero."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return True
    return forward_ad._current_level >= 0  # then autograd.Function raises where there is a tangent


def distinct(tensors: Sequence[T]) -> list[T]:
    """The tensors, a repeated one as an alias of itself: torch.compile takes no tensor twice in one function."""
    seen: list[Tensor] = []
    found: list[T] = []
    for t in tensors:
        if t is not None and any(t is other for other in seen):
            found.append(t.view_as(t))
        else:
            found.append(t)
        if t is not None:
            seen.append(t)
    return found
