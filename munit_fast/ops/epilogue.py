"""The epilogue operators: normalise → act → + residual → depth-to-space → pad, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from munit_fast.ops.autograd import distinct, needs_gradient, once_differentiable
from munit_fast.ops.backends import Problem, choose
from munit_fast.ops.layout import in_format, is_channels_last, memory_format, rows_in_format
from munit_fast.ops.library import LIBRARY
from munit_fast.ops.options import Options

_FLAGS = "str norm, float eps, str act, float slope, int block, int pad, str pad_mode, str impl"
LIBRARY.define(
    "epilogue(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? slopes, "
    f"{_FLAGS}) -> (Tensor y, Tensor stats)"
)
# The result once more, from the statistics that the first time gave: what a backward rebuilds instead of keeping it.
LIBRARY.define(
    "epilogue_again(Tensor x, Tensor stats, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? slopes, "
    f"{_FLAGS}) -> Tensor"
)
# What is not needed comes back empty.
LIBRARY.define(
    "epilogue_backward(Tensor grad, Tensor x, Tensor stats, Tensor? weight, Tensor? bias, Tensor? slopes, "
    f"{_FLAGS}, bool need_x, bool need_residual, bool need_sums) -> (Tensor grad_x, Tensor grad_residual, Tensor sums)"
)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _problem(x: Tensor, o: Options) -> Problem:
    n, c, h, w = x.shape
    padded = (o.block * h + 2 * o.pad) * (o.block * w + 2 * o.pad) * (c // o.block**2)
    channels_last = c == 1 or is_channels_last(x)  # one channel lies the same either way
    return Problem("epilogue", o.norm, channels_last, n, max(c * h * w, padded), x.element_size(), c)


def _backend(impl: str, x: Tensor, o: Options) -> ModuleType:
    if x.device.type == "cpu" and impl != "cuda":  # there a backend serves all sizes, and the question would cost 1 µs
        return choose(impl, x.device, x.dtype)
    return choose(impl, x.device, x.dtype, _problem(x, o))


@torch.library.impl(LIBRARY, "epilogue", "CompositeExplicitAutograd")
def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    *flags: Any,
) -> tuple[Tensor, Tensor]:
    *options, impl = flags
    o = Options(*options)
    if residual is not None:
        residual = rows_in_format(residual, x)
    return _backend(impl, x, o).epilogue_forward(x, weight, bias, residual, slopes, o)


@torch.library.impl(LIBRARY, "epilogue_again", "CompositeExplicitAutograd")
def _again(
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    *flags: Any,
) -> Tensor:
    *options, impl = flags
    o = Options(*options)
    if residual is not None:
        residual = rows_in_format(residual, x)
    return _backend(impl, x, o).epilogue_forward(x, weight, bias, residual, slopes, o, stats)[0]


@torch.library.register_fake("munit_fast::epilogue_again", lib=LIBRARY)
def _again_fake(
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    *flags: Any,
) -> Tensor:
    return _forward_fake(x, weight, bias, residual, slopes, *flags)[0]


@torch.library.register_fake("munit_fast::epilogue", lib=LIBRARY)
def _forward_fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    *flags: Any,
) -> tuple[Tensor, Tensor]:
    o = Options(*flags[:-1])
    n, c, h, w = x.shape
    size = (n, c // o.block**2, o.block * h + 2 * o.pad, o.block * w + 2 * o.pad)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    rows = {"none": 0, "instance": n * c, "layer": n}[o.norm]
    return y, torch.empty((2, rows), dtype=_accumulator(x), device=x.device)


@torch.library.impl(LIBRARY, "epilogue_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    *flags: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *options, impl, need_x, need_residual, need_sums = flags
    o = Options(*options)
    results = _backend(impl, x, o).epilogue_backward(
        in_format(grad, x), x, stats, weight, bias, slopes, o, need_x, need_residual, need_sums
    )
    grad_x, grad_residual, sums = (x.new_empty(0) if result is None else result for result in results)
    return grad_x, grad_residual, sums if need_sums else sums.to(_accumulator(x))


@torch.library.register_fake("munit_fast::epilogue_backward", lib=LIBRARY)
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    *flags: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *_, need_x, need_residual, need_sums = flags
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grad_residual = torch.empty_like(x) if need_residual else x.new_empty(0)
    sums = x.new_empty((3, x.shape[0], x.shape[1]) if need_sums else 0, dtype=_accumulator(x))
    return grad_x, grad_residual, sums


def _collect(sums: Tensor, like: Tensor) -> Tensor:
    """[N, C] sums over planes -> the gradient of a parameter [P] or [N, P] that channel c reads at c % P."""
    entries = like.shape[-1]
    if like.dim() == 1:
        return sums.reshape(-1, entries).sum(0).to(like.dtype)
    return sums.reshape(sums.shape[0], -1, entries).sum(1).to(like.dtype)


def gradients(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    flags: tuple[Any, ...],
    need: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight, bias, residual and slopes, those that `need` (in this order) asks for."""
    need_x, need_weight, need_bias, need_residual, need_slopes = need
    o = Options(*flags[:-1])
    moved = o.pad > 0 or o.block > 1
    grad_x, grad_residual, sums = torch.ops.munit_fast.epilogue_backward(
        grad,
        x,
        stats,
        weight,
        bias,
        slopes,
        *flags,
        need_x,
        need_residual and moved,
        need_weight or need_bias or need_slopes,
    )
    return (
        grad_x if need_x else None,
        _collect(sums[1], weight) if need_weight and weight is not None else None,
        _collect(sums[0], bias) if need_bias and bias is not None else None,
        (grad_residual if moved else grad) if need_residual else None,
        _collect(sums[2], slopes) if need_slopes and slopes is not None else None,
    )


class _Epilogue(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        slopes: Tensor | None,
        *flags: Any,
    ) -> Tensor:
        y, stats = torch.ops.munit_fast.epilogue(x, weight, bias, residual, slopes, *flags)
        # The residual and the result are not kept: the backward needs x and two numbers a plane.
        ctx.save_for_backward(x, stats, weight, bias, slopes)
        ctx.flags = flags
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Sequence[Tensor], grad: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * len(ctx.flags)
        if grad is None:
            return (None, None, None, None, None, *nothing)
        x, stats, weight, bias, slopes = saved
        need = ctx.needs_input_grad[:5]
        return (*gradients(grad, x, stats, weight, bias, slopes, ctx.flags, need), *nothing)


def epilogue(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    options: Options,
    impl: str,
) -> Tensor:
    """One epilogue of checked arguments; autograd is entered only when a gradient is needed."""
    tensors = (x, weight, bias, residual, slopes)
    if needs_gradient(tensors):
        return _Epilogue.apply(*distinct(tensors), *options, impl)
    return torch.ops.munit_fast.epilogue(*tensors, *options, impl)[0]
