"""A file's type is not its range: what is stated, measured, warned about and given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from munit_fast.config import make_config
from munit_fast.data import FileSource, ImageError, Picture, PixelFormat, decode_image, to_model_range
from munit_fast.data.measure import MEASURED_IMAGES, measure, resolve_ranges
from munit_fast.data.picture import type_limits

INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


def picture(pixels: np.ndarray, **more: Any) -> Picture:
    return Picture(pixels if pixels.ndim == 3 else pixels[:, :, None], limits=type_limits(pixels.dtype), **more)


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float16, np.float32, np.float64])
def test_a_stated_range_becomes_minus_one_to_one(dtype: type) -> None:
    pixels = np.array([[0, 30, 60, 90, 120]], dtype)
    x = to_model_range(PixelFormat(1, (30, 90)).apply(picture(pixels)))
    assert torch.allclose(x.flatten(), torch.tensor([-1.0, -1, 0, 1, 1]))


@given(st.integers(-(2**31), 2**31 - 2), st.integers(1, 2**20), st.integers(0, 2**20))
def test_values_come_back(low: int, width: int, offset: int) -> None:
    pixel_format = PixelFormat(1, (low, low + width))
    value = min(low + offset % (width + 1), 2**31 - 1)
    x = to_model_range(pixel_format.apply(picture(np.full((2, 3), value, np.int64)))).double()
    assert np.abs(pixel_format.values(x, np.int64) - value).max() <= width * 2.0**-22 + 0.5
    assert pixel_format.values(x, np.int64).shape == (2, 3, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_without_a_range_whole_numbers_of_files_keep_their_type(dtype: type) -> None:
    pixels = np.arange(24).astype(dtype).reshape(4, 6) * (10 if dtype is np.uint8 else 2500)
    array = PixelFormat(1).apply(picture(pixels))
    assert array.dtype == dtype and np.array_equal(array[:, :, 0], pixels)
    back = PixelFormat(1).values(to_model_range(array), dtype)
    assert back.dtype == dtype and np.array_equal(back[:, :, 0], pixels)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32, np.int32, np.uint64, np.int64])
def test_types_without_black_and_white_ask_for_a_range(dtype: type) -> None:
    kind = "signed" if np.dtype(dtype).kind == "i" else "unsigned"
    with pytest.raises(ImageError, match=rf"{kind} .*\(3\.\.3 here\); set range_b: \[low, high\], or auto"):
        PixelFormat(1, domain="b").apply(picture(np.full((2, 2), 3, dtype)))
    with pytest.raises(ImageError, match="range_b"):
        PixelFormat(1, domain="b").values(torch.zeros(1, 2, 2), dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("limits", [None, (0.0, 4.0)])
def test_values_that_are_not_finite_are_refused(bad: float, limits: tuple[float, float] | None) -> None:
    with pytest.raises(ImageError, match="NaN or infinite"):
        PixelFormat(1, limits).apply(picture(np.array([[0.5, bad]], np.float32)))
    with pytest.raises(ImageError, match="NaN or infinite"):
        PixelFormat(1, limits).values(torch.tensor([[[0.5, bad]]]), np.float32)


def test_floating_point_outside_0_to_1_names_the_key() -> None:
    with pytest.raises(ImageError, match=r"0\.\.1, not 0\.\.300; or set range_a"):
        PixelFormat(1, domain="a").apply(picture(np.array([[0, 300]], np.float32)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16])
@pytest.mark.parametrize("background", [0, 100, 255])
def test_hidden_colours_give_way_to_the_background(dtype: type, background: int) -> None:
    low, high = {np.int16: (-1000, 1000)}.get(dtype) or type_limits(np.dtype(dtype))
    opaque = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    hidden = np.full((4, 4, 1), low + (high - low) * 0.25, dtype)
    alpha = np.zeros((4, 4), dtype)
    alpha[:, 1], alpha[:, 2:] = opaque / 2, opaque
    pixel_format = PixelFormat(1, (low, high), background)
    x = to_model_range(pixel_format.apply(Picture(hidden, False, alpha, type_limits(hidden.dtype))))[0]
    grey = background / 255 * 2 - 1
    expected = [grey, (grey - 0.5) / 2, -0.5, -0.5]
    assert torch.allclose(x, torch.tensor(expected).expand(4, 4), atol=0.012 if dtype is np.uint8 else 2e-3)


@pytest.mark.parametrize(
    ("found", "wanted", "works"),
    [(1, 1, True), (1, 3, True), (3, 1, True), (4, 4, True), (7, 7, True), (2, 3, False), (4, 3, False), (1, 2, False)],
)
def test_channels(found: int, wanted: int, works: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, found), np.uint8)
    pixel_format = PixelFormat(wanted, domain="a")
    if works:
        assert pixel_format.apply(picture(pixels, colour=found == 3)).shape == (5, 6, wanted)
    else:
        with pytest.raises(ImageError, match=rf"has {found} channels where {wanted} .* input_dim_a: {found}"):
            pixel_format.apply(picture(pixels))


def test_transparency_is_a_channel_where_one_more_is_asked_for() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    alpha = pixels[:, :, 0] // 2
    alpha[0] = 0
    found = PixelFormat(4, background=100).apply(picture(pixels, colour=True, alpha=alpha))
    assert np.array_equal(found[:, :, 3], alpha) and (found[0, :, :3] == 100).all()
    assert np.array_equal(found[:, :, :3], PixelFormat(3, background=100).apply(picture(pixels, alpha=alpha)))
    ranged = PixelFormat(4, (0, 100)).apply(picture(pixels, colour=True, alpha=alpha))
    assert np.allclose(ranged[:, :, 3], alpha / 255, atol=1e-6)


def test_three_bands_that_are_no_colours_have_no_luma() -> None:
    with pytest.raises(ImageError, match="input_dim: 3"):
        PixelFormat(1).apply(picture(np.zeros((4, 4, 3), np.uint8)))


# -- measured over a set


def infrared(folder: Path, count: int = 4, low: int = 7000, high: int = 8391) -> FileSource:
    """A folder of 14-bit counts in 16-bit files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(low, high + 1, (40, 40)).astype(np.uint16)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    return FileSource(sorted(folder.iterdir()), folder)


