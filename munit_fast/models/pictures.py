"""Pictures as users have them, to tensors and back: PIL images, NumPy arrays, tensors, and lists of these.

`MUNIT.translate`, `UNIT.translate` and `MUNIT.encode_style` take any of them. What comes in is kept as it is until its
batch is translated, and goes out in its own kind at once, so a long list is never held in floating point.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from munit_fast.config import Config

if TYPE_CHECKING:  # at run time whoever has a PIL image has imported PIL
    from PIL import Image

    AnyPicture: TypeAlias = Tensor | Image.Image | npt.NDArray[Any]
    AnyPictures: TypeAlias = AnyPicture | Sequence[AnyPicture]

Array = npt.NDArray[Any]

MAX_BATCH = 8  # pictures that are translated at once
MAX_BATCH_PIXELS = 2**21  # of these at most as many pixels, unless a single picture has more: 8 of 512×512

_KINDS = "a tensor, a PIL image, a NumPy array, or a list of these"
_ROUNDING = 0.01  # beyond [-1, 1]: what arithmetic in float16 or a resampling filter leaves there
_ORIENTATION = 274  # the EXIF tag
_FLOATS = (np.float16, np.float32, np.float64)


def is_pillow(x: object) -> TypeGuard[Image.Image]:
    """Whether x is a PIL image, without importing PIL."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(x, module.Image)


