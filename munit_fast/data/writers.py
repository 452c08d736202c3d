"""Results in files, in the values of their domain: `FORMATS` says which function writes which format.

PNG, TIFF and NumPy files hold the domain's own values, as deep as the input was. The others hold 8 bits, black to
white, whatever the range of the domain: they are to look at. A new format is a function and a line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from munit_fast.data.images import SAVED_FORMATS, encode_bytes
from munit_fast.data.picture import Array, ImageError, one_line
from munit_fast.data.values import PixelFormat

_INTEGERS = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16", "int32"))  # the smallest that fits is taken

_PNG_LEVEL = 2  # of zlib: 6, the usual one, takes several times as long for slightly smaller files


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        encode: From the values [H, W, C] and the format's name to the bytes of a file.
        channels: That it can hold; None: any number.
        floats: Whether it holds floating point and signed numbers too.
        exact: Whether it holds the values of the domain; else 8 bits, black to white.
    """

    encode: Callable[[Array, str], bytes]
    channels: tuple[int, ...] | None = (1, 3)
    floats: bool = False
    exact: bool = False


def _pillow(pixels: Array, name: str) -> bytes:
    return encode_bytes(pixels, SAVED_FORMATS[f".{name}"])


def _png(pixels: Array, name: str) -> bytes:
    from imagecodecs import png_encode

    return bytes(png_encode(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, level=_PNG_LEVEL))


def _tiff(pixels: Array, name: str) -> bytes:
    import tifffile

    buffer = BytesIO()
    colour = pixels.shape[2] == 3
    tifffile.imwrite(
        buffer,
        pixels if pixels.shape[2] > 1 else pixels[:, :, 0],
        photometric="rgb" if colour else "minisblack",
        planarconfig="contig" if pixels.shape[2] > 1 else None,
        compression="zlib",
        metadata=None,
    )
    return buffer.getvalue()


def _numpy(pixels: Array, name: str) -> bytes:
    buffer = BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


FORMATS: dict[str, Format] = {
    "png": Format(_png, (1, 3, 4), exact=True),
    "tif": Format(_tiff, None, floats=True, exact=True),
    "tiff": Format(_tiff, None, floats=True, exact=True),
    "npy": Format(_numpy, None, floats=True, exact=True),
    **{name: Format(_pillow) for name in ("jpg", "jpeg", "bmp", "ppm", "webp")},
}


def check_format(name: str, pixel_format: PixelFormat) -> None:
    """Raise ValueError where a format cannot hold the images of a domain.

    Args:
        name: A key of `FORMATS`, or not.
        pixel_format: The channels and the range of the domain.
    """
    if name not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, or nii, nii.gz, dcm for volumes; got {name!r}")
    kind = FORMATS[name]
    if kind.channels is not None and pixel_format.channels not in kind.channels:
        raise ValueError(
            f"--format {name} cannot hold the {pixel_format.channels} channels of {pixel_format.key('input_dim')}; "
            "use --format tif or npy"
        )
    limits = pixel_format.limits
    if kind.exact and not kind.floats and limits is not None and not _fits(limits, np.dtype(np.uint16)):
        raise ValueError(
            f"--format {name} holds whole numbers of 0..65535, and {pixel_format.key('range')} is "
            f"{limits[0]:g}..{limits[1]:g}; use --format tif or npy"
        )


def result_dtype(name: str, pixel_format: PixelFormat, source: npt.DTypeLike) -> np.dtype[np.generic]:
    """The type of the values that a format holds of a result.

    Without a stated range: as many bits as the file that was translated, floating point as 32 bits, or 16 where the
    format has whole numbers only. With one: the smallest type of whole numbers that holds it, if its limits and the
    values of the file are whole numbers or the format has no others; else 32 bits of floating point.

    Args:
        name: A key of `FORMATS`.
        pixel_format: Of the domain of the result; `check_format` has passed it.
        source: The type of the values of the file that was translated.
    """
    kind, source = FORMATS[name], np.dtype(source)
    if not kind.exact:
        return np.dtype(np.uint8)
    whole = source.kind in "iu" or not kind.floats
    if pixel_format.limits is None:
        return np.dtype(np.uint8 if source.itemsize == 1 else np.uint16) if whole else np.dtype(np.float32)
    fitting = [dtype for dtype in _INTEGERS if _fits(pixel_format.limits, dtype)]
    return fitting[0] if whole and fitting else np.dtype(np.float32)


def encode_image(tensor: Tensor, name: str, pixel_format: PixelFormat, source: npt.DTypeLike, *, file: str) -> bytes:
    """The bytes of a file that holds an image in the values of its domain.

    Args:
        tensor: [C, H, W] in -1..1, any floating-point dtype and device.
        name: The format, a key of `FORMATS`.
        pixel_format: The range of the domain.
        source: The type of the values of the file that the image was made from: see `result_dtype`.
        file: What messages call it.

    Raises:
        ImageError: Values that are not finite, or a size that the format cannot hold.
    """
    dtype = result_dtype(name, pixel_format, source)
    if not FORMATS[name].exact:
        pixel_format = PixelFormat(pixel_format.channels)
    try:
        pixels = np.ascontiguousarray(pixel_format.values(tensor, dtype))
    except ImageError as error:
        raise ImageError(f"{file}: {error}") from None
    try:
        return FORMATS[name].encode(pixels, name)
    except (OSError, ValueError) as error:  # WebP and JPEG have largest sides
        size = f"{pixels.shape[1]}×{pixels.shape[0]}"
        raise ImageError(f"{file}: {size} pixels cannot be saved as {name} ({one_line(error)}); use png") from None


def _fits(limits: tuple[float, float], dtype: np.dtype[Any]) -> bool:
    bounds = np.iinfo(dtype)
    return all(float(limit).is_integer() and bounds.min <= limit <= bounds.max for limit in limits)
