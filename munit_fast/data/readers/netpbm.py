"""PGM and PPM with their own largest value, which Pillow scales to 8 or 16 bits, and colours of 16 bits to 8."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

from munit_fast.data.picture import Array, ImageError, Picture, check_size

_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([2356])" + _GAP + _GAP.join([rb"(\d{1,9})"] * 3) + rb"(?:#[^\r\n]*)?\s")
_HEADER_BYTES = 2**16  # comments included


def pages(file: BinaryIO) -> int:
    """How many images the file holds."""
    return 1


def read(file: BinaryIO, page: int) -> Picture:
    """The image of the file."""
    header = _HEADER.match(file.read(_HEADER_BYTES))
    if header is None:
        raise ImageError("a PGM or PPM without a complete header")
    kind, width, height, largest = map(int, header.groups())
    check_size(width, height)
    if not 1 <= largest <= 65535:
        raise ImageError(f"a PGM or PPM whose largest value is {largest}; it must lie in 1..65535")
    channels = 3 if kind in (3, 6) else 1
    file.seek(header.end())
    values = _numbers(file, width * height * channels, largest, plain=kind < 4)
    if int(values.max()) > largest:
        raise ImageError(f"values above {largest}, the largest that its header allows")
    pixels = values.reshape(height, width, channels)
    return Picture(pixels, channels == 3, limits=(0.0, float(largest)))


def _numbers(file: BinaryIO, count: int, largest: int, plain: bool) -> Array:
    size = 1 if largest < 256 else 2
    if plain:
        words = re.sub(rb"#[^\r\n]*", b"", file.read()).split(None, count)[:count]
        values = np.array(words, dtype="S5").astype(np.int64) if all(len(word) < 6 for word in words) else np.zeros(0)
    else:
        values = np.frombuffer(file.read(count * size), dtype=f">u{size}")
    if len(values) < count:
        raise ImageError("the file is truncated")
    if plain and (int(values.min()) < 0 or int(values.max()) > largest):
        raise ImageError(f"values outside 0..{largest}, which its header allows")
    return values.astype(f"u{size}")
