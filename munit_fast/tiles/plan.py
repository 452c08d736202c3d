"""Geometry: boxes of pixels, the tiles of an image, the windows that statistics are sampled from."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle of one plane: rows top..bottom and columns left..right, the last ones excluded.

    A plane is an image that is translated by itself: the whole one, or one of the windows of a sample.
    """

    plane: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def contains(self, other: Box) -> bool:
        """Whether every pixel of `other` is one of this box."""
        return (
            self.plane == other.plane
            and self.top <= other.top <= other.bottom <= self.bottom
            and self.left <= other.left <= other.right <= self.right
        )

    def inside(self, outer: Box) -> tuple[slice, slice]:
        """The rows and columns of this box in an array that holds `outer`."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )


@dataclass(frozen=True)
class Planes:
    """The images that one set of statistics is of, all of one size.

    Attributes:
        offsets: Row and column of the first pixel of each plane in the whole image.
        height: Rows of every plane.
        width: Columns of every plane.
    """

    offsets: tuple[tuple[int, int], ...]
    height: int
    width: int

    @classmethod
    def whole(cls, height: int, width: int) -> Planes:
        """One plane: the image."""
        return cls(((0, 0),), height, width)


def tiles_of(planes: int, height: int, width: int, side: int) -> list[Box]:
    """Cut planes into squares, row by row; the last ones of a row and of a column are smaller.

    Args:
        planes: How many.
        height: Rows of each.
        width: Columns of each.
        side: Of a square.

    Returns:
        Boxes that hold every pixel exactly once.
    """
    return [
        Box(plane, top, min(top + side, height), left, min(left + side, width))
        for plane in range(planes)
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def windows_of(height: int, width: int, side: int, count: int, multiple: int) -> Planes:
    """Windows that lie evenly in an image.

    Args:
        height: Rows of the image, a multiple of `multiple`.
        width: Columns of the image, a multiple of `multiple`.
        side: Of a window; less where the image is narrower.
        count: The most windows.
        multiple: Windows begin and end at multiples of it.

    Returns:
        At most `count` windows, in rows.
    """
    side = -(-side // multiple) * multiple
    tall, wide = min(side, height), min(side, width)
    rows = max(1, min(count, round(math.sqrt(count * height / width)), height // tall))
    columns = max(1, min(count // rows, width // wide))

    def starts(length: int, part: int, number: int) -> list[int]:
        centres = [(i + 0.5) * length / number for i in range(number)]
        return [min(max(0, int(centre - part / 2)), length - part) // multiple * multiple for centre in centres]

    offsets = [(top, left) for top in starts(height, tall, rows) for left in starts(width, wide, columns)]
    return Planes(tuple(offsets), tall, wide)
