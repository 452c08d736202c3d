"""Several images as one, to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shown(images: Tensor, channels: Sequence[int] | None = None) -> Tensor:
    """The channels of images that people look at.

    Args:
        images: [..., C, H, W] with any number of channels.
        channels: Three of them, for red, green and blue; None: the first three, or the first as grey of one or two.

    Returns:
        [..., 3, H, W], or [..., 1, H, W] for grey.
    """
    if channels is None:
        return images[..., : 3 if images.shape[-3] >= 3 else 1, :, :]
    return images[..., list(channels), :, :]


def make_grid(rows: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Join rows of images into one image on white.

    A row is as high as its images and a column as wide as its widest image, in which narrower ones are centred.

    Args:
        rows: Each [N, C, H, W] in [-1, 1], any floating-point dtype and device; N and the size may differ between rows.
            C is 1 (repeated) or 3.
        gap: White pixels between the images and around them.

    Returns:
        [3, height, width] float32 on the CPU.
    """
    width = max(row.shape[3] for row in rows)
    columns = max(row.shape[0] for row in rows)
    height = sum(row.shape[2] + gap for row in rows) + gap
    grid = torch.ones(3, height, columns * (width + gap) + gap)
    top = gap
    for row in rows:
        bottom = top + row.shape[2]
        for c, image in enumerate(row.detach().float().cpu()):
            left = gap + c * (width + gap) + (width - row.shape[3]) // 2
            grid[:, top:bottom, left : left + row.shape[3]] = image
        top = bottom + gap
    return grid
