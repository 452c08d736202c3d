"""Arrays that NumPy saved: .npy, and .npz with one or more of them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from munit_fast.data.picture import MAX_PIXELS, Array, ImageError, Picture, check_size, type_limits
from munit_fast.data.readers.streams import read_exactly
from munit_fast.utils import env

_MAX_CHANNELS = 1024  # as many as the networks take
_PACKED_FACTOR = 8  # values in one array of an .npz, which is unpacked as a whole, in largest images of one channel


class _Saved(NamedTuple):
    """One array: what its header says, and the file that is at its first value."""

    file: BinaryIO
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]

    @property
    def images(self) -> int:
        return self.shape[0] if len(self.shape) == 4 else 1


def pages(file: BinaryIO) -> int:
    """How many images the file holds: N of each array of four axes, one of each array of two or three."""
    return sum(saved.images for saved in _arrays(file))


def read(file: BinaryIO, page: int) -> Picture:
    """An image [H, W], [H, W, C] or [C, H, W]; `channels_first` says which axis the channels are."""
    for saved in _arrays(file):
        if page < saved.images:
            return _picture(_image(saved, page))
        page -= saved.images
    raise ImageError("no array of two to four axes in it")


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array of three axes is [C, H, W], not [H, W, C].

    A last axis of 1 or 3 is the channels, then a first one; else the first axis is, where it is shorter than both
    others. Whatever is not clear is [H, W, C].
    """
    first, middle, last = shape
    if last in (1, 3) or first in (1, 3):
        return last not in (1, 3)
    return first < min(middle, last)


def _arrays(file: BinaryIO) -> Iterator[_Saved]:
    """The arrays of a file in their order; of an .npz without those of fewer than two axes, which are labels."""
    packed = file.read(2) == b"PK"
    file.seek(0)
    if not packed:
        saved = _header(file)
        here = file.tell()
        missing = math.prod(saved.shape) * saved.dtype.itemsize - (file.seek(0, 2) - here)
        if missing > 0:
            raise ImageError(f"the file ends {missing} bytes too early")
        file.seek(here)
        yield saved
        return
    limit = _PACKED_FACTOR * env.max_pixels(MAX_PIXELS)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                saved = _header(cast(BinaryIO, member))
                if len(saved.shape) < 2:
                    continue
                if math.prod(saved.shape) > limit:  # a few packed bytes may stand for any number of values
                    raise ImageError(f"{info.filename} of shape {list(saved.shape)} has more than {limit} values")
                yield saved


def _header(file: BinaryIO) -> _Saved:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # later ones differ in the names of fields, which no image has
        raise ImageError(f"an array saved in version {version[0]}.{version[1]} of the format; use 1.0 or 2.0")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    saved = _Saved(file, *read_header(file))
    if any(size < 1 for size in saved.shape):
        raise ImageError(f"an array of shape {list(saved.shape)}, without pixels")
    return saved


def _image(saved: _Saved, page: int) -> Array:
    """[H, W] or three axes: one image of an array."""
    shape, dtype = saved.shape, saved.dtype
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise ImageError(f"values of type {dtype}; use integers or floating point")
    one = shape[1:] if len(shape) == 4 else shape
    if len(one) not in (2, 3):
        raise ImageError(f"an array of shape {list(shape)}; use [H, W], [H, W, C] or [C, H, W], or N of them as [N, …]")
    first = len(one) == 3 and channels_first(one)
    height, width, channels = (*one, 1) if len(one) == 2 else (*one[1:], one[0]) if first else one
    check_size(width, height)
    if not 1 <= channels <= _MAX_CHANNELS:
        raise ImageError(f"an array of shape {list(shape)} has {channels} channels; use 1 to {_MAX_CHANNELS}")
    whole = saved.fortran and len(shape) == 4  # an image is then scattered over all of the array
    count = math.prod(shape) if whole else math.prod(one)
    if saved.file.seekable() and not whole:
        saved.file.seek(page * count * dtype.itemsize, 1)
    data = read_exactly(saved.file, count * dtype.itemsize)
    values = np.frombuffer(data, dtype).reshape(shape if whole else one, order="F" if saved.fortran else "C")
    values = values[page] if whole else values
    return values.transpose(1, 2, 0) if first else values


def _picture(values: Array) -> Picture:
    if values.dtype.kind == "b":  # a mask
        values = values.astype(np.uint8) * 255
    pixels = np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return Picture(pixels, pixels.shape[2] == 3, limits=type_limits(pixels.dtype))
