"""The picture grids of a run, in the published layout: a row each for input, reconstruction and translations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from munit_fast.data import make_grid, save_image


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
