"""Sets of images, held in memory where they fit, and the crops that one takes from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from munit_fast.data.augmentation import AS_PUBLISHED, Augmentation
from munit_fast.data.images import resize_short_side, to_model_range
from munit_fast.data.picture import Array, ImageError
from munit_fast.data.readers import naming
from munit_fast.data.sources import FileSource, ImageSource
from munit_fast.data.values import PixelFormat

_T = TypeVar("_T")

CACHE_LIMIT_BYTES = 2**31
_PROBES = 8  # images decoded to estimate the size of a set


class ImageSet:
    """The images of one domain, decoded and resized once where they fit in memory.

    Args:
        source: the images, or the paths of image files.
        pixel_format: their channels, value range and background, or the number of channels alone.
        short_side: every image's short side is resized to this; None keeps the sizes.
        cache: True holds all images in memory, False reads each one when it is asked for, "auto" holds them
            where they take at most ``cache_limit_bytes`` (estimated from a few of them before the rest is
            read).
        cache_limit_bytes: for "auto".
        lenient: an image that cannot be read is no error before :meth:`image` is asked for it, with a cache too.

    Raises:
        ImageError: an image cannot be read; without a cache or ``lenient``, :meth:`image` raises it.
        ValueError: there are no paths.
    """

    def __init__(
        self,
        source: ImageSource | Sequence[Path],
        pixel_format: PixelFormat | int = 3,
        short_side: int | None = None,
        cache: bool | Literal["auto"] = "auto",
        cache_limit_bytes: int = CACHE_LIMIT_BYTES,
        lenient: bool = False,
    ) -> None:
        if short_side is not None and short_side < 1:
            raise ValueError(f"short_side must be at least 1 pixel, not {short_side}")
        self.source = source if isinstance(source, ImageSource) else FileSource(source)
        self.format = PixelFormat(pixel_format) if isinstance(pixel_format, int) else pixel_format
        self.short_side = short_side
        self._images: list[Array | ImageError] | None = None
        read = self._read_or_failure if lenient else self._read
        if cache is True or (cache == "auto" and self._estimated_bytes(read) <= cache_limit_bytes):
            self._images = _in_threads(read, len(self.source))

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        held = "in memory" if self.cached else "read when needed"
        return f"ImageSet({len(self)} images of {self.source.label}, {self.format.channels} channels, {held})"

    @property
    def cached(self) -> bool:
        """Whether all images are held in memory."""
        return self._images is not None

    def where(self, i: int) -> str:
        """What messages call image ``i``: its file."""
        return self.source.where(i)

    def image(self, i: int) -> Array:
        """Image ``i``, resized: [H, W, C] uint8 | uint16 | float32. Not to be written to.

        Raises:
            ImageError: it cannot be read.
        """
        if self._images is None:
            return self._read(i)
        held = self._images[i]
        if isinstance(held, ImageError):
            raise ImageError(str(held))  # a new one: each raise would lengthen the traceback of the old
        return held

    def readable(self, i: int) -> bool:
        """Whether image ``i`` can be read; without a cache it is read to find out."""
        try:
            self.image(i)
        except ImageError:
            return False
        return True

    def _read(self, i: int) -> Array:
        picture = self.source.read(i)
        with naming(self.where(i)):
            array = self.format.apply(picture)
            return array if self.short_side is None else resize_short_side(array, self.short_side)

    def _read_or_failure(self, i: int) -> Array | ImageError:
        try:
            return self._read(i)
        except ImageError as error:
            return ImageError(str(error))

    def _estimated_bytes(self, read: Callable[[int], Array | ImageError]) -> int:
        probes = range(0, len(self), max(1, len(self) // _PROBES))
        found = [read(i) for i in islice(probes, _PROBES)]
        sizes = [array.nbytes for array in found if not isinstance(array, ImageError)]
        return sum(sizes) * len(self) // max(1, len(sizes))


def train_crop(
    image_set: ImageSet,
    i: int,
    crop: tuple[int, int],
    key: np.random.SeedSequence,
    augmentation: Augmentation = AS_PUBLISHED,
) -> Tensor:
    """Image ``i`` for training: resized, then augmented and cropped at random, as ``key`` decides.

    The specification flips before it resizes. Here the resized image comes first, because it can be kept in
    memory: a bilinear resize weighs left and right alike, so the two orders agree (to one level of rounding).

    Args:
        image_set: the images.
        i: the image's index.
        crop: height and width of the result.
        key: decides flip, place and everything else; the same key gives the same crop.
        augmentation: what is changed besides the place; as published, images are flipped with probability ½.

    Returns:
        [C, crop height, crop width] float32 in -1..1.

    Raises:
        ImageError: the image cannot be read or is smaller than the crop.
    """
    array = image_set.image(i)
    _spare(image_set, i, array, crop)
    return augmentation.random_crop(array, crop, key)


def centre_crop(image_set: ImageSet, i: int, crop: tuple[int, int]) -> Tensor:
    """Image ``i`` for testing and display: resized, the middle cropped out.

    Args:
        image_set: the images.
        i: the image's index.
        crop: height and width of the result.

    Returns:
        [C, crop height, crop width] float32 in -1..1.

    Raises:
        ImageError: the image cannot be read or is smaller than the crop.
    """
    array = image_set.image(i)
    spare_y, spare_x = _spare(image_set, i, array, crop)
    top, left = round(spare_y / 2), round(spare_x / 2)
    return to_model_range(array[top : top + crop[0], left : left + crop[1]])


def display_images(
    image_set: ImageSet, crop: tuple[int, int], count: int, seed: int | None = None, *, skip_unreadable: bool = False
) -> Tensor:
    """The first ``min(count, len(image_set))`` images, centre-cropped; with a ``seed``, as many picked by it.

    Args:
        image_set: the images.
        crop: height and width of the result.
        count: how many, at least 1.
        seed: picks them; None: the first.
        skip_unreadable: the next ones take the place of those that cannot be read; there may then be fewer.

    Returns:
        [N, C, crop height, crop width] float32 in -1..1.

    Raises:
        ImageError: an image (with ``skip_unreadable``: every one) cannot be read, or one is smaller than the crop.
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count of images to display must be at least 1, not {count}")
    order = range(len(image_set)) if seed is None else shuffled(len(image_set), np.random.SeedSequence(seed))
    chosen = [int(i) for i in (islice(filter(image_set.readable, order), count) if skip_unreadable else order[:count])]
    return torch.stack([centre_crop(image_set, i, crop) for i in chosen or [0]])


