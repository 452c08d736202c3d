"""The Triton kernels of `munit_fast.kernels`, on NVIDIA and AMD GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from munit_fast import kernels
from munit_fast.kernels import launch
from munit_fast.ops.backends.registry import Problem
from munit_fast.ops.spec import EpilogueGradients, EpilogueInputs, EpilogueSpec, is_channels_last


def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    return kernels.unsupported_reason(device, dtype)


def unsupported_problem_reason(problem: Problem) -> str | None:
    """Why the kernels do not serve this operation, on a device and dtype that they serve; None if they do."""
    if problem.op == "losses":
        return None
    return launch.unsupported_size_reason(problem.samples, problem.channels, problem.sample)


# Triton is imported by the first call.
def epilogue_forward(spec: EpilogueSpec, inputs: EpilogueInputs, y: Tensor, stats: Tensor, has_stats: bool) -> None:
    from munit_fast.kernels.epilogue import epilogue_forward as run

    x, weight, bias, residual, slopes = inputs
    run(x, weight, bias, slopes, residual, y, stats, has_stats, *spec, is_channels_last(x))


def epilogue_backward(
    spec: EpilogueSpec, inputs: EpilogueInputs, grad: Tensor, stats: Tensor, out: EpilogueGradients
) -> None:
    from munit_fast.kernels.epilogue import epilogue_backward as run

    x, weight, bias, _, slopes = inputs
    run(grad, x, weight, bias, slopes, stats, out.x, out.residual, out.sums, *spec, is_channels_last(x))


def phase_border(y: Tensor, a: Tensor, border_weight: Tensor) -> None:
    from munit_fast.kernels.phase_border import phase_border_forward as run

    run(y, a, border_weight)


def phase_border_backward(
    grad: Tensor, a: Tensor, border_weight: Tensor, grad_a: Tensor | None, grad_border: Tensor | None
) -> None:
    from munit_fast.kernels.phase_border import phase_border_backward as run

    run(grad, a, border_weight, grad_a, grad_border)


def l1_losses(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    from munit_fast.kernels.losses import l1_losses_forward

    return l1_losses_forward(first, second)


def l1_losses_backward(
    grad: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], out: Sequence[Tensor | None]
) -> None:
    from munit_fast.kernels.losses import l1_losses_backward as run

    run(grad, first, second, out)


def lsgan_loss(outputs: Sequence[Tensor], target: float) -> Tensor:
    from munit_fast.kernels.losses import lsgan_loss_forward

    return lsgan_loss_forward(outputs, target)


def lsgan_loss_backward(grad: Tensor, outputs: Sequence[Tensor], target: float, out: Sequence[Tensor]) -> None:
    from munit_fast.kernels.losses import lsgan_loss_backward as run

    run(grad, outputs, target, out)
