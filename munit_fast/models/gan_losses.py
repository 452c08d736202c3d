"""The adversarial losses: a table of what each says of a discriminator's outputs, and their sum over its scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from munit_fast import functional


class GanLoss(NamedTuple):
    """The means over an output [N, 1, h, w] that the two updates minimise.

    Attributes:
        fake: The discriminator's, of translations.
        real: The discriminator's, of real images.
        gen: The generator's, of translations.
    """

    fake: Callable[[Tensor], Tensor]
    real: Callable[[Tensor], Tensor]
    gen: Callable[[Tensor], Tensor]


def _to_0(output: Tensor) -> Tensor:
    return (output**2).mean()


def _to_1(output: Tensor) -> Tensor:
    return ((output - 1) ** 2).mean()


def _cross_entropy_to_0(output: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, torch.zeros_like(output))


def _cross_entropy_to_1(output: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, torch.ones_like(output))


def _below_minus_1(output: Tensor) -> Tensor:
    return F.relu(1 + output).mean()


def _above_1(output: Tensor) -> Tensor:
    return F.relu(1 - output).mean()


def _up(output: Tensor) -> Tensor:
    return -output.mean()


GAN_LOSSES: Mapping[str, GanLoss] = {
    # Least squares: Mao et al., ICCV 2017.
    "lsgan": GanLoss(_to_0, _to_1, _to_1),
    # Non-saturating, with logits: Goodfellow et al., NeurIPS 2014.
    "nsgan": GanLoss(_cross_entropy_to_0, _cross_entropy_to_1, _cross_entropy_to_1),
    # Lim & Ye, "Geometric GAN", 2017; Miyato et al., "Spectral Normalization for GANs", ICLR 2018, eqs. 16 and 17.
    "hinge": GanLoss(_below_minus_1, _above_1, _up),
}


def sum_of_scales(gan_type: str, side: str, outputs: Sequence[Tensor], impl: str) -> Tensor:
    """A loss summed over a discriminator's scales, a scalar.

    Args:
        gan_type: A key of `GAN_LOSSES`.
        side: "fake", "real" or "gen".
        outputs: One [N, 1, h_i, w_i] for each scale.
        impl: The backend, as in `munit_fast.functional`.
    """
    if gan_type == "lsgan":
        return functional.lsgan_loss(list(outputs), 0.0 if side == "fake" else 1.0, impl=impl)
    loss: Callable[[Tensor], Tensor] = getattr(GAN_LOSSES[gan_type], side)
    return torch.stack([loss(output) for output in outputs]).sum()
