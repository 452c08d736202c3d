"""A slide as the networks read it: in [-1, 1], enlarged to sides that they take."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from munit_fast.config import Config, smallest_generator_size
from munit_fast.data import to_model_range
from munit_fast.tiles.plan import Box
from munit_fast.tiles.slides import Slide


class PaddedImage:
    """A slide that is enlarged to the right and below by reflection, as `MUNIT.translate` enlarges images.

    Args:
        slide: The slide.
        config: Of the model.
        like: Gives tensors their dtype and device.
        multiple: Of which sides must be multiples; None: what the generator needs.
    """

    def __init__(self, slide: Slide, config: Config, like: Tensor, multiple: int | None = None) -> None:
        multiple = multiple or config.size_multiple
        self.slide, self.like = slide, like
        self.rows, self.columns = (
            _places(size, smallest_generator_size(config.gen), multiple) for size in (slide.height, slide.width)
        )
        self.height, self.width = len(self.rows), len(self.columns)
        self.channels = slide.channels

    def read(self, box: Box) -> Tensor:
        """The pixels [1, C, h, w] of a box."""
        rows, columns = self.rows[box.top : box.bottom], self.columns[box.left : box.right]
        top, left = int(rows.min()), int(columns.min())
        pixels = self.slide.read(top, int(rows.max()) + 1, left, int(columns.max()) + 1)
        if (
            len(rows) != pixels.shape[0]
            or len(columns) != pixels.shape[1]
            or box.bottom > self.slide.height
            or (box.right > self.slide.width)
        ):
            pixels = pixels[(rows - top)[:, None], columns - left]
        return to_model_range(pixels)[None].to(self.like)


def _places(size: int, least: int, multiple: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The row of the slide that each row of the enlarged image shows."""
    length = -(-max(least, size) // multiple) * multiple
    places = np.arange(length)
    if length - size < size:  # as torch reflects; what is too small repeats its border
        return np.where(places < size, places, 2 * (size - 1) - places)
    return np.minimum(places, size - 1)