def test_a_range_is_measured_over_the_set(tmp_path: Path) -> None:
    source = infrared(tmp_path / "a")
    values = np.concatenate([source.read(i).pixels.ravel() for i in range(4)])
    cfg, notes = resolve_ranges(make_config({"range_a": "auto", "range_b": [0, 1]}), {"a": source, "b": source})
    assert np.allclose(cfg.range_a, np.percentile(values, (0.1, 99.9)), atol=0.51) and cfg.range_b == [0, 1]
    assert len(notes) == 1 and "range_a: [7000.0, 8391.0]" in notes[0] and str(tmp_path / "a") in notes[0]
    assert cfg.limits("a") == tuple(cfg.range_a)


def test_a_measured_range_keeps_the_steps_of_infrared_counts(tmp_path: Path) -> None:
    source = infrared(tmp_path / "a", low=7000, high=7550)
    cfg, _ = resolve_ranges(make_config({"range_a": "auto"}), {"a": source})
    steps = len(np.unique(source.read(0).pixels))
    of_type, measured = (PixelFormat(1, limits).apply(source.read(0)) for limits in (None, cfg.limits("a")))
    assert len(to_model_range(of_type).bfloat16().unique()) < 10
    assert len(to_model_range(measured).unique()) > 0.98 * steps


def test_unmeasured_ranges_say_where_they_are_kept() -> None:
    with pytest.raises(ValueError, match=r"range_b: auto .*config\.yaml .* \[low, high\]"):
        make_config({"range_b": "auto"}).limits("b")


def test_a_set_that_uses_little_of_its_type_is_warned_about(tmp_path: Path) -> None:
    narrow, wide = infrared(tmp_path / "n"), infrared(tmp_path / "w", low=0, high=20000)
    cfg, notes = resolve_ranges(make_config({}), {"a": wide, "b": narrow})
    assert (cfg.range_a, cfg.range_b) == ("dtype", "dtype")
    assert len(notes) == 1 and "set range_b: [low, high], or auto" in notes[0] and "7000 to 8391" in notes[0]


def test_bad_images_do_not_count(tmp_path: Path) -> None:
    source = infrared(tmp_path / "a")
    (tmp_path / "a" / "0000.png").write_bytes(b"none")
    assert measure(source) is not None and measure(source).least >= 7000
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"none")
    assert measure(source) is None
    with pytest.raises(ImageError, match=r"range_a: auto: no image of .* can be read"):
        resolve_ranges(make_config({"range_a": "auto"}), {"a": source})


