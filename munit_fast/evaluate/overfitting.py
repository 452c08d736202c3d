"""Has a discriminator learned its training pictures by heart? Its verdicts on them and on pictures it never saw."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import nn

from munit_fast.evaluate.metrics.base import Pictures

_PICTURES_PER_STEP = 32


@torch.no_grad()
def verdicts(discriminator: nn.Module, pictures: Pictures) -> list[float]:
    """The mean output of a discriminator at each of its scales, finest first.

    Args:
        discriminator: Gives patch maps [N, 1, h_i, w_i] of images [N, C, H, W]; in evaluation mode.
        pictures: At least one, each [C, H, W] in [-1, 1].
    """
    like = next(discriminator.parameters())
    total, means = len(pictures), []
    for start in range(0, total, _PICTURES_PER_STEP):
        part = [pictures[i] for i in range(start, min(total, start + _PICTURES_PER_STEP))]
        maps = discriminator(torch.stack(part).to(like))
        means.append([output.double().mean().item() * len(part) / total for output in maps])
    return [sum(scale) for scale in zip(*means, strict=True)]


def overfitting(discriminator: nn.Module, train: Pictures, held_out: Pictures) -> float:
    """What a discriminator says of training pictures minus what it says of held-out ones, mean over its scales.

    Near 0 it judges how pictures look. With LSGAN, whose real pictures are 1 and translations 0, 1 means that it has
    learned its training pictures by heart, and tells a generator no more than which pictures those are.

    Args:
        discriminator: As `verdicts` takes it.
        train: Pictures that it was trained on.
        held_out: Others of the same domain.
    """
    return fmean(verdicts(discriminator, train)) - fmean(verdicts(discriminator, held_out))
