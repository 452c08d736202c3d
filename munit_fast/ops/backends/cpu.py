"""The C++ kernels of csrc/cpu, through torch.ops.munit_fast_cpu."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from munit_fast.ops import native
from munit_fast.ops.backends.registry import Problem
from munit_fast.ops.spec import EpilogueGradients, EpilogueInputs, EpilogueSpec, accumulator_dtype, is_channels_last

_OPERATORS = torch.ops.munit_fast_cpu
_codes = lru_cache(4096)(EpilogueSpec.codes)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it serves tensors on the CPU; these are on {device}"
    if native.module is None:
        return native.native_error
    if dtype not in _DTYPES:
        return f"it serves float32, float64, bfloat16 and float16, not {dtype}"
    return None


def unsupported_problem_reason(problem: Problem) -> str | None:
    """Why it does not serve this operation, on a device and dtype that it serves; None if it does."""
    if problem.op == "phase_border":
        return "it corrects the border of a phase convolution inside the convolution"
    return None


def _rows(t: Tensor | None) -> Tensor | None:
    """A parameter [P] or [N, P] with dense rows."""
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def epilogue_forward(spec: EpilogueSpec, inputs: EpilogueInputs, y: Tensor, stats: Tensor, has_stats: bool) -> None:
    x, weight, bias, residual, slopes = inputs
    parameters = _rows(weight), _rows(bias), _rows(slopes)
    torch.ops.munit_fast_cpu.epilogue_forward.default(
        x, *parameters, residual, y, stats, has_stats, *spec.codes(), is_channels_last(x)
    )


def epilogue_backward(
    spec: EpilogueSpec, inputs: EpilogueInputs, grad: Tensor, stats: Tensor, out: EpilogueGradients
) -> None:
    x, weight, bias, _, slopes = inputs
    parameters = _rows(weight), _rows(bias), _rows(slopes)
    torch.ops.munit_fast_cpu.epilogue_backward.default(
        grad, x, *parameters, stats, *out, *spec.codes(), is_channels_last(x)
    )


# The same with memory for the results, for `munit_fast.ops.epilogue` where no one traces. Schemas: csrc/cpu/ops.cpp.


def epilogue(
    spec: EpilogueSpec,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _OPERATORS.epilogue.default(
        x, _rows(weight), _rows(bias), residual, _rows(slopes), *_codes(spec)
    )
    return found


def epilogue_again(
    spec: EpilogueSpec,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
) -> Tensor:
    found: Tensor = _OPERATORS.epilogue_again.default(
        x, stats, _rows(weight), _rows(bias), residual, _rows(slopes), *_codes(spec)
    )
    return found


def epilogue_gradients(
    spec: EpilogueSpec,
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = _OPERATORS.epilogue_gradients.default(
        grad, x, stats, _rows(weight), _rows(bias), _rows(slopes), *_codes(spec), *need
    )
    return found


def l1_losses(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    values = [torch.ops.munit_fast_cpu.l1_sum.default(a, b) / a.numel() for a, b in zip(first, second)]
    return torch.tensor(values, dtype=accumulator_dtype(first[0].dtype))


def l1_losses_backward(
    grad: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], out: Sequence[Tensor | None]
) -> None:
    pairs = zip(grad.tolist(), first, second, out[: len(first)], out[len(first) :])
    for upstream, a, b, grad_a, grad_b in pairs:
        torch.ops.munit_fast_cpu.l1_backward.default(a, b, upstream / a.numel(), grad_a, grad_b)


def lsgan_loss(outputs: Sequence[Tensor], target: float) -> Tensor:
    value = sum(torch.ops.munit_fast_cpu.lsgan_sum.default(output, target) / output.numel() for output in outputs)
    return torch.tensor(value, dtype=accumulator_dtype(outputs[0].dtype))


def lsgan_loss_backward(grad: Tensor, outputs: Sequence[Tensor], target: float, out: Sequence[Tensor]) -> None:
    for output, grad_output in zip(outputs, out):
        upstream = 2 * grad.item() / output.numel()
        torch.ops.munit_fast_cpu.lsgan_backward.default(output, target, upstream, grad_output)
