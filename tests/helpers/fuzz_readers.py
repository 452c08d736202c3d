"""Seeds of the fuzzer for each reader of images, and what it does with a damaged file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from hypothesis import strategies as st
from PIL import Image

from helpers.tiff_files import made
from munit_fast.data import ImageError, PixelFormat
from munit_fast.data.readers import count_pages, read_picture

_RNG = np.random.default_rng(0)
_COLOUR = _RNG.integers(0, 256, (12, 17, 3), np.uint8)


def tiff_seeds() -> list[bytes]:
    """Every coding once: strips, tiles, planes, packed bits, palettes, JPEG, fax, pages, stacks."""
    grey, deep = _COLOUR[:, :, 0], _COLOUR.astype(np.uint16) * 257
    planes = np.ascontiguousarray(_COLOUR.transpose(2, 0, 1))
    options: list[tuple[Any, dict[str, Any]]] = [
        (deep, {"photometric": "rgb", "compression": coding, "predictor": predictor})
        for coding, predictor in ((None, None), ("lzw", 2), ("zlib", 2), ("packbits", None), ("zstd", 2), ("lzma", 2))
    ]
    options += [
        (planes, {"photometric": "rgb", "planarconfig": "separate", "compression": "lzw"}),
        (_COLOUR, {"photometric": "rgb", "compression": "jpeg"}),
        (_COLOUR, {"photometric": "ycbcr", "compression": "jpeg", "tile": (16, 16)}),
        (deep, {"photometric": "rgb", "tile": (16, 16), "bigtiff": True}),
        (_COLOUR.astype(np.float32) / 255, {"photometric": "rgb", "compression": "zlib", "predictor": 3}),
        (_COLOUR.astype(np.float16), {"photometric": "rgb", "byteorder": ">"}),
        (deep[:, :, 0] >> 4, {"photometric": "minisblack", "bitspersample": 12}),
        (grey >> 7, {"photometric": "miniswhite", "bitspersample": 1}),
        (grey, {"photometric": "palette", "colormap": _RNG.integers(0, 65536, (3, 256), np.uint16)}),
        (np.dstack([deep, deep[:, :, 0]]), {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
        (np.dstack([_COLOUR, grey]), {"photometric": "separated"}),
        (_COLOUR, {"photometric": "cielab"}),
        (np.stack([deep[:, :, 0]] * 3), {"photometric": "minisblack", "imagej": True}),
        (np.stack([deep[:, :, 0]] * 3), {"photometric": "minisblack", "imagej": True, "truncate": True}),
        (np.stack([grey] * 3), {"photometric": "minisblack", "metadata": {"axes": "TYX"}, "truncate": True}),
    ]
    seeds = []
    for array, option in options:
        file = io.BytesIO()
        tifffile.imwrite(file, array, **{"metadata": None, **option})
        seeds.append(file.getvalue())
    for coding in ("group3", "group4", "tiff_ccitt"):
        file = io.BytesIO()
        Image.fromarray(grey > 99).save(file, "TIFF", compression=coding)
        seeds.append(file.getvalue())
    return seeds


def tiff_tags() -> st.SearchStrategy[bytes]:
    """Whole files whose tags are of different minds."""
    tags = [254, 256, 257, 258, 259, 262, 266, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 332]
    tags += [336, 338, 339, 347, 529, 530, 532, 700, 32997, 33432, 34377, 50838, 50839]
    number = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 32, 64, 255, 256, 32773, 2**16, 2**31, 2**32 - 1])
    values = number | st.lists(number, min_size=1, max_size=4).map(tuple)
    return st.builds(
        lambda changes, data, order: made(changes, data, order).getvalue(),
        st.dictionaries(st.sampled_from(tags), values, max_size=5),
        st.binary(min_size=12, max_size=64),
        st.sampled_from("<>"),
    )


def png_seeds() -> list[bytes]:
    """16 bits with and without transparency, few bits, palettes, notes of the orientation."""
    deep = _COLOUR.astype(np.uint16) * 257
    arrays = [deep, deep[:, :, 0], deep[:, :, :2], np.dstack([deep, deep[:, :, 0]]), _COLOUR, _COLOUR[:, :, :2]]
    seeds = [bytes(imagecodecs.png_encode(np.ascontiguousarray(array))) for array in arrays]
    exif = Image.Exif()
    exif[274] = 6
    for mode, options in (
        ("L", {"transparency": 3, "bits": 2}),
        ("P", {"transparency": 1, "bits": 4}),
        ("RGB", {"exif": exif, "transparency": (1, 2, 3)}),
        ("1", {}),
    ):
        file = io.BytesIO()
        Image.fromarray(_COLOUR).convert(mode).save(file, "PNG", **options)
        seeds.append(file.getvalue())
    return seeds


def frames_seeds() -> list[bytes]:
    """Animations whose frames cover the whole or a part, with and without transparency."""
    first = Image.fromarray(_COLOUR)
    clear = np.dstack([_COLOUR, np.where(_COLOUR[:, :, 0] > 128, 255, 0).astype(np.uint8)])
    seeds = []
    for frames in ([first, first.rotate(90)], [Image.fromarray(clear), Image.fromarray(clear[::-1])]):
        for options in (
            {"format": "GIF", "disposal": 2},
            {"format": "GIF", "disposal": 1},
            {"format": "WEBP", "lossless": True},
            {"format": "WEBP", "quality": 50},
            {"format": "PNG", "blend": 1},
            {"format": "PNG", "default_image": True},
        ):
            file = io.BytesIO()
            frames[0].save(file, save_all=True, append_images=[*frames[1:], frames[0]], **options)
            seeds.append(file.getvalue())
    return seeds


def netpbm_seeds() -> list[bytes]:
    """Plain and raw, of 8 and 16 bits."""
    numbers = b" ".join(b"%d" % value for value in _COLOUR.flatten())
    heads = [b"P6 17 12 255\n", b"P6\n# note\n17 12\n1000\n", b"P5 17 12 200\n", b"P5 17 12 65535\n"]
    return [head + _COLOUR.tobytes() * 2 for head in heads] + [b"P3 17 12 255\n" + numbers, b"P2 17 12 999\n" + numbers]


def reader_target(suffix: str, most_pixels: int) -> Callable[[Path], Callable[[bytes], None]]:
    """Reads the first and the last image of a file: pictures, or an ImageError of one line."""

    def make(folder: Path) -> Callable[[bytes], None]:
        path = folder / f"image{suffix}"

        def run(data: bytes) -> None:
            path.write_bytes(data)
            try:
                with path.open("rb") as file:
                    last = count_pages(path.name, file) - 1
                for page in {0, last}:
                    with path.open("rb") as file:
                        picture = read_picture(path.name, file, page)
                    height, width, channels = picture.pixels.shape
                    assert 0 < height * width <= most_pixels and picture.pixels.dtype.isnative
                    assert picture.alpha is None or picture.alpha.shape == (height, width)
                    array = PixelFormat(channels, limits=(0, 1000)).apply(picture)
                    assert array.dtype == np.float32 and array.shape == picture.pixels.shape
                    assert bool(((array >= 0) & (array <= 1)).all())
            except ImageError as error:
                text = str(error)
                assert 0 < len(text) < 20_000 and "memory" not in text and "\n" not in text, text

        return run

    return make
