"""Random changes of training images: flips, shifts, scale and colours, all decided by one key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from munit_fast.data.images import to_model_range
from munit_fast.data.picture import Array

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclass(frozen=True)
class Augmentation:
    """How much the training images of a domain are changed; as it stands, as published.

    Attributes:
        flip: Directions in which an image is mirrored, each with probability ½.
        shift: Largest shift of the crop, down and to the right, as a fraction of its side; below 1.
        scale: Images are enlarged or reduced by a factor of at most 1 + scale; below 1.
        color_jitter: Largest relative change of brightness, contrast and saturation; below 1.
    """

    flip: Literal["none", "horizontal", "vertical", "both"] = "horizontal"
    shift: float = 0.0
    scale: float = 0.0
    color_jitter: float = 0.0

    def random_crop(self, array: Array, crop: tuple[int, int], key: np.random.SeedSequence) -> Tensor:
        """A part of an image, changed as `key` decides.

        The image is mirrored. A window, the crop divided by the drawn factor and rounded to whole pixels, is put at a
        random place inside it (around it, where the window is the larger one) and shifted; what it has beyond an
        edge is the edge's colour where that is one, as of paper, else the image's reflection. It is resampled at most
        once, to the crop, by bicubic interpolation with antialiasing. Then with x the values from 0 (black) to 1 and
        drawn factors b, c and s: x ← b x; x ← m + c (x - m), where m is the mean of a channel; and of three channels
        x ← y + s (x - y), where y is the luma of a pixel. Values beyond the range are clamped.

        Args:
            array: [H, W, C] uint8 | uint16 | float32, at least as large as the crop.
            crop: Height and width of the result.
            key: Decides everything. What is off takes nothing from what the others draw.

        Returns:
            [C, crop height, crop width] float32 in -1..1.
        """
        # Bare words of the seed sequence: unlike a Generator's methods, they are the same in every NumPy.
        flip, top, left, down, right, zoom, *tones = (int(word) for word in key.generate_state(9, np.uint64))
        if self.flip in ("horizontal", "both") and flip % 2:
            array = array[:, ::-1]
        if self.flip in ("vertical", "both") and flip // 2 % 2:
            array = array[::-1]
        factor = (1 + self.scale) ** _symmetric(zoom)
        height, width = (round(side / factor) for side in crop)
        rows = _span(array, 0, height, top, self.shift * _symmetric(down))
        columns = _span(array, 1, width, left, self.shift * _symmetric(right))
        image = to_model_range(array[rows][:, columns])
        if (height, width) != crop:
            image = F.interpolate(image[None], crop, mode="bicubic", antialias=True)[0].clamp_(-1, 1)
        return _jittered(image, *(1 + self.color_jitter * _symmetric(word) for word in tones))


AS_PUBLISHED = Augmentation()


def _symmetric(word: int) -> float:
    """A random word of 64 bits as a number from -1 to 1."""
    return (word >> 11) * 2.0**-52 - 1


def _span(array: Array, axis: int, size: int, word: int, shift: float) -> slice | np.ndarray:
    """The rows (axis 0) or columns (1) that a window of `size` of them shows; shift: as a fraction of the window."""
    length = array.shape[axis]
    spare = length - size
    start = word % (spare + 1) if spare >= 0 else -(word % (1 - spare))
    start += round(shift * size)
    if start >= 0 and start + size <= length:
        return slice(start, start + size)
    place = np.arange(start, start + size)
    reflected = np.minimum(place % (2 * length), -(place + 1) % (2 * length))
    before, behind = (_is_plain(array.take(end, axis)) for end in (0, -1))
    plain = ((place < 0) & before) | ((place >= length) & behind)
    return np.where(plain, place.clip(0, length - 1), reflected)


def _is_plain(edge: Array) -> bool:
    """Whether the pixels [N, C] are all the same."""
    return bool((edge == edge[0]).all())


def _jittered(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """[C, H, W] in -1..1 with the three multiplied."""
    if brightness == contrast == saturation == 1:
        return image
    values = image.add(1).mul_(brightness / 2)
    # NumPy's mean: torch's would depend on the number of threads in the last bits.
    mean = torch.from_numpy(values.numpy().mean(axis=(1, 2), dtype=np.float64, keepdims=True)).float()
    values = mean + contrast * (values - mean)
    if len(values) == 3:
        red, green, blue = (share * plane for share, plane in zip(_LUMA, values, strict=True))
        luma = red + green + blue
        values = luma + saturation * (values - luma)
    return values.mul_(2).sub_(1).clamp_(-1, 1)
