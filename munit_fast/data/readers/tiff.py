"""TIFF and BigTIFF through tifffile: any depth, layout and number of channels.

Pages are images, but for smaller copies of others (pyramids, thumbnails) and for masks, which make the page before them
transparent. `tiff_samples` says what the numbers of a page mean.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np
from tifffile import TiffFile, TiffPage

from munit_fast.data.picture import Array, ImageError, Picture
from munit_fast.data.readers.tiff_limits import check_directories, check_jpegs, check_sizes
from munit_fast.data.readers.tiff_samples import check_samples, to_picture
from munit_fast.data.readers.upright import ORIENTATION, upright

# Of damaged files it logs lines by the dozen; what matters becomes an ImageError.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType


class _Image(NamedTuple):
    """One image of a file."""

    page: TiffPage
    mask: TiffPage | None = None
    plane: int = 0  # of several behind the only page that describes them


def pages(file: BinaryIO) -> int:
    """How many images the file holds."""
    check_directories(file)
    with TiffFile(file) as tif:
        return sum(1 for _ in _images(tif))


def read(file: BinaryIO, page: int) -> Picture:
    """Image number `page` of a file."""
    check_directories(file)
    with TiffFile(file) as tif:
        image = next(islice(_images(tif), page, None), None)
        if image is None:
            raise ImageError(f"there is no page {page}")
        picture = to_picture(_samples(image.page, image.plane), image.page)
        if image.mask is not None:
            picture = _masked(picture, _samples(image.mask, 0)[:, :, 0])
        return upright(picture, image.page.tags.valueof(ORIENTATION))


def _images(tif: TiffFile) -> Iterator[_Image]:
    planes = _planes(tif)
    if planes > 1:
        yield from (_Image(tif.pages.first, plane=plane) for plane in range(planes))
        return
    last: _Image | None = None
    for page in tif.pages:
        assert isinstance(page, TiffPage)  # frames are made on demand
        if page.subfiletype & _REDUCED:
            continue
        if not page.subfiletype & _MASK:
            if last is not None:
                yield last
            last = _Image(page)
        elif last is not None:
            last = last._replace(mask=page)
    if last is None:
        raise ImageError("holds no page of full size")
    yield last


def _planes(tif: TiffFile) -> int:
    """How many images stand one behind the other where the file describes the first alone (large ImageJ stacks)."""
    described = (tif.is_imagej or tif.is_shaped or tif.is_stk) and not tif.is_ome  # OME's series may lie in other files
    if not described or len(tif.pages) > 1:
        return 1
    series, page = tif.series[0], tif.pages.first
    planes = math.prod(series.shape) // math.prod(page.shape) if series.is_truncated else 1
    said = int((tif.imagej_metadata or {}).get("images", 1))
    missing = planes > 1 and planes * page.nbytes > tif.filehandle.size
    if missing or (planes == 1 and said > page.shaped[0] * page.shaped[4]):
        raise ImageError(f"the file is truncated: it is too short for {max(planes, said)} images")
    return planes


def _samples(page: TiffPage, plane: int) -> Array:
    """[H, W, C] as the page has them."""
    check_samples(page)
    check_sizes(page)
    if plane:
        place = page.dataoffsets[0] + plane * page.nbytes
        data = page.parent.filehandle.read_array(
            np.dtype(page.dtype).newbyteorder(page.parent.byteorder), math.prod(page.shaped), place
        )
        filled = data.astype(page.dtype).reshape(page.shaped)
    else:
        filled = _joined(page)
    separate, _, height, width, contiguous = page.shaped
    return filled[:, 0].transpose(1, 2, 0, 3).reshape(height, width, separate * contiguous)


def _joined(page: TiffPage) -> Array:
    """Strips or tiles as one array of the page's shape; tifffile would leave what is missing as it finds it."""
    end = page.parent.filehandle.size
    if any(start + count > end for start, count in zip(page.dataoffsets, page.databytecounts)):
        raise ImageError("the file is truncated")
    check_jpegs(page)
    whole = np.zeros(page.shaped, page.dtype)
    done = 0
    for data, (channel, depth, top, left, _), shape in page.segments(maxworkers=1):
        if data is None:
            raise ImageError("a part of the image has no data")
        place = whole[channel, depth : depth + shape[0], top : top + shape[1], left : left + shape[2]]
        data = data[: place.shape[0], : place.shape[1], : place.shape[2]]
        if data.shape != place.shape or (data.dtype != whole.dtype and whole.dtype != bool):  # CCITT gives uint8
            raise ImageError("a part of the image is damaged")
        place[...] = data
        done += data.size
    if done != whole.size:
        raise ImageError("a part of the image is missing")
    return whole


def _masked(picture: Picture, mask: Array) -> Picture:
    """The picture, transparent where its mask is zero."""
    if picture.alpha is not None or mask.shape != picture.pixels.shape[:2]:
        raise ImageError("a transparency mask of another size, or beside an alpha channel")
    opaque = np.array(picture.alpha_limit, picture.pixels.dtype)
    return replace(picture, alpha=np.where(mask != 0, opaque, np.zeros_like(opaque)))