class PictureBatches:
    """Pictures of any kind and size: batches of those of one size, and the results in the kinds of the pictures.

    Args:
        name: The argument that they are, for messages.
        given: A PIL image of any mode; an array [H, W, C], [N, H, W, C], or [H, W] of one channel, float16 | float32 |
            float64 in [-1, 1] or whole numbers in the values of the domain (`range_a`, `range_b`; else uint8 in 0..255
            or uint16 in 0..65535); or a list or tuple of such images, arrays of one picture each, and floating-point
            tensors [C, H, W] in [-1, 1].
        config: Of the model: the channels C of the domains, and their values.
        domain: "a" or "b", the domain that they are pictures of.

    Raises:
        ValueError: The pictures are none of the above. Files behind PIL images are read later, by `batches`.
    """

    def __init__(self, name: str, given: object, config: Config, domain: str) -> None:
        self.name, self._config, self._domain = name, config, domain
        self.channels: int = getattr(config, f"input_dim_{domain}")
        self._target = "b" if domain == "a" else "a"
        self._stacked = isinstance(given, np.ndarray) and given.ndim == 4
        self._single = not self._stacked and not isinstance(given, (list, tuple))
        if isinstance(given, np.ndarray) and self._stacked:
            self._check_array(name, given, 4)
            self._items: list[Any] = list(given)
        elif self._single:
            self._items = [given]
        else:
            assert isinstance(given, (list, tuple))
            self._items = list(given)
            if not self._items:
                raise ValueError(f"{name} must be {_KINDS}, of at least one picture; got an empty {_type(given)}")
        if not self._stacked:
            for i, item in enumerate(self._items):
                self._check(item, name if self._single else f"{name}[{i}]")

    def __len__(self) -> int:
        return len(self._items)

    def batches(self, like: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Batches [n, C, H, W] of pictures of one size, at most MAX_BATCH at a time, with the places of the pictures.

        Sizes come in the order of their first pictures, and pictures of a size in their own.

        Args:
            like: What gives the batches their dtype and device.

        Raises:
            ImageError: A PIL image cannot be read, or has no pixels, too many, or values that have no meaning.
        """
        places: dict[tuple[int, int], list[int]] = {}
        for i, item in enumerate(self._items):
            places.setdefault(_size(item), []).append(i)
        for (height, width), same in places.items():
            count = max(1, min(MAX_BATCH, MAX_BATCH_PIXELS // (height * width)))
            for start in range(0, len(same), count):
                batch = same[start : start + count]
                yield batch, torch.stack([self._tensor(i).to(like) for i in batch])

    def apply(self, like: Tensor, function: Callable[[Tensor, list[int]], Tensor]) -> Any:
        """Translate all batches.

        Args:
            like: What gives the batches their dtype and device.
            function: Takes a batch [n, C, H, W] and the places of its pictures; gives images [n, S, C', H, W].

        Returns:
            The translations in the kinds of the pictures, as `MUNIT.translate` documents them.

        Raises:
            ValueError: There are no PIL images of the translations' channels.
            ImageError: As `batches`, or a translation to whole numbers holds NaN.
        """
        if any(map(is_pillow, self._items)):
            self._check_pillow(self.name, getattr(self._config, f"input_dim_{self._target}"))
        for dtype in {x.dtype for x in self._items if isinstance(x, np.ndarray) and x.dtype.kind in "iu"}:
            self._check_results(dtype)
        results: list[Any] = [None] * len(self)
        for batch, x in self.batches(like):
            for i, images in zip(batch, function(x, batch)):
                results[i] = self._like_item(images, self._items[i])
        if self._stacked:
            return np.stack(results).astype(results[0].dtype, copy=False)  # NumPy stacks in the native byte order
        return results[0] if self._single else results

    def _tensor(self, i: int) -> Tensor:
        """[C, H, W] in [-1, 1]."""
        item = self._items[i]
        if isinstance(item, Tensor):
            return item.detach()
        if isinstance(item, np.ndarray) and item.dtype.kind == "f":
            item = item.reshape(*item.shape[:2], self.channels).transpose(2, 0, 1)
            return torch.from_numpy(np.array(item, dtype=item.dtype.newbyteorder("="), order="C"))
        from munit_fast.data import Picture, decode_pillow, to_model_range  # which import PIL
        from munit_fast.data.configured import pixel_format
        from munit_fast.data.picture import type_limits

        values = pixel_format(self._config, self._domain)
        if isinstance(item, np.ndarray):
            item = item.reshape(*item.shape[:2], self.channels)
            item = np.asarray(item, dtype=item.dtype.newbyteorder("="))
            return to_model_range(values.apply(Picture(item, limits=type_limits(item.dtype))))
        name = self.name if self._single else f"{self.name}[{i}]"
        return to_model_range(decode_pillow(item, values, name=name))

    def _like_item(self, images: Tensor, item: Any) -> Any:
        """Images [S, C', H, W] in the kind of an item."""
        if isinstance(item, Tensor):
            return images.to(item).contiguous()
        if isinstance(item, np.ndarray) and item.dtype.kind == "f":
            values = images.movedim(-3, -1).to("cpu", torch.float64)  # NumPy has no bfloat16; rounded once
            return np.ascontiguousarray(values.numpy(), dtype=item.dtype)
        from munit_fast.data import ImageError, to_bytes, to_pillow  # which import PIL
        from munit_fast.data.configured import pixel_format

        if is_pillow(item):
            return [to_pillow(image) for image in np.ascontiguousarray(to_bytes(images, name="the translation"))]
        try:
            found = pixel_format(self._config, self._target).values(images, item.dtype.newbyteorder("="))
        except ImageError as error:
            raise ImageError(f"the translation: {error}") from None
        return found.astype(item.dtype, copy=False)

    def _check(self, item: object, name: str) -> None:
        """Raise ValueError where an item is no picture."""
        if is_pillow(item):
            if 0 in item.size:
                raise ValueError(f"{name} must have pixels; got a PIL image of {item.width}×{item.height}")
            self._check_pillow(name, self.channels)
        elif isinstance(item, np.ndarray):
            self._check_array(name, item, 3)
        elif isinstance(item, Tensor):
            self._check_tensor(name, item)
        elif isinstance(item, (str, os.PathLike)):
            raise ValueError(
                f"{name} must be {_KINDS}; got a path: open it with PIL.Image.open, or use munit-fast translate"
            )
        elif isinstance(item, (list, tuple)) and name != self.name:
            raise ValueError(f"{name} must be one picture; got a {_type(item)}: lists are not nested")
        else:
            raise ValueError(f"{name} must be {_KINDS}; got {_type(item)}")

    def _check_pillow(self, name: str, channels: int) -> None:
        if channels not in (1, 3):
            raise ValueError(f"{name} must be an array or a tensor: there are no PIL images of {channels} channels")

    def _check_tensor(self, name: str, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[0] != self.channels or 0 in x.shape:
            hints = {1: "; stack codes into one tensor", 4: "; pass a batch by itself, not in a list"}
            raise ValueError(
                f"{name} must be a tensor [{self.channels}, H, W] with H, W ≥ 1; got {list(x.shape)}"
                + hints.get(x.dim(), "")
            )
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point in [-1, 1]; got {x.dtype}")

    def _check_array(self, name: str, x: Array, axes: int) -> None:
        """Check an array [H, W, C], [H, W] of one channel, or [N, H, W, C]."""
        channels, shape = self.channels, list(x.shape)
        as_one = x.ndim == 2 and channels == 1 and axes == 3
        if not as_one and (x.ndim != axes or x.shape[-1] != channels):
            raise ValueError(f"{name} must be {self._shapes(name)}; got {shape}{self._hint(name, x)}")
        if 0 in shape:
            raise ValueError(f"{name} must be {self._shapes(name)} with every size ≥ 1; got {shape}")
        ranged = getattr(self._config, f"range_{self._domain}") != "dtype"
        if x.dtype.kind in "iu" and (ranged or x.dtype.newbyteorder("=") in (np.uint8, np.uint16)):
            return
        as_bytes = f"{name}.astype(np.uint8) for values in 0..255"
        if x.dtype.type not in _FLOATS:
            raise ValueError(
                f"{name} must be uint8 in 0..255, uint16 in 0..65535, or float16, float32 or float64 in [-1, 1]; got "
                f"{x.dtype}"
                + (f"; use {name}.astype(np.uint8) * 255" if x.dtype == np.bool_ else "")
                + (
                    f"; use {as_bytes}, or a model with range_{self._domain}, whose values may have any type"
                    if x.dtype.kind in "iu"
                    else ""
                )
            )
        low, high = float(x.min()), float(x.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name} must be finite; got NaN or infinite values")
        if low < -1 or high > 1:
            rounding = low >= -1 - _ROUNDING and high <= 1 + _ROUNDING
            raise ValueError(
                f"{name} must be in [-1, 1] where it is {x.dtype}; got values from {low:.9g} to {high:.9g}: use "
                + (
                    f"{name}.clip(-1, 1)"
                    if rounding
                    else f"{name}.round().astype(np.int32) for the values of range_{self._domain}"
                    if ranged
                    else as_bytes
                )
            )

    def _check_results(self, dtype: np.dtype[Any]) -> None:
        """Raise ValueError where results of a dtype of whole numbers cannot hold the values of their domain."""
        key, limits = f"range_{self._target}", self._config.limits(self._target)
        if limits is None and dtype.newbyteorder("=") not in (np.uint8, np.uint16):
            raise ValueError(
                f"{self.name} is {dtype}, and so would be the results, for whose values {key} names no range; use "
                f"floating point in [-1, 1], or a model with {key}: [0, 255]"
            )
        bounds = np.iinfo(dtype)
        if limits is not None and not bounds.min <= limits[0] <= limits[1] <= bounds.max:
            raise ValueError(
                f"{self.name} is {dtype}, and so would be the results, whose values are {limits[0]:g}..{limits[1]:g} "
                f"({key}); use {self.name}.astype(np.int32)"
            )

    def _shapes(self, name: str) -> str:
        shapes = [f"[H, W, {self.channels}]"]
        if self.channels == 1:
            shapes.append("[H, W]")
        if name == self.name:
            shapes.append(f"[N, H, W, {self.channels}]")
        return f"an array {' or '.join(shapes)}"

    def _hint(self, name: str, x: Array) -> str:
        """What else an array of the wrong shape may be."""
        if x.ndim in (3, 4) and x.shape[-3] == self.channels:
            axes = "(1, 2, 0)" if x.ndim == 3 else "(0, 2, 3, 1)"
            return f": it looks like channels first; use {name}.transpose{axes}"
        if x.ndim == 4:
            return ": pass several pictures by themselves, or one by one in the list"
        if x.dtype == np.uint8 and (x.ndim == 2 or (x.ndim == 3 and x.shape[-1] in (1, 3, 4))):
            return f": PIL images are converted; use PIL.Image.fromarray({name})"
        return ""


def _size(item: Any) -> tuple[int, int]:
    """Height and width."""
    if isinstance(item, Tensor):
        return item.shape[1], item.shape[2]
    if not is_pillow(item):
        return item.shape[:2]
    lies = False  # on its side, so that it is turned by a quarter when its pixels are read
    with suppress(Exception):  # of a damaged file, which is said when it is read
        lies = item.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (item.width, item.height) if lies else (item.height, item.width)


def _type(x: object) -> str:
    return type(x).__name__