def shuffled(count: int, key: np.random.SeedSequence) -> np.ndarray:
    """[count] int64: the numbers 0..count-1 in an order decided by ``key``, the same in every NumPy."""
    return np.argsort(np.random.Philox(key).random_raw(count), kind="stable")


def check_crops(image_set: ImageSet, crop: tuple[int, int]) -> None:
    """Raise the ImageError of the first readable image smaller than ``crop``. Cheap for sets in memory."""
    for i in filter(image_set.readable, range(len(image_set))):
        _spare(image_set, i, image_set.image(i), crop)


def _spare(image_set: ImageSet, i: int, array: Array, crop: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns the crop leaves over. Raises ImageError where it does not fit."""
    height, width = array.shape[:2]
    if crop[0] > height or crop[1] > width:
        kept = image_set.short_side is None
        resized, way = ("", "set") if kept else (f" after new_size {image_set.short_side}", "raise")
        raise ImageError(
            f"{image_set.where(i)}: {width}x{height} pixels (width x height){resized} is smaller than the "
            f"crop of {crop[1]}x{crop[0]}; lower crop_image_width and crop_image_height, or {way} new_size"
        )
    return height - crop[0], width - crop[1]


def _in_threads(read: Callable[[int], _T], count: int) -> list[_T]:
    """``read(0), ..., read(count - 1)``; the first failure is raised and the rest called off."""
    # Threads do: Pillow lets go of the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(read, range(count)))
