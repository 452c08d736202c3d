"""Small drawings and their colourings, and a feature extractor that takes milliseconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from munit_fast.evaluate import metrics
from munit_fast.evaluate.metrics.features import embed


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def discs(n: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Drawings [n, 3, side, side] of circles, and the same circles filled with random colours."""
    g = generator(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centre = side * (0.35 + 0.3 * torch.rand(n, 2, 1, 1, generator=g))
    radius = side * (0.15 + 0.15 * torch.rand(n, 1, 1, generator=g))
    distance = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2).sqrt() - radius
    outline = ((distance.abs() < 1.2).float() * -2 + 1)[:, None].expand(-1, 3, -1, -1)
    colour = 2 * torch.rand(n, 3, 1, 1, generator=g) - 1
    filled = torch.where((distance < 0)[:, None], colour, torch.ones(())).minimum(outline)
    return outline.contiguous(), filled


class TinyExtractor:
    """A fixed random network in place of EfficientNet, so that whole evaluations take milliseconds."""

    def __init__(self) -> None:
        self.weights = [torch.randn(s, generator=generator(7)) / 5 for s in ((8, 3, 5, 5), (16, 8, 3, 3))]

    def __call__(self, images: Tensor) -> metrics.Features:
        stages = []
        for weight in self.weights:
            images = F.conv2d(images, weight, stride=2).relu()
            stages.append(images)
        return metrics.Features(images.mean((2, 3)), embed(stages))
