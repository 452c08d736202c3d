"""Results as the input was: depth, range and names of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import munit_fast as mf
from munit_fast.data import ImageSource, Picture
from munit_fast.translate import TranslateOptions, translate_files
from munit_fast.translate.names import output_names


def make(small_config: dict[str, Any], **given: Any) -> mf.MUNIT:
    torch.manual_seed(0)
    return mf.MUNIT(mf.make_config(small_config | given)).eval()


def array(dtype: str, low: float, high: float, channels: int = 1) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).uniform(low, high, (32, 32, channels))
    values[0, 0], values[0, 1] = low, high
    return (values if dtype.startswith("float") else values.round()).astype(dtype)


@pytest.mark.parametrize("extension", ["tif", "npy"])
def test_each_file_in_the_range_of_its_domain(small_config: dict[str, Any], tmp_path: Path, extension: str) -> None:
    model = make(small_config, input_dim_a=1, input_dim_b=4, range_a=[-1024, 3071], range_b=[0, 16383])
    ct = array("int16", -1024, 3071)
    np.save(tmp_path / "ct.npy", ct)
    options = TranslateOptions(num_style=1, extension=extension)
    result = translate_files(model, tmp_path / "ct.npy", tmp_path / "out", options)
    read = tifffile.imread if extension == "tif" else np.load
    output, copy = (read(path) for path in result.written)
    assert (copy.dtype, output.dtype, output.shape) == (np.int16, np.uint16, (32, 32, 4))
    assert np.array_equal(copy.reshape(ct.shape), ct)
    x = torch.from_numpy(((ct.astype(np.float64) + 1024) / 4095).astype(np.float32) * 2 - 1).permute(2, 0, 1)[None]
    expected = model.translate(x, style=mf_styles(model))[0, 0].double().permute(1, 2, 0).numpy()
    assert np.abs(output - (expected + 1) / 2 * 16383).max() <= 0.6


def mf_styles(model: mf.MUNIT) -> torch.Tensor:
    from munit_fast.translate import random_styles

    return random_styles(10, 1, model.config.gen.style_dim, 0)[None]


@pytest.mark.parametrize(
    ("dtype", "high", "extension", "expected"),
    [
        ("uint8", 255, "tif", "uint8"),
        ("uint16", 65535, "tif", "uint16"),
        ("float32", 1, "npy", "float32"),
        ("float64", 1, "tif", "float32"),
    ],
)
def test_as_deep_as_the_input(
    small_config: dict[str, Any], tmp_path: Path, dtype: str, high: int, extension: str, expected: str
) -> None:
    model = make(small_config)
    given = array(dtype, 0, high, 3)
    np.save(tmp_path / "picture.npy", given)
    options = TranslateOptions(num_style=1, extension=extension)
    result = translate_files(model, tmp_path / "picture.npy", tmp_path / "out", options)
    read = tifffile.imread if extension == "tif" else np.load
    output, copy = (read(path) for path in result.written)
    assert output.dtype == copy.dtype == expected
    assert np.abs(copy.astype(np.float64) - given).max() <= (0 if dtype[0] == "u" else 1e-6)


def test_sixteen_bits_in_png(small_config: dict[str, Any], tmp_path: Path) -> None:
    model = make(small_config, input_dim_a=1, input_dim_b=1)
    given = array("uint16", 0, 65535)
    np.save(tmp_path / "picture.npy", given)
    result = translate_files(model, tmp_path / "picture.npy", tmp_path / "out", TranslateOptions(num_style=1))
    seen = np.asarray(Image.open(result.written[1]))
    assert np.array_equal(seen.reshape(given.shape), given)


def test_what_does_not_fit_is_refused_before_anything_is_done(small_config: dict[str, Any], tmp_path: Path) -> None:
    model = make(small_config, input_dim_a=1, range_a=[-1024, 3071])
    np.save(tmp_path / "ct.npy", array("int16", -1024, 3071))
    with pytest.raises(ValueError, match=r"range_a is -1024\.\.3071; use --format tif or npy"):
        translate_files(model, tmp_path / "ct.npy", tmp_path / "out", TranslateOptions(num_style=1))
    assert not (tmp_path / "out").exists()
    only = TranslateOptions(num_style=1, output_only=True)  # domain b is 8 or 16 bits
    assert len(translate_files(model, tmp_path / "ct.npy", tmp_path / "out", only).written) == 1
    several = make(small_config, input_dim_b=5)
    with pytest.raises(ValueError, match="5 channels of input_dim_b"):
        translate_files(several, tmp_path / "ct.npy", tmp_path / "no", TranslateOptions(num_style=1))
    assert not (tmp_path / "no").exists()


def test_names_of_pages() -> None:
    assert output_names(["a/x.tif#0", "a/x.tif#1", "b.png"]) == ["a/x_page0", "a/x_page1", "b"]
    assert output_names(["x.tif#0", "x.tif#1"], alone=True) == ["x_page0", "x_page1"]
    assert output_names(["x.tif"], alone=True) == [""]
    assert output_names(["x.tif"]) == ["x"]
    assert output_names(["x.tif#1", "x.webp#1", "x_page1.png"]) == ["x_page1_tif", "x_page1_webp", "x_page1_png"]


def test_every_page_is_translated(small_config: dict[str, Any], tmp_path: Path) -> None:
    class Stack(ImageSource):
        def __init__(self) -> None:
            super().__init__("stack", ["x.tif"], "first")
            self.entries = [self.entries[0]._replace(page=page, pages=3) for page in range(3)]

        def read(self, i: int) -> Picture:
            return Picture(np.full((32, 32, 3), 40 * i, np.uint8), True, limits=(0.0, 255.0))

        def version(self, i: int) -> str:
            return "1"

    result = translate_files(make(small_config), Stack(), tmp_path / "out", TranslateOptions(num_style=2))
    names = [f"x_page{page}_{end}.png" for page in range(3) for end in ("000", "001", "input")]
    assert [path.name for path in result.written] == names
