"""Large images, read by regions with bounded memory: tiled and stripped TIFF files, pyramids among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tifffile

from munit_fast.data import ImageError, PixelFormat, decode_image
from munit_fast.data.picture import Picture, type_limits
from munit_fast.data.readers import count_pages, kind_of, naming
from munit_fast.tiles.tiff_regions import JPEG, Regions
from munit_fast.utils.text import first_line

Array = npt.NDArray[Any]
MAX_PIECE_BYTES = 2**30  # of one compressed strip or tile, which is decoded as a whole
MAX_SIDE = 2**20
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY = ("MINISBLACK", "MINISWHITE")
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_SCANNERS = ("svs", "ndpi", "scn", "bif", "philips", "qpi", "avs")  # tifffile's names; their other series are overviews
_OVERVIEWS = ("label", "macro", "map", "overview", "thumbnail")


class Slide(Protocol):
    """An image that is read by regions.

    Attributes:
        height: Rows.
        width: Columns.
        channels: As asked for.
        dtype: Of the file's values.
        tags: Resolution and colour profile for the file that is written, as tifffile's `write` takes them.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    tags: dict[str, Any]

    def read(self, top: int, bottom: int, left: int, right: int) -> Array:
        """The pixels of a region inside the image, as `PixelFormat.apply` has them."""


