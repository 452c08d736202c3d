"""The Triton kernels of `munit_fast.kernels`, on NVIDIA and AMD GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from munit_fast import kernels
from munit_fast.kernels import launch
from munit_fast.ops.backends.registry import Problem
from munit_fast.ops.options import Options


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    return kernels.why_not(device, dtype)  # type: ignore[attr-defined]


def why_not_problem(problem: Problem) -> str | None:
    """None if the kernels can serve this operation, on a device and dtype that they serve; or the reason in words."""
    if problem.op != "epilogue":
        return None
    return launch.why_too_large(problem.samples, problem.channels, problem.sample)


def epilogue_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    o: Options,
    stats: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    from munit_fast.kernels.epilogue import epilogue_forward as run

    return run(x, weight, bias, residual, _slope(o, slopes), stats, **_keywords(o))


def epilogue_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    o: Options,
    need_x: bool,
    need_residual: bool,
    need_sums: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    from munit_fast.kernels.epilogue import epilogue_backward as run

    return run(
        grad,
        x,
        stats,
        weight,
        bias,
        _slope(o, slopes),
        need_x=need_x,
        need_residual=need_residual,
        need_sums=need_sums,
        **_keywords(o),
    )


def _keywords(o: Options) -> dict[str, object]:
    keywords = o._asdict()
    del keywords["slope"]
    return keywords


def _slope(o: Options, slopes: Tensor | None) -> float | Tensor:
    return o.slope if slopes is None else slopes


def l1_losses(first: list[Tensor], second: list[Tensor]) -> Tensor:
    from munit_fast.kernels.losses import l1_losses_forward

    return l1_losses_forward(first, second)


def l1_losses_backward(
    grad: Tensor, first: list[Tensor], second: list[Tensor], need_first: list[bool], need_second: list[bool]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    from munit_fast.kernels.losses import l1_losses_backward as run

    return run(grad, first, second, need_first, need_second)


def lsgan_loss(outputs: list[Tensor], target: float) -> Tensor:
    from munit_fast.kernels.losses import lsgan_loss_forward

    return lsgan_loss_forward(outputs, target)


def lsgan_loss_backward(grad: Tensor, outputs: list[Tensor], target: float) -> list[Tensor]:
    from munit_fast.kernels.losses import lsgan_loss_backward as run

    return run(grad, outputs, target)
