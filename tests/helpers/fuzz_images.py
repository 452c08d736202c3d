"""Images of every common format for the fuzzer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from helpers.fuzz_inputs import PIXELS, Target, check_message, mended
from munit_fast.data import ImageError, decode_image


def image_inputs() -> st.SearchStrategy[bytes]:
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (12, 17, 3), np.uint8), rng.integers(0, 256, (12, 17), np.uint8)
    pictures = [
        Image.fromarray(colour),
        Image.fromarray(grey),
        Image.fromarray(colour).convert("RGBA"),
        Image.fromarray(grey > 99),
    ]
    pictures += [Image.fromarray(colour).quantize(16), Image.fromarray(grey.astype(np.uint16) * 257)]
    seeds = []
    for picture in pictures:
        for options in (
            {"format": "PNG"},
            {"format": "PPM"},
            {"format": "BMP"},
            {"format": "GIF"},
            {"format": "JPEG", "progressive": True},
            {"format": "JPEG", "quality": 50},
            {"format": "WEBP", "lossless": True},
            {"format": "WEBP"},
            {"format": "TIFF", "compression": "tiff_lzw"},
            {"format": "TIFF", "compression": "tiff_adobe_deflate"},
            {"format": "TIFF"},
        ):
            buffer = io.BytesIO()
            try:
                picture.save(buffer, **options)
            except (OSError, ValueError):  # not every mode has every format
                continue
            seeds.append(buffer.getvalue())
    cmyk, animated = io.BytesIO(), io.BytesIO()
    pictures[0].convert("CMYK").save(cmyk, format="JPEG")
    pictures[0].save(animated, format="WEBP", save_all=True, append_images=[pictures[0].rotate(90)])
    seeds += [cmyk.getvalue(), animated.getvalue()]
    for array in (
        colour,
        grey,
        grey.astype(np.float32) / 255,
        colour.transpose(2, 0, 1).astype(np.float16) / 255,
        grey.astype(">u2"),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array)
        seeds.append(buffer.getvalue())
    return mended(seeds)


def image_target(folder: Path) -> Target:
    turn = 0

    def run(data: bytes) -> None:
        nonlocal turn
        turn += 1
        path = folder / ("image.npy" if data[:6] == b"\x93NUMPY" else "image.png")
        path.write_bytes(data)
        channels = 1 if turn % 2 else 3
        try:
            array = decode_image(path, channels)
        except ImageError as error:
            check_message(error, never="memory")
        else:
            assert array.ndim == 3 and array.shape[2] == channels and 0 < array.shape[0] * array.shape[1] <= PIXELS
            assert array.dtype in (np.uint8, np.uint16, np.float32)

    return run
