"""The picture grids of a run, in the published layout: a row each for input, reconstruction and translations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from munit_fast.data.images import save_image


def make_grid(rows: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Rows of images, each [N, C, H, W] in [-1, 1], as one image [3, R·(H+gap)+gap, N·(W+gap)+gap], white between."""
    height, width = rows[0].shape[2:]
    columns = rows[0].shape[0]
    grid = torch.ones(3, len(rows) * (height + gap) + gap, columns * (width + gap) + gap)
    for r, row in enumerate(rows):
        for c, image in enumerate(row.detach().float().cpu()):
            top, left = gap + r * (height + gap), gap + c * (width + gap)
            grid[:, top : top + height, left : left + width] = image  # one channel is repeated
    return grid


def split_samples(images: Sequence[Tensor]) -> list[tuple[str, Sequence[Tensor]]]:
    """The rows of each direction's grid, from what a trainer's `sample` returns."""
    half = len(images) // 2
    return [("a2b", images[:half]), ("b2a", images[half:])]


def write_grids(images: Sequence[Tensor], folder: Path, postfix: str) -> list[Path]:
    """Write gen_a2b_<postfix>.jpg and gen_b2a_<postfix>.jpg from what a trainer's `sample` returns."""
    written = []
    for direction, rows in split_samples(images):
        path = folder / f"gen_{direction}_{postfix}.jpg"
        save_image(make_grid(rows), path)
        written.append(path)
    return written
