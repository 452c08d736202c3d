"""The epilogue operators: normalise → act → + residual → depth-to-space → pad, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from munit_fast.ops import formulas
from munit_fast.ops.autograd import differentiable, distinct, needs_gradient
from munit_fast.ops.backends import Problem, choose, cpu
from munit_fast.ops.library import LIBRARY
from munit_fast.ops.spec import (
    EpilogueGradients,
    EpilogueInputs,
    EpilogueSpec,
    accumulator_dtype,
    in_format,
    is_channels_last,
    memory_format,
    rows_in_format,
)

_FLAGS = "str norm, float eps, str act, float slope, int block, int pad, str pad_mode, int groups, str impl"
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

# Bound once: the search for an overload would cost half a microsecond a call.
_EPILOGUE = torch.ops.munit_fast.epilogue.default
_EPILOGUE_AGAIN = torch.ops.munit_fast.epilogue_again.default
_EPILOGUE_BACKWARD = torch.ops.munit_fast.epilogue_backward.default


def _problem(x: Tensor, spec: EpilogueSpec) -> Problem:
    n, c, h, w = x.shape
    result = math.prod(spec.output_size(x)[1:])
    channels_last = c == 1 or is_channels_last(x)  # one channel lies the same either way
    return Problem("epilogue", spec.norm, channels_last, n, max(c * h * w, result), x.element_size(), c)


def _backend(impl: str, x: Tensor, spec: EpilogueSpec) -> ModuleType:
    if x.device.type == "cpu" and impl != "cuda":  # there a backend serves all sizes, and the question would cost 1 µs
        return choose(impl, x.device, x.dtype)
    return choose(impl, x.device, x.dtype, _problem(x, spec))


def _parse(arguments: tuple[Any, ...]) -> tuple[EpilogueInputs, EpilogueSpec, str]:
    """(x, weight, bias, residual, slopes, *fields of the spec, impl), as the schemas have them."""
    x, weight, bias, residual, slopes, *fields, impl = arguments
    if residual is not None:
        residual = rows_in_format(residual, x)
    return EpilogueInputs(x, weight, bias, residual, slopes), EpilogueSpec(*fields), impl


def empty_result(x: Tensor, spec: EpilogueSpec) -> Tensor:
    """Memory for the result, in the layout of x."""
    size, layout = spec.output_size(x), memory_format(x)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)


def empty_stats(x: Tensor, spec: EpilogueSpec) -> Tensor:
    """Memory for the statistics [2, R]."""
    return torch.empty(spec.stats_size(x), dtype=accumulator_dtype(x.dtype), device=x.device)


def empty_gradients(x: Tensor, spec: EpilogueSpec, need: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of x and of the residual, and for the sums; what is not needed has no elements.

    Args:
        x: [N, C, H, W].
        spec: the epilogue.
        need: which of the three are needed.

    Returns:
        Two tensors like x, and [3, N, C] in the accumulator's dtype.
    """
    need_x, need_residual, need_sums = need
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        torch.empty_like(x) if need_residual else x.new_empty(0),
        torch.empty(spec.sums_size(x) if need_sums else 0, dtype=accumulator_dtype(x.dtype), device=x.device),
    )


@torch.library.impl(LIBRARY, "epilogue", "CompositeExplicitAutograd")
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, spec, impl = _parse(arguments)
    y, stats = empty_result(inputs.x, spec), empty_stats(inputs.x, spec)
    _backend(impl, inputs.x, spec).epilogue_forward(spec, inputs, y, stats, has_stats=False)
    return y, stats


@torch.library.register_fake("munit_fast::epilogue", lib=LIBRARY)
def _forward_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    spec = EpilogueSpec(*arguments[4:-1])
    return empty_result(x, spec), empty_stats(x, spec)


@torch.library.impl(LIBRARY, "epilogue_again", "CompositeExplicitAutograd")
def _again(x: Tensor, stats: Tensor, *arguments: Any) -> Tensor:
    inputs, spec, impl = _parse((x, *arguments))
    y = empty_result(x, spec)
    _backend(impl, x, spec).epilogue_forward(spec, inputs, y, stats, has_stats=True)
    return y


@torch.library.register_fake("munit_fast::epilogue_again", lib=LIBRARY)
def _again_fake(x: Tensor, stats: Tensor, *arguments: Any) -> Tensor:
    return empty_result(x, EpilogueSpec(*arguments[4:-1]))


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
    *fields, impl, need_x, need_residual, need_sums = flags
    spec, need = EpilogueSpec(*fields), (need_x, need_residual, need_sums)
    results = empty_gradients(x, spec, need)
    out = EpilogueGradients(*(result if needed else None for result, needed in zip(results, need)))
    inputs = EpilogueInputs(x, weight, bias, None, slopes)
    _backend(impl, x, spec).epilogue_backward(spec, inputs, in_format(grad, x), stats, out)
    return results


