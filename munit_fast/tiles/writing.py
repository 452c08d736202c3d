"""Results: translated pixels on disk while they are made, then one tiled TIFF file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from torch import Tensor

from munit_fast.data import ImageError
from munit_fast.io.atomic import atomic_path
from munit_fast.tiles.plan import tiles_of
from munit_fast.tiles.storage import PixelFile
from munit_fast.utils.version import __version__

TILE = 512  # of the file


def to_integers(image: Tensor, dtype: npt.DTypeLike, name: Path) -> npt.NDArray[Any]:
    """[1, C, H, W] in -1..1 → [H, W, C]: (x + 1) / 2 at the full range of `dtype`, values outside clamped.

    Args:
        image: Any floating-point dtype, any device.
        dtype: uint8 or uint16.
        name: Of the file, for the message.

    Raises:
        ImageError: A value is NaN or infinite.
    """
    values = image[0].detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ImageError(f"{name}: the translation holds NaN or infinite values")
    scaled = values.add(1).div(2).clamp(0, 1).mul(np.iinfo(dtype).max).round()
    return scaled.permute(1, 2, 0).numpy().astype(dtype)


def write_tiff(path: Path, pixels: PixelFile, tags: dict[str, Any]) -> None:
    """Write a tiled BigTIFF file, compressed without loss (deflate), whole or not at all.

    Args:
        path: The file.
        pixels: [1, H, W, C], uint8 or uint16.
        tags: Further arguments of tifffile's `write`.

    Raises:
        FileWriteError: It cannot be written.
    """
    _, height, width, channels = pixels.shape

    def tiles() -> Iterator[npt.NDArray[Any]]:
        for box in tiles_of(1, height, width, TILE):
            tile = np.zeros((TILE, TILE, channels), pixels.dtype)
            tile[: box.height, : box.width] = pixels.read(box)
            yield tile if channels > 1 else tile[:, :, 0]

    if channels != 3:
        tags = {name: value for name, value in tags.items() if name != "iccprofile"}
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        writer.write(
            tiles(),
            shape=(height, width, channels) if channels > 1 else (height, width),
            dtype=pixels.dtype,
            tile=(TILE, TILE),
            photometric="rgb" if channels == 3 else "minisblack",
            planarconfig="contig" if channels > 1 else None,
            compression="zlib",
            predictor=True,
            metadata=None,
            software=f"munit-fast {__version__}",
            maxworkers=1,
            **tags,
        )
