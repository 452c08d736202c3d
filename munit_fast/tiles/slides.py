"""Large images, read by regions with bounded memory: tiled and stripped TIFF files, pyramids among them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tifffile

from munit_fast.data import ImageError, decode_image
from munit_fast.utils.text import first_line

Array = npt.NDArray[Any]
CACHE_BYTES = 2**28  # of decoded strips and tiles
MAX_SEGMENT_BYTES = 2**30  # of one compressed strip or tile, which is decoded as a whole
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY = ("MINISBLACK", "MINISWHITE")


class Slide(Protocol):
    """An image that is read by regions.

    Attributes:
        height: Rows.
        width: Columns.
        channels: As asked for.
        dtype: uint8, uint16 or float32, as `to_model_range` takes them.
        tags: Resolution and colour profile for the file that is written, as tifffile's `write` takes them.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    tags: dict[str, Any]

    def read(self, top: int, bottom: int, left: int, right: int) -> Array:
        """The pixels [bottom - top, right - left, channels] of a region inside the image."""


class WholeImage:
    """A slide that is in memory: any image that `decode_image` reads."""

    def __init__(self, path: Path, channels: int, background: int | None) -> None:
        self.pixels = decode_image(path, channels, matte=background)
        self.height, self.width, self.channels = self.pixels.shape
        self.dtype, self.tags = self.pixels.dtype, dict[str, Any]()

    def read(self, top: int, bottom: int, left: int, right: int) -> Array:
        """A region."""
        return self.pixels[top:bottom, left:right]