class WholeImage:
    """A slide that is in memory: any image that `decode_image` reads."""

    def __init__(self, path: Path, pixel_format: PixelFormat) -> None:
        with path.open("rb") as file:
            images = count_pages(str(path), file) if kind_of(path.name, file.peek()).many else 1
        if images > 1:
            raise _several(path, images)
        self.pixels = decode_image(path, pixel_format)
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
        pixel_format: Of the values that are wanted.
    """

    def __init__(self, path: Path, tiff: tifffile.TiffFile, level: int, pixel_format: PixelFormat) -> None:
        images = _images(path, tiff)
        if images > 1:
            raise _several(path, images)
        levels = tiff.series[0].levels
        if not 0 <= level < len(levels):
            sizes = ", ".join(f"{i}: {'x'.join(map(str, one.shape))}" for i, one in enumerate(levels))
            raise ImageError(f"{path}: has no level {level}; its levels are {sizes}")
        series: Any = levels[level]
        self.path, self.channels, self.format = path, pixel_format.channels, pixel_format
        pages = [page for page in series.pages if page is not None]
        self.page: Any = series.keyframe
        self.photometric = tifffile.PHOTOMETRIC(self.page.photometric).name
        self._regions = Regions(path, tiff, pages, self.page)
        self._check(series.axes, len(pages))
        self.height, self.width = self.page.imagelength, self.page.imagewidth
        self.dtype = self.page.dtype.newbyteorder("=")
        self.tags = _tags(levels[0].keyframe, levels[0].keyframe.imagewidth / self.width)

    def read(self, top: int, bottom: int, left: int, right: int) -> Array:
        """A region, in the channels that were asked for."""
        try:
            pixels = self._regions.read(top, bottom, left, right)
        except MemoryError as error:
            raise ImageError(f"{self.path}: not enough memory to decode it") from error
        except ImageError:
            raise
        except Exception as error:  # decoders raise anything on damaged files
            raise ImageError(f"{self.path}: not a readable image ({first_line(error)})") from error
        pixels = pixels.astype(self.dtype, copy=False)
        with naming(str(self.path)):
            return self.format.apply(self._picture(pixels))

    def _check(self, axes: str, pages: int) -> None:
        page, path = self.page, self.path
        names = {"YX", "YXS", "SYX"} if pages == 1 else {"CYX"}
        if axes not in names:
            raise ImageError(
                f"{path}: holds axes {axes} of pages of {'x'.join(map(str, page.shape))}, not one image; leave out "
                "--tile, or write the image that is wanted to a file of its own"
            )
        if not (0 < page.imagelength <= MAX_SIDE and 0 < page.imagewidth <= MAX_SIDE):
            raise ImageError(f"{path}: {page.imagewidth}x{page.imagelength}; sides must be 1 to {MAX_SIDE} pixels")
        if self.photometric not in (*_GREY, "RGB", "YCBCR") or page.dtype is None:
            raise ImageError(f"{path}: colours are stored as {self.photometric}; convert it to RGB or grey")
        if self.photometric == "YCBCR" and page.compression not in JPEG:
            raise ImageError(f"{path}: colours are stored as YCbCr without JPEG; convert it to RGB")
        if page.dtype.kind not in "iuf" or page.bitspersample != page.dtype.itemsize * 8:
            raise ImageError(f"{path}: values of {page.bitspersample} bits; write it with 8, 16 or 32 bits")
        if self.photometric == "MINISWHITE" and page.dtype.kind != "u":
            raise ImageError(f"{path}: white is 0 and values are {page.dtype}; write it with black as 0")
        tag = page.tags.get("Orientation")
        if tag is not None and tag.value not in (0, 1):
            raise ImageError(f"{path}: is stored rotated (orientation {tag.value}); write it upright")
        extra = [int(kind) for kind in page.extrasamples]
        self.alpha = {1: "premultiplied", 2: "straight"}.get(extra[-1], "") if extra else ""
        if self._regions.piece > MAX_PIECE_BYTES:
            raise ImageError(
                f"{path}: has compressed pieces of {self._regions.piece / 2**30:.1f} GiB, of which 1 GiB is decoded at "
                "once; write it in tiles"
            )

    def _picture(self, pixels: Array) -> Picture:
        """Samples of the file as a picture: black is the least value, colours are not multiplied by their alpha."""
        colour, alpha = self.photometric not in _GREY, None
        if self.photometric == "MINISWHITE":
            pixels = np.concatenate([_white(pixels) - pixels[:, :, :1], pixels[:, :, 1:]], axis=2)
        if self.alpha:
            pixels, alpha = pixels[:, :, :-1], pixels[:, :, -1]
        if self.alpha == "premultiplied" and alpha is not None:
            share = alpha[:, :, None].astype(np.float64) / _white(pixels)
            straight = np.divide(pixels, share, out=np.zeros(pixels.shape), where=share > 0).clip(0, _white(pixels))
            pixels = (straight.round() if pixels.dtype.kind == "u" else straight).astype(pixels.dtype)
        return Picture(pixels, colour and pixels.shape[2] == 3, alpha, type_limits(pixels.dtype))


@contextmanager
def open_slide(path: Path, level: int, pixel_format: PixelFormat) -> Iterator[Slide]:
    """Open an image for reading by regions.

    A TIFF file is read strip by strip or tile by tile; every other image is decoded as a whole.

    Args:
        path: The file.
        level: Of a pyramid; 0 is the largest.
        pixel_format: Of the values that are wanted.

    Raises:
        ImageError: It cannot be read, or holds several images; a MemoryError becomes one too.
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
        yield WholeImage(path, pixel_format)
        return
    try:
        tiff = tifffile.TiffFile(path)
    except Exception as error:  # a damaged header
        raise ImageError(f"{path}: not a readable image ({first_line(error)})") from error
    with tiff:
        try:
            slide = TiffSlide(path, tiff, level, pixel_format)
            slide.read(0, 1, 0, 1)  # what does not fit the format shows at once
        except ImageError:
            raise
        except Exception as error:  # a damaged directory
            raise ImageError(f"{path}: not a readable image ({first_line(error)})") from error
        yield slide


def _images(path: Path, tiff: tifffile.TiffFile) -> int:
    """How many images a TIFF file holds: a pyramid is one, and what scanners add to it, such as a label, is none."""
    if tiff.series[0].kind in _SCANNERS:
        return 1
    if any(series.keyframe.subfiletype & _MASK for series in tiff.series):
        raise ImageError(f"{path}: has a transparency mask; leave out --tile, or write it with an alpha channel")
    others = [
        series
        for series in tiff.series[1:]
        if not series.keyframe.subfiletype & _REDUCED and not any(name in series.name.lower() for name in _OVERVIEWS)
    ]
    return 1 + len(others)


def _several(path: Path, images: int) -> ImageError:
    return ImageError(
        f"{path}: holds {images} images (pages, frames or slices), and --tile translates one image a file; leave out "
        "--tile, or write the image that is wanted to a file of its own"
    )


def _white(pixels: Array) -> Any:
    """The largest value of the type."""
    return pixels.dtype.type(1) if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max


def _tags(page: Any, shrunk: float) -> dict[str, Any]:
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
