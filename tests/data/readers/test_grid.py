"""TIFF of every depth, layout and option against what was written, and against libtiff.

Files come from tifffile; what ours gives must equal, to the bit, the array that was written, turned and told apart by
the few lines of NumPy here, and, where libtiff reads the file, its pixels too.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from munit_fast.data import ImageError, Picture
from munit_fast.data.readers import count_pages, read_picture

Array = np.ndarray[Any, Any]
DEPTHS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
PACKED = [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 18, 20, 24, 31]


@dataclass(frozen=True)
class Case:
    """How a file is written. `extra`: "", "straight", "premultiplied" or "bands"."""

    dtype: str = "u1"
    bits: int | None = None
    photometric: str = "minisblack"
    extra: str = ""
    planar: str = "contig"
    compression: str | None = None
    predictor: int | None = None
    byteorder: str = "<"
    tile: bool = False
    rows: int | None = None
    big: bool = False
    orientation: int | None = None

    def __str__(self) -> str:
        return "-".join(str(value) for value in self.__dict__.values() if value not in (None, "", False))

    @property
    def largest(self) -> float:
        kind, size = self.dtype[0], int(self.dtype[1])
        return 1.0 if kind == "f" else 2 ** (self.bits or 8 * size) - 1

    @property
    def base(self) -> int:
        return 3 if self.photometric == "rgb" else 1


def seen(stored: Array, orientation: int | None) -> Array:
    """By the specification: where row 0 and column 0 of what is stored are seen."""
    row0, column0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation or 1]
    if row0 in ("left", "right"):
        stored = stored.swapaxes(0, 1)
    stored = stored[::-1] if "bottom" in (row0, column0) else stored
    return stored[:, ::-1] if "right" in (row0, column0) else stored


def values(case: Case, height: int = 19, width: int = 37) -> Array:
    """[H, W, C] as it is stored; premultiplied colours are below their alpha."""
    channels = case.base + {"": 0, "straight": 1, "premultiplied": 1, "bands": 3}[case.extra]
    rng = np.random.default_rng(len(str(case)))
    dtype = np.dtype(case.dtype)
    if dtype.kind == "f":
        array = rng.random((height, width, channels)).astype(dtype)
    elif dtype.kind == "i":
        limits = np.iinfo(dtype)
        array = rng.integers(limits.min, limits.max, (height, width, channels), dtype, endpoint=True)
    else:
        array = rng.integers(0, int(case.largest), (height, width, channels), dtype, endpoint=True)
    if case.extra in ("straight", "premultiplied"):
        array[:3, :, -1], array[3:6, :, -1] = 0, case.largest
    if case.extra == "premultiplied":
        array[:, :, :-1] = np.minimum(array[:, :, :-1], array[:, :, -1:])
    return array


def write(path: Path, case: Case, array: Array) -> None:
    extra = {"straight": ["unassalpha"], "premultiplied": ["assocalpha"], "bands": ["unspecified"] * 3}.get(case.extra)
    stored = array.transpose(2, 0, 1) if case.planar == "separate" and array.shape[2] > 1 else array
    stored = stored[..., 0] if array.shape[2] == 1 else stored
    tags = [] if case.orientation is None else [(274, "H", 1, case.orientation, True)]
    tifffile.imwrite(
        path,
        stored,
        photometric=case.photometric,
        planarconfig=case.planar if array.shape[2] > 1 else None,
        extrasamples=extra,
        bitspersample=case.bits,
        compression=case.compression,
        predictor=case.predictor,
        byteorder=case.byteorder,
        tile=(16, 16) if case.tile else None,
        rowsperstrip=case.rows,
        bigtiff=case.big,
        extratags=tags,
        metadata=None,
    )


def expected(case: Case, array: Array) -> Picture:
    colours, alpha = array, None
    if case.extra in ("straight", "premultiplied"):
        colours, alpha = array[:, :, :-1], array[:, :, -1]
    if case.photometric == "miniswhite":
        colours = (int(case.largest) - colours.astype(object)).astype(array.dtype)
    limits: tuple[float, float] | None = (0.0, float(case.largest))
    if case.dtype[0] == "i" or (case.dtype[0] == "u" and (case.bits or 8 * int(case.dtype[1])) > 16):
        limits = None
    if case.extra == "premultiplied" and alpha is not None:
        exact = colours.astype(np.longdouble) * case.largest / np.maximum(alpha, alpha[alpha > 0].min())[:, :, None]
        exact = np.where(alpha[:, :, None] > 0, exact, 0)
        colours = (np.rint(exact) if case.dtype[0] == "u" else exact).astype(array.dtype)
    if case.bits in (1, 2, 4):
        factor, limits = 255 // int(case.largest), (0.0, 255.0)
        colours = colours * np.uint8(factor)
        alpha = None if alpha is None else alpha * np.uint8(factor)
    elif case.bits is not None and alpha is not None:
        alpha = np.rint(alpha * (np.iinfo(array.dtype).max / case.largest)).astype(array.dtype)
    turned = None if alpha is None else seen(alpha, case.orientation)
    return Picture(seen(colours, case.orientation), colours.shape[2] == 3 == case.base, turned, limits)


def of_libtiff(path: Path, case: Case) -> Array | None:
    """[H, W, C] by another decoder; None where it does not read such a file."""
    try:
        found = imagecodecs.tiff_decode(path.read_bytes())
    except Exception:
        return None
    if case.bits not in (None, 1) or found.dtype.kind != np.dtype(case.dtype).kind:
        return None
    if found.ndim == 3 and case.planar == "separate":
        found = found.transpose(1, 2, 0)
    return np.atleast_3d(found)


def grid() -> list[Case]:
    """Each layout alone, and a fixed choice of all their combinations."""
    layouts = [("contig", t, r) for t, r in ((True, None), (False, None), (False, 5))]
    layouts += [("separate", t, r) for t, r in ((True, None), (False, 5))]
    kinds = [("minisblack", ""), ("miniswhite", ""), ("rgb", "")]
    kinds += [(p, e) for p in ("minisblack", "rgb") for e in ("straight", "premultiplied", "bands")]
    codings = [(None, None), ("lzw", None), ("lzw", 2), ("zlib", 2), ("zlib", 3), ("packbits", None), ("zstd", 2)]
    codings += [("lzma", None), ("adobe_deflate", None), ("zlib", None), ("zstd", 3)]
    cases = [
        Case(dtype, None, photometric, extra, planar, compression, predictor, order, tile, rows, big, orientation)
        for (planar, tile, rows), (photometric, extra), (compression, predictor), dtype, order, big, orientation in (
            itertools.product(layouts, kinds, codings, DEPTHS, "<>", (False, True), (None, *range(1, 9)))
        )
        if not (predictor == 3 and dtype[0] != "f")
        and not (predictor == 2 and dtype[0] == "f")
        and not (photometric == "miniswhite" and dtype[0] != "u")
        and not (extra in ("straight", "premultiplied") and dtype[0] == "i")
        and not (extra == "premultiplied" and dtype == "u8")
        and not (photometric == "minisblack" and not extra and planar == "separate")
    ]
    packed = [
        Case(
            "u1" if bits < 9 else "u2" if bits < 17 else "u4", bits, photometric, extra, rows=rows
        )  # tifffile swaps bytes in big-endian ones
        for bits, (photometric, extra), rows in itertools.product(PACKED, kinds, (None, 5))
        if not (bits > 16 and extra in ("straight", "premultiplied"))
    ]
    return random.Random(0).sample(cases, 500) + random.Random(1).sample(packed, 200)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid") / "a.tif"


@pytest.mark.parametrize("case", grid(), ids=str)
def test_what_was_written_is_read(written: Path, case: Case) -> None:
    array = values(case)
    try:
        write(written, case, array)
    except (ValueError, NotImplementedError, KeyError, RuntimeError) as error:
        pytest.skip(f"tifffile does not write it: {error}")
    with written.open("rb") as file:
        found = read_picture("a.tif", file)
        file.seek(0)
        assert count_pages("a.tif", file) == 1
    wanted = expected(case, array)
    assert (found.limits, found.colour) == (wanted.limits, wanted.colour)
    assert found.pixels.dtype == wanted.pixels.dtype and found.pixels.dtype.isnative
    tolerance = 1 if case.extra == "premultiplied" and case.dtype[0] == "f" else 0  # unit in the last place
    if tolerance:
        np.testing.assert_allclose(found.pixels, wanted.pixels, rtol=1.5 * float(np.finfo(case.dtype).eps))
    else:
        assert np.array_equal(found.pixels, wanted.pixels)
    assert (found.alpha is None) == (wanted.alpha is None)
    assert wanted.alpha is None or (np.array_equal(found.alpha, wanted.alpha) and found.alpha.dtype == array.dtype)
    other = of_libtiff(written, case)
    assert other is None or np.array_equal(other.astype(array.dtype), array)


def test_the_grid_is_written_and_mostly_read_by_libtiff_too(written: Path) -> None:
    done = agreed = 0
    for case in grid()[::7]:
        try:
            write(written, case, values(case))
        except (ValueError, NotImplementedError, KeyError, RuntimeError):
            continue
        done += 1
        agreed += of_libtiff(written, case) is not None
    assert done >= 80 and agreed >= 30


def test_no_reason_is_left_out() -> None:
    assert len(set(grid())) == 700


_ = ImageError
