"""Slides that are read by regions for the fuzzer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from hypothesis import strategies as st

from helpers.fuzz_inputs import Target, check_message, mutated
from munit_fast.data import ImageError, PixelFormat
from munit_fast.tiles.slides import MAX_SIDE, open_slide


def slide_inputs() -> st.SearchStrategy[bytes]:
    """TIFF files of every layout that is read by regions, with some bytes changed."""
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (40, 50, 3), np.uint8), rng.integers(0, 65536, (40, 50), np.uint16)
    rgba = np.concatenate([colour, colour[:, :, :1]], axis=2)
    layouts: list[dict[str, Any]] = [
        {},
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"tile": (16, 32)},
        {"tile": (16, 32), "compression": "zlib", "predictor": True},
        {"tile": (32, 32), "compression": "packbits"},
    ]
    pictures: list[tuple[Any, dict[str, Any]]] = [
        (colour, {"photometric": "rgb"}),
        (np.ascontiguousarray(colour.transpose(2, 0, 1)), {"photometric": "rgb", "planarconfig": "separate"}),
        (rgba, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (grey, {"photometric": "minisblack"}),
    ]
    pictures.append((grey.astype(np.float32) / 65535, {"photometric": "minisblack"}))
    cases = [(pixels, options | layout) for pixels, options in pictures for layout in layouts]
    cases.append((colour, {"photometric": "rgb", "tile": (16, 16), "compression": "jpeg"}))
    seeds = []
    for i, (pixels, options) in enumerate(cases):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, bigtiff=i % 3 == 0, byteorder="<>"[i % 2]) as writer:
            writer.write(pixels, metadata=None, subifds=i % 2, **options)
            if i % 2:
                writer.write(pixels, metadata=None, subfiletype=1, **options)
        seeds.append(buffer.getvalue())

    # Offsets and tags lie in few bytes: changes at the beginning and at the end reach them more often.
    def changed(data: bytes, at: int, value: bytes, from_end: bool) -> bytes:
        at = len(data) - at if from_end else at
        return data[:at] + value + data[at + len(value) :]

    places = st.integers(4, 300), st.binary(min_size=1, max_size=4), st.booleans()
    heads = st.builds(changed, st.sampled_from(seeds), *places)
    return mutated(seeds) | heads


def slide_target(folder: Path) -> Target:
    turn = 0

    def run(data: bytes) -> None:
        nonlocal turn
        turn += 1
        path = folder / "slide.tif"
        path.write_bytes(data)
        channels = 1 if turn % 2 else 3
        try:
            with open_slide(path, turn % 5 // 4, PixelFormat(channels)) as slide:
                height, width = slide.height, slide.width
                assert 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE
                boxes = [
                    (0, min(height, 20), 0, min(width, 20)),
                    (max(0, height - 30), height, max(0, width - 9), width),
                ]
                for top, bottom, left, right in boxes:
                    array = slide.read(top, bottom, left, right)
                    assert array.shape == (bottom - top, right - left, channels) and array.dtype.itemsize <= 4
                    assert array.dtype in (np.uint8, np.uint16, np.float32)
        except ImageError as error:
            check_message(error, never="memory")

    return run
