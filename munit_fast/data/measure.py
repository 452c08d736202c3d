"""The values that a set of images has: for `range_a: auto`, and to warn where it uses little of its type's range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from munit_fast.config import Config
from munit_fast.data.picture import Array, ImageError, Picture
from munit_fast.data.sources import ImageSource

MEASURED_IMAGES = 256  # of a set, evenly spread over it
LOOKED_AT = 16  # of a set whose range is not to be measured
PERCENTILES = (0.1, 99.9)
NARROW = 0.25  # of a type's range: a set that uses less of it was probably meant to have a range of its own
_VALUES = 2**16  # of each image: whole pixels, in an order that no pattern of rows, columns or channels falls in with


@dataclass(frozen=True)
class MeasuredValues:
    """The values of a set.

    Attributes:
        low: The percentile PERCENTILES[0] of them.
        high: The percentile PERCENTILES[1].
        least: The smallest.
        most: The largest.
        dtype: The widest type of the images that could be read.
        limits: (black, white) of that type, if it has them.
        whole: Whether all images hold whole numbers.
    """

    low: float
    high: float
    least: float
    most: float
    dtype: np.dtype
    limits: tuple[float, float] | None
    whole: bool

    @property
    def narrow(self) -> bool:
        """Whether the values use less than NARROW of the range of their type."""
        return self.limits is not None and self.most - self.least < NARROW * (self.limits[1] - self.limits[0])


def measure(source: ImageSource, most: int = MEASURED_IMAGES) -> MeasuredValues | None:
    """The values of up to `most` images of a source; None where none of them can be read.

    Always the same images and places, so a set has one answer. Transparent pixels do not count, nor does what is not
    finite.

    Args:
        source: The images.
        most: How many are read.
    """
    step = max(1, -(-len(source) // most))
    kept: list[Array] = []
    widest: Picture | None = None
    whole = True
    for i in range(0, len(source), step):
        try:
            picture = source.read(i)
        except ImageError:  # training replaces it and says so
            continue
        found = _visible(picture)
        if found.size:
            if widest is None or picture.pixels.dtype.itemsize > widest.pixels.dtype.itemsize:
                widest = picture
            whole = whole and picture.pixels.dtype.kind in "iu"
            kept.append(found.astype(np.float64))
    if widest is None:
        return None
    values = np.concatenate(kept)
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return MeasuredValues(
        low, high, float(values.min()), float(values.max()), widest.pixels.dtype, widest.limits, whole
    )


def resolve_ranges(cfg: Config, train: dict[str, ImageSource]) -> tuple[Config, list[str]]:
    """Measure what a configuration leaves to be measured, and look at what it takes for granted.

    Args:
        cfg: The configuration.
        train: The training images of the domains "a" and "b".

    Returns:
        The configuration with numbers in place of `auto`, and a line for each range that was measured and for each set
        that uses less than a quarter of its type's range.

    Raises:
        ImageError: A range is to be measured and no image can be read, or all have one value.
    """
    notes = []
    for domain, source in train.items():
        key = f"range_{domain}"
        stated = getattr(cfg, key)
        if isinstance(stated, list):
            continue
        found = measure(source, MEASURED_IMAGES if stated == "auto" else LOOKED_AT)
        if stated == "auto":
            cfg = cfg.model_copy(update={key: _limits(key, source, found)})
            notes.append(f"{key}: {getattr(cfg, key)}, measured over {source.label}")
        elif found is not None and found.narrow and found.limits is not None:
            notes.append(
                f"{source.label}: values from {found.least:g} to {found.most:g} use little of the range "
                f"{found.limits[0]:g}..{found.limits[1]:g} of {found.dtype}: set {key}: [low, high], or auto"
            )
    return cfg, notes


def _limits(key: str, source: ImageSource, found: MeasuredValues | None) -> list[float]:
    if found is None:
        raise ImageError(f"{key}: auto: no image of {source.label} can be read")
    low, high = found.low, found.high
    if not low < high:  # nearly all of them are equal
        low, high = found.least, found.most
    if not low < high:
        raise ImageError(f"{key}: auto: every value in {source.label} is {low:g}; set {key}: [low, high]")
    if found.whole:  # whole limits can be written to files of whole numbers
        return [float(math.floor(low)), float(math.ceil(high))]
    digits = max(0, 3 - math.floor(math.log10(max(high - low, 1e-300))))  # a configuration file is read by people
    outwards = 10.0**-digits if digits else 0.0
    return [round(low - outwards / 2, digits), round(high + outwards / 2, digits)]


def _visible(picture: Picture) -> Array:
    """The finite values of some pixels of a picture, where it is not transparent, in one row."""
    pixels = picture.pixels.reshape(-1, picture.pixels.shape[2])
    count = max(1, _VALUES // pixels.shape[1])
    # Seeded, so that a set has one answer.
    chosen = np.random.default_rng(0).integers(0, len(pixels), count) if len(pixels) > count else slice(None)
    pixels = pixels[chosen]
    if picture.alpha is not None:
        pixels = pixels[picture.alpha.reshape(-1)[chosen] > 0]
    values = pixels.reshape(-1)
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values
