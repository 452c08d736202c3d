"""Results in files: the values of the domain, as deep as the input, as other readers see them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from munit_fast.data import ImageError, PixelFormat
from munit_fast.data.readers import read_picture
from munit_fast.data.writers import FORMATS, check_format, encode_image, result_dtype

Limits = tuple[float, float] | None


def image(channels: int = 3, seed: int = 0) -> torch.Tensor:
    found = torch.rand(channels, 6, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    found[:, 0, 0], found[:, 0, 1] = -1, 1
    return found


def encoded(name: str, channels: int, limits: Limits, source: str, x: torch.Tensor | None = None) -> bytes:
    x = image(channels) if x is None else x
    return encode_image(x, name, PixelFormat(channels, limits), source, file="x")


@pytest.mark.parametrize(
    ("name", "limits", "source", "expected"),
    [
        *((name, None, "uint8", "uint8") for name in FORMATS),
        *((name, None, "uint16", "uint16") for name in ("png", "tif", "npy")),
        *((name, None, "float64", "float32") for name in ("tif", "npy")),
        ("png", None, "float32", "uint16"),
        ("jpg", None, "uint16", "uint8"),
        ("png", None, "int16", "uint16"),  # of an input whose own range is stated
        ("tif", (0, 255), "uint16", "uint8"),
        ("tif", (0, 16383), "uint8", "uint16"),
        ("tif", (0, 16383), "float32", "float32"),
        ("png", (0, 16383), "float32", "uint16"),
        ("npy", (-1024, 3071), "int16", "int16"),
        ("npy", (-1024, 3071), "uint8", "int16"),
        ("npy", (-1, 70000), "int32", "int32"),
        ("npy", (0, 2.0**32), "uint32", "float32"),
        ("tif", (0.5, 10), "uint16", "float32"),
        ("webp", (-1024, 3071), "int16", "uint8"),
    ],
)
def test_types(name: str, limits: Limits, source: str, expected: str) -> None:
    form = PixelFormat(1, limits)
    check_format(name, form)
    assert result_dtype(name, form, source) == expected


@pytest.mark.parametrize(
    ("name", "channels", "limits", "said"),
    [
        ("gif", 3, None, "gif"),
        ("png", 2, None, "2 channels of input_dim_b; use --format tif or npy"),
        ("png", 5, None, "5 channels"),
        ("jpg", 4, None, "4 channels"),
        ("png", 1, (-1024, 3071), r"range_b is -1024\.\.3071; use --format tif or npy"),
        ("png", 1, (0, 0.5), r"range_b is 0\.\.0\.5"),
        ("png", 1, (0, 65536), "65536"),
    ],
)
def test_what_a_format_cannot_hold(name: str, channels: int, limits: Limits, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_format(name, PixelFormat(channels, limits, domain="b"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("limits", "source"),
    [
        (None, "uint8"),
        (None, "uint16"),
        (None, "float32"),
        ((0, 16383), "uint16"),
        ((-1024, 3071), "int16"),
        ((-5, 70000), "int32"),
        ((-0.25, 4.5), "float32"),
    ],
)
def test_values_are_those_of_the_domain(channels: int, limits: Limits, source: str) -> None:
    x = image(channels)
    low, high = limits or {"uint8": (0, 255), "uint16": (0, 65535), "float32": (0, 1)}[source]
    expected = low + (x.double().movedim(0, -1).numpy() + 1) / 2 * (high - low)
    whole = source != "float32"
    names = ["tif", "npy"] + ["png"] * (channels in (1, 3, 4) and whole and low >= 0)
    for name in names:
        data = encoded(name, channels, limits, source)
        found = other_reader(name, data, channels)
        assert found.dtype == result_dtype(name, PixelFormat(channels, limits), source)
        assert np.abs(found.astype(np.float64) - expected).max() <= (0.5001 if whole else 1e-6 * (high - low))
        assert found.min() == low and found.max() == high


def other_reader(name: str, data: bytes, channels: int) -> np.ndarray[Any, Any]:
    if name == "npy":
        found = np.load(io.BytesIO(data))
    elif name == "tif":
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            [page] = file.pages
            assert page.photometric.name == ("RGB" if channels == 3 else "MINISBLACK")  # type: ignore[union-attr]
            assert page.planarconfig.name == "CONTIG"  # type: ignore[union-attr]
            found = page.asarray()
    else:
        import imageio.v3

        found = imageio.v3.imread(data, extension=".png") if channels < 4 else _png(data)
    return found.reshape(6, 5, channels)


def _png(data: bytes) -> np.ndarray[Any, Any]:
    import imagecodecs

    return imagecodecs.png_decode(data)


def test_what_is_written_is_read_again() -> None:
    x = image(3)
    for source in ("uint8", "uint16", "float32"):
        data = encoded("tif" if source == "uint8" else "npy", 3, None, source)
        picture = read_picture(f"x.{'tif' if source == 'uint8' else 'npy'}", io.BytesIO(data))
        again = PixelFormat(3).apply(picture)
        white = {"uint8": 255, "uint16": 65535, "float32": 1}[source]
        assert np.abs(again / white * 2 - 1 - x.movedim(0, -1).numpy()).max() <= 1.01 / white + 1e-6


@pytest.mark.parametrize("name", ["jpg", "bmp", "ppm", "webp"])
def test_the_others_show_black_to_white(name: str) -> None:
    x = torch.linspace(-1, 1, 64).expand(1, 64, 64).contiguous()
    seen = np.asarray(Image.open(io.BytesIO(encoded(name, 1, (-1024, 3071), "int16", x))).convert("L")).astype(int)
    assert np.abs(seen - np.linspace(0, 255, 64)).max() <= (0.51 if name in ("bmp", "ppm") else 12)


def test_what_cannot_be_written_names_the_file() -> None:
    x = image(1)
    x[0, 2, 2] = torch.nan
    for name in FORMATS:
        with pytest.raises(ImageError, match=r"^x: .*NaN"):
            encoded(name, 1, None, "uint8", x)
    with pytest.raises(ImageError, match=r"x: .*17000.*use png"):
        encoded("webp", 1, None, "uint8", torch.zeros(1, 1, 17000))


def test_files_are_the_same_each_time() -> None:
    for name in FORMATS:
        assert encoded(name, 3, None, "uint8") == encoded(name, 3, None, "uint8")
