"""PNG of every depth, colour type and way to be transparent, against what was written, libspng and imageio."""

from __future__ import annotations

import itertools
import struct
import zlib
from io import BytesIO
from typing import Any

import imagecodecs
import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from munit_fast.data import ImageError, Picture, decode_pillow
from munit_fast.data.readers import count_pages, read_picture

Array = np.ndarray[Any, Any]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
DEPTHS = [(0, d) for d in (1, 2, 4, 8, 16)] + [(3, d) for d in (1, 2, 4, 8)]
DEPTHS += list(itertools.product((2, 4, 6), (8, 16)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def rows(array: Array, depth: int) -> bytes:
    """Unfiltered rows of [H, W, C]."""
    lines = []
    for row in array.reshape(len(array), -1):
        if depth == 16:
            line = row.astype(">u2").tobytes()
        else:
            bits = ((row[:, None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8)
            line = np.packbits(bits).tobytes()
        lines.append(b"\0" + line)
    return b"".join(lines)


def png(array: Array, kind: int, depth: int, interlaced: bool = False, **chunks: bytes) -> bytes:
    height, width = array.shape[:2]
    parts = [array[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [array]
    data = b"".join(rows(part, depth) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    body = b"".join(chunk(name.encode(), value) for name, value in chunks.items())
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), body, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    )


def read(data: bytes) -> Picture:
    return read_picture("a.png", BytesIO(data))


@pytest.mark.parametrize("gamma", [False, True])
@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
def test_every_layout(kind: int, depth: int, interlaced: bool, clear: bool, gamma: bool) -> None:
    rng = np.random.default_rng(kind * 17 + depth)
    stored = rng.integers(0, 2**depth, (11, 13, CHANNELS[kind]), np.uint16)
    stored[0, 0] = stored[10, 12]  # a colour that is there twice
    chunks = {"gAMA": struct.pack(">I", 20_000), "bKGD": bytes(6 if kind in (2, 6) else 1 if kind == 3 else 2)}
    chunks = chunks if gamma and kind != 3 else {}
    palette = rng.integers(0, 256, (2**depth, 3), np.uint8) if kind == 3 else None
    factor = 1 if depth >= 8 else 255 // (2**depth - 1)
    colours, alpha = stored * factor, None
    white = 65535 if depth == 16 else 255
    if palette is not None:
        chunks["PLTE"] = palette.tobytes()
        colours = palette[stored[:, :, 0]]
    if clear and kind in (0, 2):
        chunks["tRNS"] = stored[0, 0].astype(">u2").tobytes()
        alpha = np.where((stored == stored[0, 0]).all(axis=2), 0, white)
    elif clear and palette is not None:
        levels = rng.integers(0, 256, 2**depth - 1, np.uint8)
        chunks["tRNS"] = levels.tobytes()
        alpha = np.append(levels, 255)[stored[:, :, 0]]
    elif kind in (4, 6):
        colours, alpha = stored[:, :, :-1], stored[:, :, -1]
    data = png(stored, kind, depth, interlaced, **chunks)
    found = read(data)
    assert found.pixels.dtype == (np.uint16 if depth == 16 else np.uint8) and found.limits == (0, white)
    assert np.array_equal(found.pixels, colours) and found.colour == (colours.shape[2] == 3)
    assert (found.alpha is None) == (alpha is None)
    assert alpha is None or (found.alpha is not None and np.array_equal(found.alpha, alpha))
    mine = found.pixels if found.alpha is None else np.dstack([found.pixels, found.alpha])
    if kind == 6 or (kind == 2 and depth == 8 and not clear):
        assert np.array_equal(imagecodecs.spng_decode(data).reshape(mine.shape), mine)
    if depth == 8 and kind in (2, 4, 6) and not clear:
        assert np.array_equal(imageio.imread(data).reshape(mine.shape), mine)


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_a_pil_image_knows_its_transparent_grey(depth: int) -> None:
    levels = np.arange(4, dtype=np.uint16).reshape(1, 4, 1)
    data = png(levels, 0, depth, tRNS=struct.pack(">H", 3))
    with Image.open(BytesIO(data)) as image:
        shown = decode_pillow(image, 1)[0, :, 0].tolist()
    factor = {2: 85, 4: 17, 8: 1}[depth]
    assert shown == [0, factor, 2 * factor, 255]


def test_a_pil_image_of_16_bits_is_transparent_too() -> None:
    data = png(np.array([[[300], [301]]], np.uint16), 0, 16, tRNS=struct.pack(">H", 300))
    with Image.open(BytesIO(data)) as image:
        assert decode_pillow(image, 1)[0, :, 0].tolist() == [65535, 301]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("how", ["eXIf", "eXIf behind the pixels", "XMP"])
def test_its_orientation(depth: int, how: str) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    note = exif.tobytes()[6:]
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = png(stored, 2, depth)
    turned = {
        "eXIf": png(stored, 2, depth, eXIf=note),
        "eXIf behind the pixels": plain[:-12] + chunk(b"eXIf", note) + plain[-12:],
        "XMP": png(stored, 2, depth, iTXt=xmp),
    }[how]
    assert np.array_equal(read(plain).pixels, stored)
    assert np.array_equal(read(turned).pixels, np.rot90(stored, -1))


def test_a_damaged_orientation_is_none() -> None:
    stored = np.zeros((4, 6, 3), np.uint16)
    assert read(png(stored, 2, 8, eXIf=b"rubbish" * 9)).pixels.shape == (4, 6, 3)


def test_an_animation_of_16_bits_is_refused() -> None:
    animated = png(np.zeros((4, 6, 3), np.uint16), 2, 16, acTL=struct.pack(">II", 1, 0))
    with pytest.raises(ImageError, match="animated PNG of 16 bits"):
        read(animated)


def test_a_still_has_one_page() -> None:
    data = png(np.zeros((4, 6, 3), np.uint16), 2, 8)
    assert count_pages("a.png", BytesIO(data)) == 1
    with pytest.raises(ImageError, match="there is no page 1"):
        read_picture("a.png", BytesIO(data), 1)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_half_a_file_is_refused(depth: int, share: float) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint16)
    data = png(stored, 2, depth)
    with pytest.raises(ImageError, match=r"^a\.png: "):
        read(data[: int(len(data) * share)])