@torch.library.register_fake("munit_fast::epilogue_backward", lib=LIBRARY)
def _backward_fake(grad: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(x, EpilogueSpec(*arguments[4:-4]), arguments[-3:])


def is_plain_cpu(x: Tensor) -> bool:
    """Whether the compiled kernels can be called on x without the registered operators, which cost 8 µs more.

    Whoever looks at what is called, such as a compiler, a dispatch mode or a functional transform, gets the operators.
    """
    return is_real_cpu(x) and torch._C._len_torch_dispatch_stack() == 0  # torch.compile cannot trace the second


def is_real_cpu(x: Tensor) -> bool:
    """Whether x is on the CPU with memory of its own, for operators without fakes; a dispatch mode may look on."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


def calls_cpu(x: Tensor, impl: str) -> bool:
    """Whether the CPU's backend serves x and can be called without the registered operators."""
    return is_plain_cpu(x) and choose(impl, x.device, x.dtype) is cpu


def run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    flags: tuple[Any, ...],
    stats: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The operator `epilogue`, or `epilogue_again` where there are statistics, in the shortest way.

    Args:
        x: as the members of `EpilogueInputs`, and so the other tensors.
        weight: likewise.
        bias: likewise.
        residual: likewise.
        slopes: likewise.
        flags: the fields of the spec, and impl.
        stats: [2, R] of x, where they are known.

    Returns:
        The result and the statistics.
    """
    if calls_cpu(x, flags[-1]):
        spec = EpilogueSpec._make(flags[:-1])
        if residual is not None:
            residual = rows_in_format(residual, x)
        if stats is None:
            return cpu.epilogue(spec, x, weight, bias, residual, slopes)
        return cpu.epilogue_again(spec, x, stats, weight, bias, residual, slopes), stats
    if stats is None:
        found: tuple[Tensor, Tensor] = _EPILOGUE(x, weight, bias, residual, slopes, *flags)
        return found
    return _EPILOGUE_AGAIN(x, stats, weight, bias, residual, slopes, *flags), stats


def _collect(sums: Tensor, like: Tensor) -> Tensor:
    """[N, C] sums over planes -> the gradient of a parameter [P] or [N, P] that channel c reads at c % P."""
    n, c = sums.shape
    entries = like.shape[-1]
    if like.dim() == 1:
        found = sums[0] if n == 1 and c == entries else sums.reshape(-1, entries).sum(0)
    else:
        found = sums if c == entries else sums.reshape(n, -1, entries).sum(1)
    return found.to(like.dtype)


def gradients(
    grad: Tensor,
    inputs: EpilogueInputs,
    stats: Tensor,
    flags: tuple[Any, ...],
    need: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight, bias, residual and slopes, those that `need` (in this order) asks for.

    Args:
        grad: [N, C / block², block·H + 2·pad, block·W + 2·pad].
        inputs: as the forward had them, without the residual.
        stats: [2, R], from the forward.
        flags: the fields of the spec, and impl.
        need: which of the five are needed.

    Returns:
        Each like its tensor; None where it is not needed.
    """
    x, weight, bias, _, slopes = inputs
    need_x, need_weight, need_bias, need_residual, need_slopes = need
    spec = EpilogueSpec._make(flags[:-1])
    rearranged = spec.pad > 0 or spec.block > 1  # else the residual's gradient is `grad` itself
    need_sums = need_weight or need_bias or need_slopes
    wanted = need_x, need_residual and rearranged, need_sums
    if calls_cpu(x, flags[-1]):
        results = cpu.epilogue_gradients(spec, in_format(grad, x), x, stats, weight, bias, slopes, wanted)
    else:
        results = _EPILOGUE_BACKWARD(grad, x, stats, weight, bias, slopes, *flags, *wanted)
    grad_x, grad_residual, sums = results
    return (
        grad_x if need_x else None,
        _collect(sums[1], weight) if need_weight and weight is not None and sums is not None else None,
        _collect(sums[0], bias) if need_bias and bias is not None and sums is not None else None,
        (grad_residual if rearranged else grad) if need_residual else None,
        _collect(sums[2], slopes) if need_slopes and slopes is not None and sums is not None else None,
    )


def _formula(ctx: Any, saved: Sequence[Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
    x, _, weight, bias, slopes = saved
    # No gradient depends on the residual, which is not kept.
    residual = torch.zeros_like(x, requires_grad=True) if ctx.needs_input_grad[4] else None
    y = formulas.epilogue(x, weight, bias, residual, slopes, EpilogueSpec._make(ctx.flags[:-1]))
    return y, (None, x, weight, bias, residual, slopes)


class _EpilogueFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stats: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        slopes: Tensor | None,
        flags: tuple[Any, ...],
    ) -> Tensor:
        y, stats = run(x, weight, bias, residual, slopes, flags, stats)
        # The residual and the result are not kept: the backward needs x and two numbers a plane.
        ctx.save_for_backward(x, stats, weight, bias, slopes)
        ctx.flags = flags
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @differentiable(_formula)
    def backward(ctx: Any, saved: Sequence[Tensor], grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None, None, None, None, None, None, None)
        x, stats, weight, bias, slopes = saved
        inputs = EpilogueInputs(x, weight, bias, None, slopes)
        return (None, *gradients(grad, inputs, stats, ctx.flags, ctx.needs_input_grad[1:6]), None)


def epilogue(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    spec: EpilogueSpec,
    impl: str,
    stats: Tensor | None = None,
) -> Tensor:
    """One epilogue of checked arguments; autograd is entered only when a gradient is needed.

    Args:
        x: [N, C, H, W], dense.
        weight: [P] or [N, P], where channel c reads entry c % P; None: one.
        bias: like weight; None: zero.
        residual: like x, or a window of a larger tensor; or None.
        slopes: [1] or [C] for act "prelu"; else None.
        spec: the options.
        impl: the backend.
        stats: the statistics [2, R] of x, where they are at hand; None: they are computed.

    Returns:
        [N, C / block², block·H + 2·pad, block·W + 2·pad] in x's dtype and layout.

    Raises:
        RuntimeError: `impl` cannot serve these tensors.
    """
    if formulas.are_needed():
        return formulas.epilogue(x, weight, bias, residual, slopes, spec)
    tensors = (x, weight, bias, residual, slopes)
    if needs_gradient(tensors):
        return _EpilogueFunction.apply(stats, *distinct(tensors), (*spec, impl))
    return run(*tensors, (*spec, impl), stats)[0]