class TiffSlide:
    """One level of a TIFF file.

    Args:
        path: The file.
        tiff: Opened.
        level: Of its pyramid; 0 is the largest.
        channels: Wanted.
        background: Grey level 0..255 under transparent areas; None keeps the colour there.
    """

    def __init__(self, path: Path, tiff: tifffile.TiffFile, level: int, channels: int, background: int | None) -> None:
        levels = tiff.series[0].levels
        if not 0 <= level < len(levels):
            sizes = ", ".join(f"{i}: {'x'.join(map(str, one.shape))}" for i, one in enumerate(levels))
            raise ImageError(f"{path}: has no level {level}; its levels are {sizes}")
        series = levels[level]
        self.path, self.channels, self.background = path, channels, background
        self.pages = [page for page in series.pages if page is not None]
        self.page: tifffile.TiffPage = series.keyframe
        self._check(series.axes, channels)
        self.height, self.width = self.page.imagelength, self.page.imagewidth
        self.dtype = np.dtype(np.float32) if self.page.dtype.kind == "f" else self.page.dtype.newbyteorder("=")
        self.tags = _tags(levels[0].keyframe, levels[0].keyframe.imagewidth / self.width)
        self._cache: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._cached = 0
        self._handle = tiff.filehandle

    def read(self, top: int, bottom: int, left: int, right: int) -> Array:
        """A region, in the channels that were asked for."""
        try:
            parts = [self._region(i, top, bottom, left, right) for i in range(len(self.pages))]
        except MemoryError as error:
            raise ImageError(f"{self.path}: not enough memory to decode it") from error
        except ImageError:
            raise
        except Exception as error:  # decoders raise anything on damaged files
            raise ImageError(f"{self.path}: not a readable image ({first_line(error)})") from error
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        if self.page.photometric.name == "MINISWHITE":
            pixels = np.iinfo(pixels.dtype).max - pixels
        if pixels.dtype.kind == "f":
            pixels = pixels.astype(np.float32)
            if not (pixels.min() >= 0 and pixels.max() <= 1):
                raise ImageError(f"{self.path}: floating-point values must be finite, in 0..1")
        return self._converted(pixels)

    def _check(self, axes: str, channels: int) -> None:
        page, path = self.page, self.path
        names = {"YX", "YXS", "SYX"} if len(self.pages) == 1 else {"CYX"}
        if axes not in names:
            raise ImageError(
                f"{path}: holds axes {axes} of {'x'.join(map(str, page.shape))}, not one image; "
                "write the image that is wanted to a file of its own"
            )
        if page.photometric.name not in (*_GREY, "RGB", "YCBCR") or page.dtype is None:
            raise ImageError(f"{path}: colours are stored as {page.photometric.name}; convert it to RGB or grey")
        if page.photometric.name == "YCBCR" and page.compression.name not in ("JPEG", "OJPEG", "JPEG_ALT"):
            raise ImageError(f"{path}: colours are stored as YCbCr without JPEG; convert it to RGB")
        if not (page.dtype.kind == "f" or page.dtype.newbyteorder("=") in (np.uint8, np.uint16)) or (
            page.dtype.kind == "u" and page.bitspersample not in (8, 16)
        ):
            raise ImageError(f"{path}: values of type {page.dtype}; use uint8, uint16 or floating point in 0..1")
        tag = page.tags.get("Orientation")
        if tag is not None and tag.value not in (0, 1):
            raise ImageError(f"{path}: is stored rotated (orientation {tag.value}); write it upright")
        self.alpha = any(extra in (1, 2) for extra in page.extrasamples)
        found = page.samplesperpixel * len(self.pages) - self.alpha
        if found != channels and not (channels == 3 and found == 1) and not (channels == 1 and found == 3):
            raise ImageError(f"{path}: has {found} channels where {channels} are wanted; set input_dim: {found}")
        _, depth, height, width, samples = page.shaped if not page.is_tiled else (1, 1, *page.tile, page.shaped[4])
        height = min(page.rowsperstrip, height) if not page.is_tiled else height
        size = height * width * samples * page.dtype.itemsize
        if size > MAX_SEGMENT_BYTES and not page.is_memmappable:
            raise ImageError(
                f"{path}: is compressed in pieces of {size / 2**30:.1f} GiB, which memory is not to hold; "
                "write it in tiles"
            )

    def _region(self, index: int, top: int, bottom: int, left: int, right: int) -> Array:
        """[h, w, samples] of one page."""
        page, key = self.pages[index], self.page
        if key.is_memmappable and not key.is_tiled:
            planes, _, height, width, samples = key.shaped
            mapped = np.memmap(
                self.path, key.dtype.newbyteorder(page.parent.byteorder), "r", page.dataoffsets[0],
                (planes, height, width, samples),
            )  # fmt: skip
            values = np.array(mapped[:, top:bottom, left:right], key.dtype.newbyteorder("="))
            return np.concatenate(list(values), axis=2)
        out: Array | None = None
        for number in self._segments(top, bottom, left, right):
            (plane, _, y, x, _), segment = self._segment(index, number)
            _, height, width, samples = segment.shape
            if out is None:
                shape = (bottom - top, right - left, key.shaped[0] * samples)
                out = np.zeros(shape, segment.dtype)
            rows, columns = slice(max(top, y), min(bottom, y + height)), slice(max(left, x), min(right, x + width))
            if rows.start < rows.stop and columns.start < columns.stop:
                out[
                    rows.start - top : rows.stop - top,
                    columns.start - left : columns.stop - left,
                    plane * samples : (plane + 1) * samples,
                ] = segment[0, rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        assert out is not None
        return out

    def _segments(self, top: int, bottom: int, left: int, right: int) -> Iterator[int]:
        """The numbers of the strips or tiles of all sample planes that a region touches."""
        key = self.page
        planes, _, height, width, _ = key.shaped
        tall, wide = key.tile if key.is_tiled else (min(key.rowsperstrip, height), width)
        across, down = -(-width // wide), -(-height // tall)
        for plane in range(planes):
            for row in range(top // tall, -(-bottom // tall)):
                for column in range(left // wide, -(-right // wide)):
                    yield (plane * down + row) * across + column

    def _segment(self, index: int, number: int) -> tuple[tuple[int, ...], Array]:
        """Place and pixels [1, h, w, samples] of a strip or tile."""
        page, key = self.pages[index], self.page
        found = self._cache.pop((index, number), None)
        options = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in _JPEG else {}
        if found is None:
            offset, count = page.dataoffsets[number], page.databytecounts[number]
            data = None
            if count:
                self._handle.seek(offset)
                data = self._handle.read(count)
            found, place, shape = key.decode(data, number, **options)
            if found is None:  # nothing is stored of an empty one
                found = np.full(shape, key.nodata, key.dtype.newbyteorder("="))
            self._cached += found.nbytes
        else:
            _, place, _ = key.decode(None, number, **options)
        self._cache[index, number] = found
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return place, found

    def _converted(self, pixels: Array) -> Array:
        """Transparency over the background; grey repeated, or colour to its luma."""
        if self.alpha:
            white = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
            pixels, alpha = pixels[:, :, :-1], pixels[:, :, -1:].astype(np.float64) / white
            if self.background is not None:
                laid = pixels * alpha + (1 - alpha) * white * self.background / 255
                pixels = (laid.round() if pixels.dtype.kind == "u" else laid).astype(pixels.dtype)
        if pixels.shape[2] == self.channels:
            return pixels
        if self.channels == 3:
            return np.repeat(pixels, 3, axis=2)
        luma = pixels @ (np.array((19595, 38470, 7471)) / 65536)  # ITU-R 601, as Pillow's "L"
        return (luma.round() if pixels.dtype.kind == "u" else luma).astype(pixels.dtype)[:, :, None]


_JPEG = (6, 7, 34892, 33007)


@contextmanager
def open_slide(path: Path, level: int, channels: int, background: int | None) -> Iterator[Slide]:
    """Open an image for reading by regions.

    A TIFF file is read strip by strip or tile by tile; every other image is decoded as a whole.

    Args:
        path: The file.
        level: Of a pyramid; 0 is the largest.
        channels: Wanted: as many as the file has, or 3 of a grey one, or 1 of a colour one.
        background: Grey level 0..255 under transparent areas; None keeps the colour there.

    Raises:
        ImageError: It cannot be read, or is not one image; a MemoryError becomes one too.
    """
    try:
        with path.open("rb") as file:
            is_tiff = file.read(4) in _TIFF_STARTS
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: {first_line(error)}") from None
    if not is_tiff:
        if level:
            raise ImageError(f"{path}: has no level {level}; only TIFF files have several")
        yield WholeImage(path, channels, background)
        return
    try:
        tiff = tifffile.TiffFile(path)
    except Exception as error:
        raise ImageError(f"{path}: not a readable image ({first_line(error)})") from error
    with tiff:
        try:
            slide = TiffSlide(path, tiff, level, channels, background)
        except ImageError:
            raise
        except Exception as error:  # a damaged directory
            raise ImageError(f"{path}: not a readable image ({first_line(error)})") from error
        yield slide


def _tags(page: tifffile.TiffPage, shrunk: float) -> dict[str, Any]:
    """Resolution and colour profile."""
    tags: dict[str, Any] = {}
    names = [page.tags.get(name) for name in ("XResolution", "YResolution", "ResolutionUnit")]
    if all(tag is not None for tag in names):
        (x, y), unit = ((tag.value[0] / (tag.value[1] or 1) / shrunk for tag in names[:2]), int(names[2].value))
        if x > 0 and y > 0:
            tags |= {"resolution": (x, y), "resolutionunit": unit}
    profile = page.tags.get("InterColorProfile")
    if profile is not None and isinstance(profile.value, bytes):
        tags["iccprofile"] = profile.value
    return tags
