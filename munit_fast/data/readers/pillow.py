"""JPEG, WebP, GIF, BMP and animated PNG through Pillow, and PIL images.

Frames of animations are whole images, joined with those before them. The further images of a JPEG file are none of its
own: they are previews and maps of depth and brightness.
"""

from __future__ import annotations

from contextlib import suppress
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from munit_fast.data.picture import ImageError, Picture, check_size, pixel_limit, refuse_size, type_limits
from munit_fast.data.readers.upright import ORIENTATION, upright

# Pillow decides by content, not by name; some of its other formats start outside programs.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "GIF")
_ON_THE_WAY = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}  # what has to become another mode first


def pages(file: BinaryIO) -> int:
    """How many images the file holds."""
    with _opened(file) as image:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def read(file: BinaryIO, page: int) -> Picture:
    """Image number `page` of a file."""
    with _opened(file) as image:
        if page:
            image.seek(page)
        return of_pillow(image)


def of_pillow(image: Image.Image) -> Picture:
    """A PIL image of any mode, turned as its EXIF orientation says.

    Modes "I" and "I;16" hold 0..65535 (other whole numbers, mode "I", have no range of their own), mode "F" 0..1, all
    others 8 bits.
    """
    check_size(*image.size)
    transparent = _transparent_level(image)
    image.load()  # a TIFF is turned here
    return upright(_picture(image, transparent), orientation_of(image))


def orientation_of(image: Image.Image) -> object:
    """The EXIF orientation; None where there is none or it is damaged: viewers then show the image as it is."""
    with suppress(Exception):
        return image.getexif().get(ORIENTATION)
    return None


def _picture(image: Image.Image, transparent: int | None) -> Picture:
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.dtype.kind != "u" and (pixels.min() < 0 or pixels.max() > 65535):
            return Picture(pixels[:, :, None])  # 32 bits, which have no black and white of their own
        pixels = pixels.astype(np.uint16)  # 16-bit files come as uint16 or, in some versions, as int32
        alpha = None if transparent is None else np.where(pixels == transparent, 0, 65535).astype(np.uint16)
        return Picture(pixels[:, :, None], alpha=alpha, limits=(0.0, 65535.0))
    if image.mode == "F":
        return Picture(np.asarray(image)[:, :, None], limits=(0.0, 1.0))
    if image.mode in _ON_THE_WAY:
        image = image.convert(_ON_THE_WAY[image.mode])
    grey = image.mode in ("1", "L", "LA")
    alpha = None
    if image.mode == "L" and transparent is not None:
        alpha = np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
    elif image.has_transparency_data:
        image = image.convert("LA" if grey else "RGBA")
        alpha = np.asarray(image)[:, :, -1]
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    pixels = pixels[:, :, None] if grey else pixels
    return Picture(pixels, not grey, alpha, type_limits(pixels.dtype))


def _transparent_level(image: Image.Image) -> int | None:
    """The grey that is transparent, as the pixels will have it; Pillow keeps that of PNGs of 2 and 4 bits unscaled."""
    level = image.info.get("transparency")
    if not isinstance(level, int) or image.mode[0] not in "LI" or image.mode == "LA":
        return None
    tiles = getattr(image, "tile", [])
    packed = str(tiles[0][3]) if image.format == "PNG" and tiles else ""
    return level * {"L;2": 85, "L;4": 17}.get(packed, 1)


def _opened(file: BinaryIO) -> Image.Image:
    limit = pixel_limit()
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # the user asked for it: Pillow's refusal must not come first
    try:
        return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError:
        refuse_size(f"more than {limit} pixels")
    except UnidentifiedImageError as error:
        from munit_fast.data.readers import IMAGE_EXTENSIONS

        raise ImageError(f"not an image of a known kind; use {' '.join(IMAGE_EXTENSIONS)}") from error
