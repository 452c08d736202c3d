"""The plain PyTorch formulas of `munit_fast.reference`: every device, every floating dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from munit_fast.ops import upsample_conv
from munit_fast.ops.spec import EpilogueGradients, EpilogueInputs, EpilogueSpec
from munit_fast.reference import epilogue as formulas
from munit_fast.reference import losses


def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _keywords(spec: EpilogueSpec, inputs: EpilogueInputs) -> dict[str, Any]:
    keywords = spec._asdict()
    return keywords if inputs.slopes is None else keywords | {"slope": inputs.slopes}


# The formulas allocate their results: one more copy, in a backend that makes ten passes, is the price of one contract.
def epilogue_forward(spec: EpilogueSpec, inputs: EpilogueInputs, y: Tensor, stats: Tensor, has_stats: bool) -> None:
    x, weight, bias, residual, _ = inputs
    if not has_stats:
        stats.copy_(formulas.statistics(x, spec.norm, spec.groups))
    y.copy_(formulas.epilogue(x, weight, bias, residual, stats=stats, **_keywords(spec, inputs)))


def epilogue_backward(
    spec: EpilogueSpec, inputs: EpilogueInputs, grad: Tensor, stats: Tensor, out: EpilogueGradients
) -> None:
    x, weight, bias, *_ = inputs
    results = formulas.epilogue_backward(grad, x, stats, weight, bias, **_keywords(spec, inputs))
    for needed, result in zip(out, results):
        if needed is not None:
            needed.copy_(result)


def phase_border(y: Tensor, a: Tensor, border_weight: Tensor) -> None:
    upsample_conv.correct_reflect_border(y, upsample_conv.Edges.of_padded(a), border_weight.to(y.dtype))


def phase_border_backward(
    grad: Tensor, a: Tensor, border_weight: Tensor, grad_a: Tensor | None, grad_border: Tensor | None
) -> None:
    edges, need = upsample_conv.Edges.of_padded(a), (grad_a is not None, grad_border is not None)
    found, of_edges = upsample_conv.correct_reflect_border_backward(grad, edges, border_weight.to(grad.dtype), *need)
    if grad_border is not None and found is not None:
        grad_border.copy_(found)
    if grad_a is not None and of_edges is not None:
        of_edges.add_to_padded(grad_a)


l1_losses = losses.l1_losses
lsgan_loss = losses.lsgan_loss


def l1_losses_backward(
    grad: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], out: Sequence[Tensor | None]
) -> None:
    grads = losses.l1_losses_backward(grad, first, second)
    for needed, result in zip(out, (*grads, *(-g for g in grads))):
        if needed is not None:
            needed.copy_(result)


def lsgan_loss_backward(grad: Tensor, outputs: Sequence[Tensor], target: float, out: Sequence[Tensor]) -> None:
    for grad_output, result in zip(out, losses.lsgan_loss_backward(grad, outputs, target)):
        grad_output.copy_(result)
