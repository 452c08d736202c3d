"""Image files in and out: decode, resize, convert to the networks' range and back.

Arrays are [H, W, C] and keep the precision of the file: uint8 in 0..255, uint16 in 0..65535, float32 in 0..1.
Tensors are [C, H, W] float32 in -1..1. Every failure is an :class:`ImageError` with the file's name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.utils import env

Array = npt.NDArray[Any]

MAX_PIXELS = 2**27  # MUNIT_FAST_MAX_PIXELS overrides it
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp", ".npy")

# Pillow decides by content, not by name; some of its other formats start outside programs.
_DECODED_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
SAVED_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_ON_THE_WAY = {"La": "LA", "LAB": "RGB"}  # from which Pillow converts to no other mode, or not to "L"
_WHITE_POINT = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}
_LUMA = (19595, 38470, 7471)  # ITU-R 601 in 1/65536, as Pillow's "L" has them


class ImageError(ValueError):
    """An image cannot be used. The message is one line: the file, what is wrong, what would work."""


def decode_image(path: str | os.PathLike[str], channels: int, *, matte: int | None = None) -> Array:
    """Decode one image file.

    16-bit grey PNG and TIFF give uint16; floating-point TIFF and .npy give float32 and must hold finite
    values in 0..1; everything else gives uint8 (16-bit colour PNG and TIFF at their upper 8 bits). The EXIF
    orientation is not applied and the first frame of an animation is taken.

    An .npy file holds uint8, uint16 or floating-point values as [H, W], [H, W, C] or [C, H, W] with C = 1 or
    3. Where both readings are possible, such as [3, 20, 3], it is [H, W, C].

    Args:
        path: the file; its content, not its name, decides the format, except that .npy must be called so.
        channels: 1 for grey (ITU-R 601 luma, as Pillow's "L") or 3 for RGB (grey is replicated).
        matte: grey level 0..255 that transparent pixels are laid over; None keeps the colour below the
            transparency.

    Returns:
        [H, W, channels], uint8 | uint16 | float32.

    Raises:
        ImageError: missing, empty, truncated, not an image, more than MAX_PIXELS pixels, unsupported values.
    """
    path = Path(path)
    _check_channels(path, channels)
    _check_plain_file(path)
    with _decoding(path):
        array = _decode_npy(path) if path.suffix.lower() == ".npy" else _decode_picture(path, channels, matte)
    return _with_channels(_checked_values(array, path), channels)


def decode_pillow(image: Image.Image, channels: int, *, matte: int | None = None, name: str = "image") -> Array:
    """The pixels of a PIL image of any mode, as `decode_image` gives those of a file.

    Modes "I" and "I;16" give uint16: their values are 16 bits, 0..65535, so 8 bits as `image.convert("I")` has them
    are nearly black. Mode "F" gives float32 and must hold finite values in 0..1. Every other mode gives uint8: "1",
    "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV" and "LAB". The EXIF orientation is
    not applied; `PIL.ImageOps.exif_transpose` does that.

    Args:
        image: The image.
        channels: 1 for grey or 3 for RGB.
        matte: Grey level 0..255 that transparent pixels are laid over; None keeps the colour below the transparency.
        name: What messages call the image.

    Returns:
        [H, W, channels], uint8 | uint16 | float32.

    Raises:
        ImageError: It was opened from a file that is damaged or closed, or has no pixels, more than MAX_PIXELS of
            them, or unsupported values.
    """
    _check_channels(name, channels)
    with _decoding(name):
        array = _pillow_pixels(image, channels, matte, name)
    remedy = '; use image.convert("RGB") for values in 0..255'
    return _with_channels(_checked_values(array, name, remedy), channels)


def to_model_range(array: Array) -> Tensor:
    """[H, W, C] uint8 | uint16 | float32 → [C, H, W] float32 in -1..1, contiguous.

    The steps and their roundings are those of the usual ToTensor and Normalize(0.5, 0.5).
    """
    white = _WHITE_POINT[array.dtype]
    values = torch.from_numpy(np.array(array.transpose(2, 0, 1), dtype=np.float32, order="C"))
    return values.div_(white).sub_(0.5).div_(0.5)


def resize_short_side(array: Array, size: int) -> Array:
    """Resize the short side to ``size`` and the long side to ``int(size * long / short)``.

    Bilinear with antialiasing. uint8 goes through Pillow and equals its BILINEAR bit for bit; other types go
    through torch.

    Args:
        array: [H, W, C] uint8 | uint16 | float32.
        size: length of the short side in pixels.

    Returns:
        [H', W', C] of the same dtype; the array itself where nothing changes.

    Raises:
        ImageError: the result would have more than MAX_PIXELS pixels (a very long, narrow image).
    """
    height, width = array.shape[:2]
    short = min(height, width)
    if short == size:
        return array
    new_height = size if height == short else int(size * height / width)
    new_width = size if width == short else int(size * width / height)
    limit = env.max_pixels(MAX_PIXELS)
    if new_height * new_width > limit:
        raise ImageError(
            f"a {width}x{height} image with its short side resized to {size} would be "
            f"{new_width}x{new_height}, more than {limit} pixels"
        )
    if array.dtype == np.uint8:
        return _resize_bytes(array, new_height, new_width)
    planes = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, (new_height, new_width), mode="bilinear", antialias=True, align_corners=False)
    values = resized[0].permute(1, 2, 0).clamp(0, _WHITE_POINT[array.dtype]).contiguous().numpy()
    return values.round().astype(array.dtype) if array.dtype == np.uint16 else values


def to_bytes(images: Tensor, *, name: str = "image") -> Array:
    """[..., C, H, W] in -1..1 → [..., H, W, C] uint8: ``(x + 1) / 2`` at 8 bits, values outside clamped.

    Args:
        images: Any floating-point dtype, any device.
        name: What the message calls them.

    Raises:
        ImageError: A value is NaN or infinite.
    """
    values = images.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ImageError(f"{name}: the image to save holds NaN or infinite values")
    return values.add(1).div(2).clamp(0, 1).mul(255).round().to(torch.uint8).movedim(-3, -1).numpy()


def to_pillow(pixels: Array) -> Image.Image:
    """[H, W, 1 or 3] uint8 as a PIL image of mode "L" or "RGB"."""
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def save_image(tensor: Tensor, path: str | os.PathLike[str], *, durable: bool = True) -> None:
    """Save an image as ``(x + 1) / 2`` at 8 bits, values outside clamped; whole or not at all.

    Args:
        tensor: [C, H, W] in -1..1, C = 1 (grey) or 3 (RGB); any floating-point dtype, any device.
        path: its extension chooses the format; JPEG and WebP are saved at quality 95.
        durable: False: the file need not outlast a power failure (`munit_fast.io.atomic.atomic_path`).

    Raises:
        ImageError: not an image tensor, non-finite values, or a format or size that cannot be saved.
        FileWriteError: the file cannot be written; a file already there is left as it was.
    """
    path = Path(path)
    image_format = SAVED_FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise ImageError(f"{path}: images are saved as {_words(SAVED_FORMATS)}, not as {path.suffix or 'a bare name'}")
    shape = list(tensor.shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or 0 in shape or not tensor.is_floating_point():
        raise ImageError(f"{path}: an image is a floating-point tensor [1 or 3, H, W], not {shape} {tensor.dtype}")
    pixels = to_bytes(tensor, name=str(path))
    buffer = BytesIO()
    options = {"quality": 95} if image_format in ("JPEG", "WEBP") else {}
    try:
        to_pillow(pixels).save(buffer, format=image_format, **options)
    except (OSError, ValueError) as error:  # WebP and JPEG have largest sides
        reason = f"{shape[2]}×{shape[1]} pixels cannot be saved as {image_format} ({_one_line(error)})"
        raise ImageError(f"{path}: {reason}; use .png") from None
    atomic_write_bytes(path, buffer.getvalue(), durable=durable)


# -- decoding


def _check_plain_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        raise ImageError(f"{path}: {_one_line(error)}") from error
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        raise ImageError(f"{path}: not a plain file")
    if status.st_size == 0:
        raise ImageError(f"{path}: the file is empty")


def _check_channels(name: Path | str, channels: int) -> None:
    if channels not in (1, 3):
        raise ImageError(f"{name}: images are read with 1 or 3 channels, not {channels}; set input_dim to 1 or 3")


@contextmanager
def _decoding(name: Path | str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError with the image's name."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # decoders raise anything on damaged files: OSError, SyntaxError, EOFError
        raise ImageError(f"{name}: not a readable image ({_one_line(error)})") from error


def _check_size(name: Path | str, width: int, height: int) -> None:
    limit = env.max_pixels(MAX_PIXELS)
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height}, an image without pixels")
    if width * height > limit:
        raise ImageError(
            f"{name}: {width}x{height} is more than {limit} pixels; raise MUNIT_FAST_MAX_PIXELS to read it all the same"
        )


def _decode_picture(path: Path, channels: int, matte: int | None) -> Array:
    """[H, W] or [H, W, channels]; the dtypes of :func:`decode_image`."""
    limit = env.max_pixels(MAX_PIXELS)
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # the user asked for it: Pillow's refusal must not come first
    try:
        image = Image.open(path, formats=_DECODED_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: more than {limit} pixels; raise MUNIT_FAST_MAX_PIXELS to read it") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image of a known kind; use {_words(IMAGE_EXTENSIONS)}") from error
    with image:
        return _pillow_pixels(image, channels, matte, path)


def _pillow_pixels(image: Image.Image, channels: int, matte: int | None, name: Path | str) -> Array:
    """[H, W] or [H, W, channels]; the dtypes of :func:`decode_image`."""
    _check_size(name, *image.size)
    if image.mode.startswith("I"):
        return _whole_numbers(np.asarray(image), name)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode in _ON_THE_WAY:
        image = image.convert(_ON_THE_WAY[image.mode])
    if matte is not None and image.has_transparency_data:
        return np.asarray(_laid_over(image.convert("RGBA"), matte).convert("RGB"))
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _laid_over(image: Image.Image, matte: int) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, (matte, matte, matte, 255)), image)


def _whole_numbers(values: Array, name: Path | str) -> Array:
    """Pillow's integer modes as uint16: 16-bit files come as uint16 or, in some versions, as int32."""
    if values.dtype.kind != "u" and (values.min() < 0 or values.max() > 65535):
        raise ImageError(
            f'{name}: whole numbers outside 0..65535; save it with 8 or 16 bits, or use image.convert("RGB")'
        )
    return values.astype(np.uint16)


def _decode_npy(path: Path) -> Array:
    # A memory map reads the header alone, so the size is checked before anything is allocated; it never
    # unpickles.
    values = np.lib.format.open_memmap(path, mode="r")
    if values.ndim == 3 and values.shape[2] not in (1, 3) and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3)):
        raise ImageError(
            f"{path}: an array of shape {list(values.shape)}; use [H, W], [H, W, C] or [C, H, W] with C = 1 or 3"
        )
    _check_size(path, values.shape[1], values.shape[0])
    if values.dtype.kind == "f":
        return np.array(values, dtype=np.float32)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return np.array(values, dtype=values.dtype.newbyteorder("="))
    raise ImageError(f"{path}: values of type {values.dtype}; use uint8, uint16 or floating point in 0..1")


