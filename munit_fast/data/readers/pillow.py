"""JPEG, PNG, PPM, BMP, TIFF, WebP and GIF through Pillow, and PIL images."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from munit_fast.data.picture import MAX_PIXELS, Array, ImageError, Picture, check_size, type_limits
from munit_fast.utils import env

# Pillow decides by content, not by name; some of its other formats start outside programs.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_ON_THE_WAY = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}  # what has to become another mode first


def pages(file: BinaryIO) -> int:
    """How many images the file holds."""
    with _opened(file) as image:
        return getattr(image, "n_frames", 1)


def read(file: BinaryIO, page: int) -> Picture:
    """Image number `page` of a file."""
    with _opened(file) as image:
        if page:
            image.seek(page)
        return of_pillow(image)


def of_pillow(image: Image.Image) -> Picture:
    """A PIL image of any mode, turned as its EXIF orientation says.

    Modes "I" and "I;16" hold 0..65535, mode "F" 0..1, all others 8 bits.
    """
    check_size(*image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Picture(_whole_numbers(np.asarray(image))[:, :, None], limits=(0.0, 65535.0))
    if image.mode == "F":
        return Picture(np.asarray(image)[:, :, None], limits=(0.0, 1.0))
    if image.mode in _ON_THE_WAY:
        image = image.convert(_ON_THE_WAY[image.mode])
    grey = image.mode in ("1", "L", "LA")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if grey else "RGBA")
        alpha = np.asarray(image)[:, :, -1]
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    pixels = pixels[:, :, None] if grey else pixels
    return Picture(pixels, not grey, alpha, type_limits(pixels.dtype))


def _opened(file: BinaryIO) -> Image.Image:
    limit = env.max_pixels(MAX_PIXELS)
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # the user asked for it: Pillow's refusal must not come first
    try:
        return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {limit} pixels; raise MUNIT_FAST_MAX_PIXELS to read it") from error
    except UnidentifiedImageError as error:
        from munit_fast.data.readers import IMAGE_EXTENSIONS

        raise ImageError(f"not an image of a known kind; use {' '.join(IMAGE_EXTENSIONS)}") from error


def _whole_numbers(values: Array) -> Array:
    """Pillow's integer modes as uint16: 16-bit files come as uint16 or, in some versions, as int32."""
    if values.dtype.kind != "u" and (values.min() < 0 or values.max() > 65535):
        raise ImageError('whole numbers outside 0..65535; save it with 8 or 16 bits, or use image.convert("RGB")')
    return values.astype(np.uint16)
