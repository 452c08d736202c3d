"""Results: translated pixels on disk while they are made, then one tiled TIFF file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from torch import Tensor

from munit_fast.data import PixelFormat
from munit_fast.data.readers import naming
from munit_fast.io.atomic import refuse_special, sync, write_error
from munit_fast.tiles.plan import tiles_of
from munit_fast.tiles.storage import PixelFile
from munit_fast.utils.version import __version__

TILE = 512  # of the file


def to_values(image: Tensor, pixel_format: PixelFormat, dtype: npt.DTypeLike, name: Path) -> npt.NDArray[Any]:
    """[1, C, H, W] in -1..1 → [H, W, C] in the values of a domain.

    Args:
        image: Any floating-point dtype, any device.
        pixel_format: Of the domain.
        dtype: Of the result.
        name: Of the file, for the message.

    Raises:
        ImageError: A value is NaN or infinite.
    """
    with naming(str(name)):
        return pixel_format.values(image[0], dtype)


def write_tiff(path: Path, pixels: PixelFile, tags: dict[str, Any]) -> None:
    """Write a tiled BigTIFF file, compressed without loss (deflate), whole or not at all.

    It is made in the folder of the job, which a later process removes or goes on with when this one is killed.

    Args:
        path: The file.
        pixels: [1, H, W, C], of any type of numbers, in a folder on the disk of `path`.
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
    temporary = pixels.path.with_name("output.tif")
    try:
        with tifffile.TiffWriter(temporary, bigtiff=True) as writer:
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
        refuse_special(path)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)  # or a power failure could leave the folder of the job gone and the file not there
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
