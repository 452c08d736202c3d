"""The plain PyTorch formulas of `munit_fast.reference`: every device, every floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from munit_fast.ops.layout import in_format
from munit_fast.ops.options import Options
from munit_fast.reference import epilogue as formulas
from munit_fast.reference import losses


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _keywords(o: Options, slopes: Tensor | None) -> dict[str, object]:
    keywords = o._asdict()
    return keywords if slopes is None else keywords | {"slope": slopes}


def _own(result: Tensor, *others: Tensor) -> Tensor:
    """A result with memory of its own: where there is nothing to do, the formulas give an input back."""
    taken = [other.untyped_storage().data_ptr() for other in others]
    return result.clone() if result.untyped_storage().data_ptr() in taken else result


def epilogue_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    o: Options,
    stats: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    stats = formulas.statistics(x, o.norm) if stats is None else stats
    y = formulas.epilogue(x, weight, bias, residual, stats=stats, **_keywords(o, slopes))  # type: ignore[arg-type]
    return _own(in_format(y, x), x), stats


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
    grad_x, grad_residual, sums = formulas.epilogue_backward(grad, x, stats, weight, bias, **_keywords(o, slopes))  # type: ignore[arg-type]
    grad_x = _own(in_format(grad_x, x), grad)
    return (
        grad_x if need_x else None,
        _own(in_format(grad_residual, x), grad, grad_x) if need_residual else None,
        sums if need_sums else None,
    )


l1_losses = losses.l1_losses
lsgan_loss = losses.lsgan_loss
lsgan_loss_backward = losses.lsgan_loss_backward


def l1_losses_backward(
    grad: Tensor, first: list[Tensor], second: list[Tensor], need_first: list[bool], need_second: list[bool]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    grads = losses.l1_losses_backward(grad, first, second)
    return (
        [g if need else None for g, need in zip(grads, need_first)],
        [-g if need else None for g, need in zip(grads, need_second)],
    )
