"""What a TIFF page may ask for, checked before anything of it is decoded."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image
from tifffile import TiffPage

from munit_fast.data.picture import ImageError, check_size, pixel_limit, refuse_size
from munit_fast.data.readers.tiff_samples import JPEG

_BYTES_PER_PIXEL = 32  # on average: four channels of 64 bits
_SINGLE = {256, 257, 277, 278, 284, 32997}  # width, length, samples, rows of a strip, planes, depth
_MOST_TAGS = 4096  # of a page; tifffile refuses more
_JPEG_BLOCK = 64  # that some writers fill up
# Of the others, decoders trust sizes inside the data.
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}


def check_directories(file: BinaryIO) -> None:
    """Raise ImageError where a size is several numbers: tifffile would repeat them once a row, 2^32 times if told so.

    Leaves the file at its beginning.
    """
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
    number, entry, link = (order + form for form in (("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")))
    place = head[8:16] if big else head[4:8]
    seen: set[int] = set()
    while len(place) == struct.calcsize(link) and (at := struct.unpack(link, place)[0]) and at not in seen:
        seen.add(at)
        file.seek(min(at, 2**62))
        start = file.read(struct.calcsize(number)).ljust(struct.calcsize(number), b"\0")
        count = min(struct.unpack(number, start)[0], _MOST_TAGS)
        size = struct.calcsize(entry)
        entries = file.read(count * size)
        for tag, _, values, _ in struct.iter_unpack(entry, entries[: len(entries) - len(entries) % size]):
            if tag in _SINGLE and values != 1:
                raise ImageError("the file is damaged: it has several sizes")
        place = file.read(struct.calcsize(link))
    file.seek(0)


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
