"""The loss operators: L1 of many pairs, and LSGAN over a discriminator's scales, with their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from munit_fast.ops import formulas
from munit_fast.ops.autograd import differentiable, distinct, needs_gradient
from munit_fast.ops.backends import Problem, choose
from munit_fast.ops.library import LIBRARY
from munit_fast.ops.spec import accumulator_dtype

LIBRARY.define("l1_losses(Tensor[] first, Tensor[] second, str impl) -> Tensor")
# What is not needed comes back empty.
LIBRARY.define("l1_losses_backward(Tensor grad, Tensor[] first, Tensor[] second, bool[] need, str impl) -> Tensor[]")
LIBRARY.define("lsgan_loss(Tensor[] outputs, float target, str impl) -> Tensor")
LIBRARY.define("lsgan_loss_backward(Tensor grad, Tensor[] outputs, float target, str impl) -> Tensor[]")


def _backend(impl: str, tensors: Sequence[Tensor]) -> ModuleType:
    x = tensors[0]
    if x.device.type == "cpu":
        return choose(impl, x.device, x.dtype)
    problem = Problem("losses", sample=max(t.numel() for t in tensors), itemsize=x.element_size())
    return choose(impl, x.device, x.dtype, problem)


@torch.library.impl(LIBRARY, "l1_losses", "CompositeExplicitAutograd")
def _l1(first: list[Tensor], second: list[Tensor], impl: str) -> Tensor:
    return _backend(impl, first).l1_losses(first, second)


@torch.library.register_fake("munit_fast::l1_losses", lib=LIBRARY)
def _l1_fake(first: list[Tensor], second: list[Tensor], impl: str) -> Tensor:
    return first[0].new_empty(len(first), dtype=accumulator_dtype(first[0].dtype))


def _empty_gradients(tensors: Sequence[Tensor], need: Sequence[bool]) -> list[Tensor]:
    """Memory for the gradients that are needed; the others have no elements."""
    return [torch.empty_like(t) if needed else t.new_empty(0) for t, needed in zip(tensors, need)]


@torch.library.impl(LIBRARY, "l1_losses_backward", "CompositeExplicitAutograd")
def _l1_backward(grad: Tensor, first: list[Tensor], second: list[Tensor], need: list[bool], impl: str) -> list[Tensor]:
    grads = _empty_gradients([*first, *second], need)
    out = [g if needed else None for g, needed in zip(grads, need)]
    _backend(impl, first).l1_losses_backward(grad.contiguous(), first, second, out)
    return grads


@torch.library.register_fake("munit_fast::l1_losses_backward", lib=LIBRARY)
def _l1_backward_fake(
    grad: Tensor, first: list[Tensor], second: list[Tensor], need: list[bool], impl: str
) -> list[Tensor]:
    return _empty_gradients([*first, *second], need)


@torch.library.impl(LIBRARY, "lsgan_loss", "CompositeExplicitAutograd")
def _lsgan(outputs: list[Tensor], target: float, impl: str) -> Tensor:
    return _backend(impl, outputs).lsgan_loss(outputs, target)


@torch.library.register_fake("munit_fast::lsgan_loss", lib=LIBRARY)
def _lsgan_fake(outputs: list[Tensor], target: float, impl: str) -> Tensor:
    return outputs[0].new_empty((), dtype=accumulator_dtype(outputs[0].dtype))


@torch.library.impl(LIBRARY, "lsgan_loss_backward", "CompositeExplicitAutograd")
def _lsgan_backward(grad: Tensor, outputs: list[Tensor], target: float, impl: str) -> list[Tensor]:
    grads = [torch.empty_like(output) for output in outputs]
    _backend(impl, outputs).lsgan_loss_backward(grad, outputs, target, grads)
    return grads


@torch.library.register_fake("munit_fast::lsgan_loss_backward", lib=LIBRARY)
def _lsgan_backward_fake(grad: Tensor, outputs: list[Tensor], target: float, impl: str) -> list[Tensor]:
    return [torch.empty_like(output) for output in outputs]


def _l1_formula(ctx: Any, tensors: Sequence[Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
    count = len(tensors) // 2
    return formulas.l1_losses(tensors[:count], tensors[count:]), (None, *tensors)


def _lsgan_formula(ctx: Any, outputs: Sequence[Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
    return formulas.lsgan_loss(outputs, ctx.target), (None, None, *outputs)


class _L1Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, impl: str, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.impl = impl
        ctx.set_materialize_grads(False)
        count = len(tensors) // 2
        return torch.ops.munit_fast.l1_losses(tensors[:count], tensors[count:], impl)

    @staticmethod
    @differentiable(_l1_formula)
    def backward(ctx: Any, tensors: Sequence[Tensor], grad: Tensor | None) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad[1:]
        if grad is None:
            return (None, *(None for _ in tensors))
        count = len(tensors) // 2
        grads = torch.ops.munit_fast.l1_losses_backward(grad, tensors[:count], tensors[count:], need, ctx.impl)
        return (None, *(g if needed else None for g, needed in zip(grads, need)))


class _LsganLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: float, impl: str, *outputs: Tensor) -> Tensor:
        ctx.save_for_backward(*outputs)
        ctx.target, ctx.impl = target, impl
        ctx.set_materialize_grads(False)
        return torch.ops.munit_fast.lsgan_loss(outputs, target, impl)

    @staticmethod
    @differentiable(_lsgan_formula)
    def backward(ctx: Any, outputs: Sequence[Tensor], grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None, None, *(None for _ in outputs))
        return (None, None, *torch.ops.munit_fast.lsgan_loss_backward(grad, outputs, ctx.target, ctx.impl))


def l1_losses(first: list[Tensor], second: list[Tensor], impl: str) -> Tensor:
    """`mean(|a - b|)` of each of P checked pairs.

    Args:
        first: P dense tensors of one dtype.
        second: like `first`, shapes and memory formats too.
        impl: the backend.

    Returns:
        [P] in float32 (float64 for float64).
    """
    if formulas.are_needed():
        return formulas.l1_losses(first, second)
    if needs_gradient([*first, *second]):
        return _L1Losses.apply(impl, *distinct([*first, *second]))
    return torch.ops.munit_fast.l1_losses(first, second, impl)


def lsgan_loss(outputs: list[Tensor], target: float, impl: str) -> Tensor:
    """Σ over scales of mean((output - target)²).

    Args:
        outputs: dense tensors of one dtype, any shapes.
        target: what they are to be.
        impl: the backend.

    Returns:
        A scalar in float32 (float64 for float64).
    """
    if formulas.are_needed():
        return formulas.lsgan_loss(outputs, target)
    if needs_gradient(outputs):
        return _LsganLoss.apply(target, impl, *distinct(outputs))
    return torch.ops.munit_fast.lsgan_loss(outputs, target, impl)