def test_a_set_of_one_value_has_no_range(tmp_path: Path) -> None:
    source = infrared(tmp_path / "a", low=9, high=9)
    with pytest.raises(ImageError, match=r"every value in .* is 9; set range_a"):
        resolve_ranges(make_config({"range_a": "auto"}), {"a": source})


def test_hidden_and_infinite_values_do_not_count(tmp_path: Path) -> None:
    class One(FileSource):
        def read(self, i: int) -> Picture:
            pixels = np.array([[5.0, 7, 1000], [np.nan, 6, 9]], np.float32)[:, :, None]
            return Picture(pixels, alpha=np.array([[1, 1, 0], [1, 1, 1]], np.float32), limits=(0.0, 1.0))

    found = measure(One([tmp_path / "a.png"], tmp_path))
    assert found is not None and (found.least, found.most) == (5, 9)


def test_large_sets_are_measured_by_a_part_of_them(tmp_path: Path) -> None:
    read = []

    class Many(FileSource):
        def read(self, i: int) -> Picture:
            read.append(i)
            return Picture(np.full((2, 2, 1), i, np.int16))

    found = measure(Many([tmp_path / f"{i}.png" for i in range(10 * MEASURED_IMAGES + 3)], tmp_path))
    assert len(read) <= MEASURED_IMAGES and found is not None and found.most > 9 * MEASURED_IMAGES


def test_signed_files_work_with_a_window(tmp_path: Path) -> None:
    pixels = np.linspace(-1024, 2784, 64).astype(np.int16).reshape(8, 8)
    np.save(tmp_path / "ct.npy", pixels)
    limits = make_config({"range_a": "W400 L40"}).limits("a")
    x = to_model_range(decode_image(tmp_path / "ct.npy", PixelFormat(1, limits)))[0].double()
    assert torch.allclose(x, torch.from_numpy((pixels.astype(float) - 40) / 200).clamp(-1, 1), atol=1e-6)


@pytest.mark.parametrize("shape", [(256, 256, 3), (512, 512, 4), (300, 256, 1)])
def test_every_channel_and_column_is_measured(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    class Bands(FileSource):
        def read(self, i: int) -> Picture:
            rng = np.random.default_rng(i)
            pixels = rng.integers(0, 1000, shape) + 1000 * np.arange(shape[2])
            pixels[:, 1::2] += 10_000 if shape[2] == 1 else 0  # every other column
            return Picture(pixels.astype(np.uint16), limits=(0.0, 65535.0))

    found = measure(Bands([tmp_path / f"{i}.png" for i in range(3)], tmp_path))
    most = 10_999 if shape[2] == 1 else 1000 * shape[2] - 1
    assert found is not None and found.least < 20 and found.most > most - 20


@pytest.mark.parametrize(("low", "high"), [(1013.05, 1013.35), (101.0, 101.0001), (-3e-9, 5e-9), (1e6, 3e6)])
def test_measured_limits_of_floating_point_hold_its_values(tmp_path: Path, low: float, high: float) -> None:
    class Floats(FileSource):
        def read(self, i: int) -> Picture:
            return Picture(np.linspace(low, high, 4000).reshape(40, 100, 1), limits=(0.0, 1.0))

    cfg, _ = resolve_ranges(make_config({"range_a": "auto"}), {"a": Floats([tmp_path / "a.tif"], tmp_path)})
    found = cfg.limits("a")
    width = high - low
    assert found is not None and abs(found[0] - low) < 0.01 * width and abs(found[1] - high) < 0.01 * width
    assert make_config({"range_a": cfg.range_a}).limits("a") == found


def test_limits_of_whole_numbers_are_whole(tmp_path: Path) -> None:
    class Counts(FileSource):
        def read(self, i: int) -> Picture:
            return Picture(np.arange(3, 2900, dtype=np.uint16).reshape(-1, 1, 1), limits=(0.0, 65535.0))

    cfg, _ = resolve_ranges(make_config({"range_a": "auto"}), {"a": Counts([tmp_path / "a.tif"], tmp_path)})
    assert all(float(value).is_integer() for value in cfg.range_a)


def test_a_small_first_image_of_8_bits_does_not_hide_a_narrow_set(tmp_path: Path) -> None:
    source = infrared(tmp_path / "a")
    Image.new("L", (4, 4), 9).save(tmp_path / "a" / "0000.png")
    found = measure(source)
    assert found is not None and (found.dtype, found.whole) == (np.uint16, True)
