"""What the autograd functions of the operators share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", Tensor, Tensor | None)

# (ctx, saved tensors) -> the result in plain PyTorch, and the arguments of `forward` that it was computed from.
Formula = Callable[[Any, Sequence[Any]], tuple[Tensor, Sequence[Tensor | None]]]


def differentiable(formula: Formula) -> Callable[[Callable[..., Any]], Any]:
    """Makes a backward(ctx, saved, *grads) that can be differentiated again; saved: ctx.saved_tensors.

    With create_graph=True the gradients are those of `formula`, so derivatives of any order are PyTorch's own; that
    costs a forward and a backward of the formula. Without, the backward runs as it is. The saved tensors are unpacked
    once only: activation checkpointing refuses a second time, and save_on_cpu would copy again.

    Args:
        formula: the first result of `forward` again.
    """

    def decorate(backward: Callable[..., tuple[Tensor | None, ...]]) -> Any:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return backward(ctx, saved, *grads)
            return _of_formula(formula, ctx, saved, grads[0])

        return wrapped

    return decorate


def _of_formula(formula: Formula, ctx: Any, saved: Sequence[Any], grad: Tensor | None) -> tuple[Tensor | None, ...]:
    needs: Sequence[bool] = ctx.needs_input_grad
    if grad is None:
        return (None,) * len(needs)
    # Aliases: an input may have been computed from another one, whose gradient must not count that way too.
    saved = [t.view_as(t) if isinstance(t, Tensor) and t.requires_grad else t for t in saved]
    result, arguments = formula(ctx, saved)
    wanted = {i: argument for i, argument in enumerate(arguments) if argument is not None and needs[i]}
    if not result.requires_grad:  # only what has no influence needs a gradient
        found = tuple(torch.zeros_like(argument) for argument in wanted.values())
    else:
        found = torch.autograd.grad(result, list(wanted.values()), grad, create_graph=True, materialize_grads=True)
    of_argument = dict(zip(wanted, found))
    return tuple(of_argument.get(i) for i in range(len(needs)))


def needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd must see an operation on these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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
