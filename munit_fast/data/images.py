"""Image files in and out: decode, resize, convert to the networks' range and back.

Arrays are [H, W, C] and keep the precision of the file: uint8 in 0..255, uint16 in 0..65535, float32 in 0..1.
Tensors are [C, H, W] float32 in -1..1. Every failure is an :class:`ImageError` with the file's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from munit_fast.data.picture import MAX_PIXELS, Array, ImageError, Picture, one_line
from munit_fast.data.readers import naming, read_picture
from munit_fast.data.readers.pillow import of_pillow
from munit_fast.data.sources.folders import open_file
from munit_fast.data.values import PixelFormat, to_bytes
from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.utils import env

# Of files that are written.
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
_WHITE_POINT = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}


def decode_image(path: str | os.PathLike[str], pixel_format: PixelFormat | int = 3, page: int = 0) -> Array:
    """Decode one image file.

    Args:
        path: The file; its content decides the format where it can.
        pixel_format: The channels, value range and background, or the number of channels alone.
        page: Which image of a file that holds several.

    Returns:
        [H, W, channels], uint8 | uint16 | float32, as `PixelFormat.apply` documents it.

    Raises:
        ImageError: Missing, empty, truncated, not an image, more than MAX_PIXELS pixels, or it does not fit the format.
    """
    with open_file(Path(path)) as file:
        picture = read_picture(str(path), file, page)
    return _formatted(picture, pixel_format, str(path))


def decode_pillow(image: Image.Image, pixel_format: PixelFormat | int = 3, *, name: str = "image") -> Array:
    """The pixels of a PIL image of any mode, as `decode_image` gives those of a file.

    Modes "I" and "I;16" hold 16 bits, 0..65535, so 8 bits as `image.convert("I")` has them are nearly black. Mode "F"
    holds 0..1. Every other mode gives uint8: "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK",
    "YCbCr", "HSV" and "LAB".

    Args:
        image: The image.
        pixel_format: As in `decode_image`.
        name: What messages call the image.

    Returns:
        [H, W, channels], uint8 | uint16 | float32.

    Raises:
        ImageError: It was opened from a file that is damaged or closed, or has no pixels, more than MAX_PIXELS of
            them, or unsupported values.
    """
    with naming(name):
        picture = of_pillow(image)
    try:
        return _formatted(picture, pixel_format, name)
    except ImageError as error:
        convert = '; or use image.convert("RGB") for values in 0..255' if image.mode[0] in "IF" else ""
        raise ImageError(f"{error}{convert}") from None


def _formatted(picture: Picture, pixel_format: PixelFormat | int, name: str) -> Array:
    if isinstance(pixel_format, int):
        pixel_format = PixelFormat(pixel_format)
    with naming(name):
        return pixel_format.apply(picture)


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
    try:
        data = encode_bytes(pixels, image_format)
    except (OSError, ValueError) as error:  # WebP and JPEG have largest sides
        reason = f"{shape[2]}×{shape[1]} pixels cannot be saved as {image_format} ({one_line(error)})"
        raise ImageError(f"{path}: {reason}; use .png") from None
    atomic_write_bytes(path, data, durable=durable)


def encode_bytes(pixels: Array, image_format: str) -> bytes:
    """A file of [H, W, 1 or 3] uint8 in a format of Pillow's, JPEG and WebP at quality 95.

    Raises:
        OSError, ValueError: The format cannot hold it.
    """
    buffer = BytesIO()
    options = {"quality": 95} if image_format in ("JPEG", "WEBP") else {}
    to_pillow(pixels).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def _resize_bytes(array: Array, height: int, width: int) -> Array:
    if array.shape[2] not in (1, 3):
        planes = [_resize_bytes(array[:, :, c : c + 1], height, width) for c in range(array.shape[2])]
        return np.concatenate(planes, axis=2)
    resized = np.asarray(to_pillow(array).resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, array.shape[2])


def _words(extensions: Iterable[str]) -> str:
    return " ".join(extensions)
