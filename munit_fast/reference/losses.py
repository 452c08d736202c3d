"""The reconstruction and adversarial losses, as formulas. Each sum is taken in at least float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l1_losses(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """`mean(|a - b|)` of each of P pairs (MUNIT eq. 1 to 3).

    Args:
        first: P tensors of any shapes.
        second: P tensors of the same shapes.

    Returns:
        [P] in at least float32.
    """
    return torch.stack([(_wide(a) - _wide(b)).abs().mean() for a, b in zip(first, second)])


def l1_losses_backward(grad: Tensor, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of `l1_losses` for each `first`: sign(a - b) · grad[p] / numel, with sign(0) = 0.

    That for `second` is its negative.

    Args:
        grad: [P].
        first: as for `l1_losses`.
        second: as for `l1_losses`.

    Returns:
        P tensors, each like that of `first`.
    """
    return [
        (torch.sign(_wide(a) - _wide(b)) * (grad[p] / a.numel())).to(a.dtype)
        for p, (a, b) in enumerate(zip(first, second))
    ]


def lsgan_loss(outputs: Sequence[Tensor], target: float) -> Tensor:
    """Σ over the discriminator's scales of mean((output - target)²) (Mao et al., ICCV 2017, eq. 2).

    Args:
        outputs: of each scale, any shapes.
        target: 1 for real, 0 for fake.

    Returns:
        A scalar in at least float32.
    """
    return torch.stack([(_wide(output) - target).square().mean() for output in outputs]).sum()


def lsgan_loss_backward(grad: Tensor, outputs: Sequence[Tensor], target: float) -> list[Tensor]:
    """The gradient of `lsgan_loss` for each output: 2 · (output - target) · grad / numel.

    Args:
        grad: a scalar.
        outputs: as for `lsgan_loss`.
        target: as for `lsgan_loss`.

    Returns:
        One tensor for each output, like it.
    """
    return [((_wide(output) - target) * (2 * grad / output.numel())).to(output.dtype) for output in outputs]
