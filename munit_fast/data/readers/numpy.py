"""Arrays that NumPy saved."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np

from munit_fast.data.picture import Array, ImageError, Picture, check_size, type_limits


def pages(file: BinaryIO) -> int:
    """How many images the file holds."""
    return 1


def read(file: BinaryIO, page: int) -> Picture:
    """The image [H, W], [H, W, C] or [C, H, W] with C = 1 or 3. Where both readings are possible, it is [H, W, C]."""
    values = _values(file)
    if values.ndim == 3 and values.shape[2] not in (1, 3) and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3)):
        raise ImageError(f"an array of shape {list(values.shape)}; use [H, W], [H, W, C] or [C, H, W] with C = 1 or 3")
    check_size(values.shape[1], values.shape[0])
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
        raise ImageError(f"values of type {values.dtype}; use integers or floating point")
    pixels = np.array(values, dtype=values.dtype.newbyteorder("="))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return Picture(pixels, pixels.shape[2] == 3, limits=type_limits(pixels.dtype))


def _values(file: BinaryIO) -> Array:
    # A memory map reads the header alone, so the size is checked before anything is allocated; it never unpickles.
    name = getattr(file, "name", None)
    if isinstance(name, str) and Path(name).is_file():
        return np.lib.format.open_memmap(name, mode="r")
    data = file.read()
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
