"""What a TIFF page may ask for, checked before anything of it is decoded."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image
from tifffile import TiffPage

from munit_fast.data.picture import ImageError, check_size, pixel_limit, refuse_size
from munit_fast.data.readers.tiff_samples import JPEG

_BYTES_PER_PIXEL = 32  # on average: four channels of 64 bits
_JPEG_BLOCK = 64  # that some writers fill up
# Of the others, decoders trust sizes inside the data.
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}


def check_jpegs(page: TiffPage) -> None:
    """Raise ImageError where a JPEG of the page says that it is larger than its place, before it is decoded."""
    if page.compression != JPEG:
        return
    width, height = page.imagewidth, min(page.rowsperstrip, page.imagelength)
    if page.is_tiled:
        width, height = page.tilewidth, page.tilelength
    file = page.parent.filehandle
    for start, count in zip(page.dataoffsets, page.databytecounts):
        file.seek(start)
        with Image.open(BytesIO(file.read(count)), formats=("JPEG",)) as image:
            if image.width > width + _JPEG_BLOCK or image.height > height + _JPEG_BLOCK:
                raise ImageError("a part of the image is damaged")


def check_sizes(page: TiffPage) -> None:
    """Raise ImageError for what is too large, before anything is decoded."""
    check_size(page.imagewidth, page.imagelength)
    if page.shaped[1] != 1 or page.tiledepth > 1:
        raise ImageError("a volume in one page; save its slices as pages")
    if page.is_tiled:
        check_size(page.tilewidth, page.tilelength)
    limit = pixel_limit() * _BYTES_PER_PIXEL
    tile = page.tilewidth * page.tilelength * page.shaped[4] * np.dtype(page.dtype).itemsize
    if max(page.nbytes, tile) > limit:
        refuse_size(f"more than {limit} bytes")
    if page.compression not in _COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        raise ImageError(f"TIFF with compression {name}; save it with LZW, deflate or none")
