"""One picture of a whole set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from munit_fast.data import make_grid, save_image
from munit_fast.data.grid import shown
from munit_fast.translate.journal import make_folder

MAX_GRID_ROWS = 100  # it is made in memory
MAX_GRID_PIXELS = 100_000_000  # more than that many programs refuse to open


class Grid:
    """The first `MAX_GRID_ROWS` images, each in a row with its translations.

    Args:
        path: The file; None: no grid is made.
        channels: Three channels of the images and of their translations that it shows, as `munit_fast.data.grid.shown`
            takes them.
    """

    def __init__(
        self, path: Path | None, channels: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None)
    ) -> None:
        self.path, self._channels = path, channels
        self._rows: list[Tensor] = []

    @property
    def rows_left(self) -> int:
        """How many rows it still takes."""
        return 0 if self.path is None else MAX_GRID_ROWS - len(self._rows)

    def add(self, image: Tensor, translations: Tensor) -> None:
        """Add a row if one is wanted: an image [C, H, W] and its translations [S, C', H, W]."""
        if self.rows_left:
            of_image, of_translations = self._channels
            cells = [shown(image, of_image), *(shown(one, of_translations) for one in translations)]
            self._rows.append(torch.stack([cell.float().expand(3, -1, -1) for cell in cells]))

    def save(self) -> str | None:
        """Write the file. Returns why it was not written, or None."""
        if self.path is None or not self._rows:
            return None
        rows = self._rows
        pixels = max(x.shape[3] for x in rows) * max(x.shape[0] for x in rows) * sum(x.shape[2] for x in rows)
        if pixels > MAX_GRID_PIXELS:
            return (
                f"--grid {self.path}: not written, it would have {pixels / 1e6:.0f} million pixels: all its cells are "
                "as wide as the widest picture; give pictures of more even shapes, or fewer"
            )
        make_folder(self.path.parent)
        save_image(make_grid(rows), self.path, durable=False)
        return None
