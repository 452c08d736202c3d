"""Feature matching: translations shall have the features of real images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from munit_fast.train.terms.base import Step, Term


def feature_matching(step: Step, domain: str, noise: Sequence[Tensor]) -> Tensor:
    """Feature matching (Salimans et al., NeurIPS 2016, section 3.1; in this form Liu et al., FUNIT, ICCV 2019, L_FM).

    At each scale of the discriminator the mean absolute difference of two vectors, summed over the scales: the
    features that its last layer reads, averaged over all places, of a translation and of the real image of the domain
    with its number in the batch. They are not averaged over the batch first: its parts and processes make the same sum.

    Args:
        step: What the generator update has computed.
        domain: "a" or "b", of the translations.
        noise: None.

    Returns:
        A scalar.
    """
    with torch.no_grad():
        real = step.nets.discriminators[domain].judge(step.seen_real[domain]).features
    fake = step.judged_fake[domain].features
    return torch.stack([(_mean(f) - _mean(r)).abs().mean() for f, r in zip(fake, real)]).sum()


def _mean(features: Tensor) -> Tensor:
    """[N, C] of features [N, C, h, w], in float32 at least."""
    return features.mean((2, 3), dtype=torch.promote_types(features.dtype, torch.float32))


FEATURE_MATCHING = Term("feature_matching_w", "feature_matching", "gen", feature_matching)
