"""Several images as one, to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def make_grid(rows: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Rows of images, each [N, C, H, W] in [-1, 1], as one image [3, R·(H+gap)+gap, N·(W+gap)+gap], white between.

    Rows may differ in N, C, H and W: an image smaller than the largest one stands in the middle of its cell.
    """
    height, width = (max(row.shape[axis] for row in rows) for axis in (2, 3))
    columns = max(row.shape[0] for row in rows)
    grid = torch.ones(3, len(rows) * (height + gap) + gap, columns * (width + gap) + gap)
    for r, row in enumerate(rows):
        for c, image in enumerate(row.detach().float().cpu()):
            top, left = gap + r * (height + gap), gap + c * (width + gap)
            grid[:, top : top + height, left : left + width] = _centred(image, height, width)
    return grid


def _centred(image: Tensor, height: int, width: int) -> Tensor:
    """[C, h, w] in the middle of a white [3, height, width]; one channel is repeated."""
    top, left = (height - image.shape[1]) // 2, (width - image.shape[2]) // 2
    below, right = height - image.shape[1] - top, width - image.shape[2] - left
    return F.pad(image, (left, right, top, below), value=1.0).expand(3, -1, -1)