def _checked_values(array: Array, name: Path | str, remedy: str = "") -> Array:
    """[H, W, C] of a supported dtype."""
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())  # NaN makes both comparisons false
        if not (low >= 0 and high <= 1):
            raise ImageError(f"{name}: floating-point values must be finite, in 0..1, not {low:g}..{high:g}{remedy}")
    return array[:, :, None] if array.ndim == 2 else array


def _with_channels(array: Array, channels: int) -> Array:
    """[H, W, C] → [H, W, channels]: grey replicated, or colour brought to its luma with Pillow's weights."""
    if array.shape[2] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=2)
    if array.dtype.kind == "f":
        luma: Array = array @ (np.array(_LUMA, np.float32) / 65536)
        return luma.clip(0, 1).astype(np.float32)[:, :, None]
    weighted: Array = array.astype(np.uint64) @ np.array(_LUMA, np.uint64)
    return ((weighted + 0x8000) >> 16).astype(array.dtype)[:, :, None]


# -- small helpers


def _resize_bytes(array: Array, height: int, width: int) -> Array:
    resized = np.asarray(to_pillow(array).resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, array.shape[2])


def _one_line(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    return " ".join(str(strerror or error).split()) or type(error).__name__


def _words(extensions: Iterable[str]) -> str:
    return " ".join(extensions)
