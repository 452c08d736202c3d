"""PNG of 1 to 16 bits through imagecodecs; animated ones through Pillow, which knows how frames are joined."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

import imagecodecs
from PIL import Image

from munit_fast.data.picture import ImageError, Picture, check_size, type_limits
from munit_fast.data.readers import pillow
from munit_fast.data.readers.upright import upright

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# An orientation may stand in any of these; Pillow finds it, but has to decode the image for it.
_ORIENTED = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")


def pages(file: BinaryIO) -> int:
    """How many images the file holds."""
    return pillow.pages(file) if _is_animated(file) else 1


def read(file: BinaryIO, page: int) -> Picture:
    """Image number `page` of a file."""
    kind, body = next(_chunks(file), (b"", b""))
    if kind != b"IHDR" or len(body) < 13:
        raise ImageError("not an image: it has no PNG header")
    width, height, depth = struct.unpack(">IIB", body[:9])
    check_size(width, height)
    if _is_animated(file):
        if depth == 16:
            raise ImageError("an animated PNG of 16 bits; save its frames as files")
        return pillow.read(file, page)
    if page:
        raise ImageError(f"there is no page {page}")
    data = file.read()
    pixels = imagecodecs.png_decode(data)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    count = pixels.shape[2] - (pixels.shape[2] in (2, 4))  # transparency of any kind is the last channel
    alpha = pixels[:, :, count] if pixels.shape[2] > count else None
    picture = Picture(pixels[:, :, :count], count == 3, alpha, type_limits(pixels.dtype))
    if not any(mark in data for mark in _ORIENTED):
        return picture
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return upright(picture, pillow.orientation_of(image))


def _is_animated(file: BinaryIO) -> bool:
    """Whether there is a chunk acTL before the pixels."""
    return any(kind == b"acTL" for kind, _ in _chunks(file))


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Name and first bytes of each chunk before the pixels; leaves the file at its beginning."""
    place = len(_SIGNATURE)
    try:
        while True:
            file.seek(place)
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IDAT":
                return
            yield head[4:], file.read(16)
            place += 12 + int.from_bytes(head[:4], "big")
    finally:
        file.seek(0)
