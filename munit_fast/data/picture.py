"""What a reader gives: the pixels of one image as its file has them, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from munit_fast.utils import env

Array: TypeAlias = npt.NDArray[Any]

MAX_PIXELS = 2**27  # MUNIT_FAST_MAX_PIXELS overrides it
# Black and white of types whose range is their own. Signed and wide integers have none: CT numbers, counts of photons.
TYPE_LIMITS = {"u1": (0.0, 255.0), "u2": (0.0, 65535.0), "f2": (0.0, 1.0), "f4": (0.0, 1.0), "f8": (0.0, 1.0)}
_AT_MOST: ContextVar[int | None] = ContextVar("_AT_MOST", default=None)


class ImageError(ValueError):
    """An image cannot be used. The message is one line: the file, what is wrong, what would work."""


@dataclass(frozen=True)
class Picture:
    """One image as its file has it.

    Attributes:
        pixels: [H, W, C], integers of 8 to 64 bits or float16 to float64, in the native byte order. Transparency is not
            among the channels.
        colour: Whether the channels are red, green and blue, so that there is a luma.
        alpha: [H, W] of the same dtype: 0 is transparent, the upper limit of its type (`alpha_limit`) opaque; None: the
            image is opaque.
        limits: (black, white) that the file's type has, None where it has none.
        header: What a writer needs to give a result the geometry of its input (an affine, a spacing); None: nothing.
    """

    pixels: Array
    colour: bool = False
    alpha: Array | None = None
    limits: tuple[float, float] | None = None
    header: Any = field(default=None, repr=False)

    @property
    def alpha_limit(self) -> float:
        """The value of `alpha` that is opaque."""
        return type_limits(self.pixels.dtype, (0.0, float(_largest(self.pixels.dtype))))[1]


def type_limits(
    dtype: np.dtype[Any], otherwise: tuple[float, float] | None = None
) -> Any:  # tuple[float, float] | None
    """(black, white) of a dtype; `otherwise` where it has none."""
    return TYPE_LIMITS.get(dtype.str[1:], otherwise)


@contextmanager
def at_most(pixels: int) -> Iterator[None]:
    """Refuse larger images inside, as MAX_PIXELS does, which still holds."""
    token = _AT_MOST.set(pixels)
    try:
        yield
    finally:
        _AT_MOST.reset(token)


def pixel_limit() -> int:
    """How many pixels an image may have here."""
    largest = env.max_pixels(MAX_PIXELS)
    return min(largest, _AT_MOST.get() or largest)


def refuse_size(reason: str) -> NoReturn:
    """Raise ImageError, without a file's name, for an image beyond `pixel_limit`, with what would help."""
    remedy = "raise MUNIT_FAST_MAX_PIXELS to read it all the same" if _AT_MOST.get() is None else "make it smaller"
    raise ImageError(f"{reason}; {remedy}")


def check_size(width: int, height: int) -> None:
    """Raise ImageError, without a file's name, for an image without pixels or with more than `pixel_limit`."""
    limit = pixel_limit()
    if width < 1 or height < 1:
        raise ImageError(f"{width}x{height}, an image without pixels")
    if width * height > limit:
        refuse_size(f"{width}x{height} is more than {limit} pixels")


def one_line(error: BaseException) -> str:
    """The message of any exception in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _largest(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
