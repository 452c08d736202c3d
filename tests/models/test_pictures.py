"""Translating pictures as users have them: PIL images, NumPy arrays, and lists of any of these and of tensors."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import munit_fast as mf
from munit_fast.data import PixelFormat, decode_image, to_model_range
from munit_fast.models import pictures

Array = np.ndarray[Any, Any]


@pytest.fixture
def model(small_config: dict[str, Any]) -> mf.MUNIT:
    """From colour to grey."""
    torch.manual_seed(0)
    return mf.MUNIT(mf.make_config(small_config | {"input_dim_b": 1})).eval()


@pytest.fixture
def unit(small_config: dict[str, Any]) -> mf.UNIT:
    torch.manual_seed(0)
    return mf.UNIT(small_config).eval()


def pixels(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape, np.uint8)


def floats(*shape: int, dtype: type = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).uniform(-1, 1, shape).astype(dtype)


def tensor(*images: Array) -> Tensor:
    """Byte images [H, W, C] as [N, C, H, W] in [-1, 1]."""
    return torch.stack([to_model_range(image) for image in images])


def as_bytes(y: Tensor) -> Array:
    """[..., C, H, W] in [-1, 1] as [..., H, W, C] in 0..255."""
    return ((y.float() + 1) / 2 * 255).round().byte().movedim(-3, -1).numpy()


def arrays(images: list[Image.Image]) -> list[Array]:
    return [np.asarray(image) for image in images]


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- one kind at a time, against the tensor path


@pytest.mark.parametrize("size", [(32, 40), (1, 1), (33, 46)])
def test_a_pil_image_gives_pil_images(model: mf.MUNIT, size: tuple[int, int]) -> None:
    x, style = pixels(*size, 3), torch.randn(2, 3)
    y = model.translate(Image.fromarray(x), style=style)
    assert isinstance(y, list) and all(isinstance(image, Image.Image) and image.mode == "L" for image in y)
    assert np.array_equal(arrays(y), as_bytes(model.translate(tensor(x), style=style))[0, ..., 0])

    back = model.translate(y[0], "b2a", style=style)
    assert [image.mode for image in back] == ["RGB", "RGB"]
    assert back[0].size == (size[1], size[0])
    grey = np.asarray(y[0])[:, :, None]
    assert np.array_equal(arrays(back), as_bytes(model.translate(tensor(grey), "b2a", style=style))[0])


def test_byte_arrays(model: mf.MUNIT) -> None:
    x, style = pixels(3, 30, 41, 3), torch.randn(2, 3)
    expected = as_bytes(model.translate(tensor(*x), style=style))
    y = model.translate(x, style=style)
    assert y.dtype == np.uint8 and y.shape == (3, 2, 30, 41, 1) and y.flags.c_contiguous
    assert np.array_equal(y, expected)
    one = model.translate(x[1], style=style)
    assert one.shape == (2, 30, 41, 1) and one.flags.c_contiguous
    assert np.array_equal(one, as_bytes(model.translate(tensor(x[1]), style=style))[0])
    assert np.array_equal(model.translate(np.asfortranarray(x[1]), style=style), one)
    turned = x[0, ::-1, ::-1]  # negative strides
    assert np.array_equal(model.translate(turned, style=style), model.translate(turned.copy(), style=style))


def test_arrays_of_one_channel_may_leave_its_axis_out(model: mf.MUNIT) -> None:
    x, style = pixels(30, 41), torch.randn(2, 3)
    y = model.translate(x, "b2a", style=style)
    assert y.shape == (2, 30, 41, 3)
    assert np.array_equal(y, model.translate(x[:, :, None], "b2a", style=style))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floating_arrays_keep_their_dtype(model: mf.MUNIT, dtype: Any) -> None:
    x, style = floats(2, 30, 41, 3).astype(dtype), torch.randn(2, 3)
    y = model.translate(x, style=style)
    assert y.dtype == np.dtype(dtype) and y.shape == (2, 2, 30, 41, 1) and y.flags.c_contiguous
    native = torch.from_numpy(x.astype(x.dtype.newbyteorder("="))).movedim(-1, 1).contiguous()
    assert np.array_equal(y, model.translate(native, style=style).movedim(-3, -1).numpy())
    assert np.array_equal(model.translate(x[0], style=style), model.translate(x[:1], style=style)[0])


def test_unit(unit: mf.UNIT) -> None:
    x = pixels(2, 30, 41, 3)
    expected = unit.translate(tensor(*x), "b2a")
    assert np.array_equal(unit.translate(x, "b2a"), as_bytes(expected))
    y = unit.translate([Image.fromarray(image) for image in x], "b2a")
    assert [len(images) for images in y] == [1, 1]
    assert np.array_equal([arrays(images) for images in y], as_bytes(expected))
    one = unit.translate(Image.fromarray(x[0]), "b2a")
    assert np.array_equal(arrays(one), as_bytes(unit.translate(tensor(x[0]), "b2a"))[0])
    assert torch.equal(unit.translate(list(tensor(*x)), "b2a")[1], expected[1])


# -- PIL images are converted as files are


def test_every_mode_is_converted_as_the_file_would_be(model: mf.MUNIT, tmp_path: Path) -> None:
    colour = Image.fromarray(pixels(20, 24, 3))
    transparent = colour.copy()
    transparent.putalpha(Image.fromarray(pixels(20, 24)))
    palette = colour.convert("P")
    palette.info["transparency"] = 3
    deep = Image.fromarray(np.linspace(0, 65535, 480).astype(np.uint16).reshape(20, 24))
    real = Image.fromarray(np.linspace(0, 1, 480, dtype=np.float32).reshape(20, 24))
    images = {image.mode: image for image in (transparent, palette, deep, real)}
    images |= {mode: colour.convert(mode) for mode in ("1", "L", "LA", "RGB", "CMYK", "I")}
    others = {"La": transparent.convert("LA").convert("La"), "RGBa": transparent.convert("RGBa")}
    others |= {mode: colour.convert(mode) for mode in ("LAB", "HSV", "RGBX", "PA")}
    assert {"P", "RGBA", "I;16", "F"} <= set(images)
    style = torch.randn(1, 3)
    for background in (0, 255):
        model.config.background = background
        for mode, image in images.items():
            path = tmp_path / f"{mode.replace(';', '')}.{'tif' if mode in ('CMYK', 'F') else 'png'}"
            # Files of 32 bits need a range; as "I", Pillow opened files of 16.
            (Image.fromarray(np.asarray(image).astype(np.uint16)) if mode == "I" else image).save(path)
            for direction, channels in (("a2b", 3), ("b2a", 1)):
                x = to_model_range(decode_image(path, PixelFormat(channels, background=background)))[None]
                expected = as_bytes(model.translate(x, direction, style=style)).squeeze()
                found = np.asarray(model.translate(image, direction, style=style)[0])
                assert np.array_equal(found, expected), (mode, background, direction)
        for mode, image in others.items():  # modes that are not saved as PNG or TIFF here
            plain = image.convert("LA" if mode == "La" else "RGBA" if mode == "RGBa" else "RGB")
            for direction in ("a2b", "b2a"):
                found = arrays(model.translate(image, direction, style=style))
                assert np.array_equal(found, arrays(model.translate(plain, direction, style=style))), (mode, background)


def test_refused_values_of_a_pil_image_say_what_works(model: mf.MUNIT) -> None:
    for dtype in (np.float32, np.int32):
        image = Image.fromarray(pixels(8, 8).astype(dtype) * (1 if dtype is np.float32 else -1))
        with pytest.raises(ValueError, match=r"^x: .*image\.convert\(\"RGB\"\)"):
            model.translate(image)


def test_the_bundled_model_sees_transparent_pictures_on_white() -> None:
    model = mf.MUNIT.from_pretrained("openmoji-lines2color")
    clear, white = Image.new("RGBA", (64, 64), (0, 0, 0, 0)), Image.new("RGB", (64, 64), "white")
    for drawing in (clear, white):
        drawing.paste("black", (20, 20, 40, 24))
    style = torch.randn(1, 8)
    assert np.array_equal(arrays(model.translate(clear, style=style)), arrays(model.translate(white, style=style)))


def test_an_image_is_turned_as_its_exif_orientation_says(model: mf.MUNIT) -> None:
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    file = BytesIO()
    Image.fromarray(pixels(20, 24, 3)).save(file, "PNG", exif=exif)
    image = Image.open(file)
    style = torch.randn(1, 3)
    turned, upright = (model.translate(x, style=style)[0] for x in (image, ImageOps.exif_transpose(image)))
    assert turned.size == (20, 24) and np.array_equal(np.asarray(turned), np.asarray(upright))
    flat = Image.fromarray(pixels(20, 24, 3))
    assert [found[0].size for found in model.translate([flat, image], style=style)] == [(24, 20), (20, 24)]


def test_a_damaged_file_behind_an_image_is_named(model: mf.MUNIT) -> None:
    file = BytesIO()
    Image.fromarray(pixels(40, 40, 3)).save(file, "PNG")
    broken = Image.open(BytesIO(file.getvalue()[:2000]))
    with pytest.raises(ValueError, match=r"^x\[1\]: .*truncated"):
        model.translate([Image.new("RGB", (8, 8)), broken])
    with pytest.raises(ValueError, match=r"^x: .*70000"):
        model.translate(Image.fromarray(np.full((8, 8), 70000, np.int32)))


# -- lists


def test_a_list_keeps_order_kinds_and_sizes(model: mf.MUNIT) -> None:
    a, b, c, d = pixels(20, 24, 3), pixels(33, 18, 3), pixels(20, 24, 3, seed=1), floats(20, 24, 3, dtype=np.float16)
    e = tensor(pixels(20, 24, 3, seed=2))[0].double()
    style = torch.randn(2, 3)
    y = model.translate([a, Image.fromarray(b), Image.fromarray(c), d, e], style=style)
    same = torch.stack([*tensor(a, c), torch.from_numpy(d).float().movedim(-1, 0), e.float()])
    expected = model.translate(same, style=style)
    assert isinstance(y, list) and len(y) == 5
    assert y[0].dtype == np.uint8 and np.array_equal(y[0], as_bytes(expected[0]))
    assert np.array_equal(arrays(y[1]), as_bytes(model.translate(tensor(b), style=style))[0, ..., 0])
    assert np.array_equal(arrays(y[2]), as_bytes(expected[1])[..., 0])
    assert y[3].dtype == np.float16 and np.array_equal(y[3], expected[2].movedim(-3, -1).numpy().astype(np.float16))
    assert y[4].dtype == torch.float64 and torch.equal(y[4], expected[3].double()) and not y[4].requires_grad
    assert len(model.translate((a, b), style=style)) == 2


def test_batches_are_bounded(model: mf.MUNIT, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    forward = model.gen_a.enc_content.forward

    def watched(x: Tensor) -> Tensor:
        seen.append(list(x.shape))
        return forward(x)

    monkeypatch.setattr(model.gen_a.enc_content, "forward", watched)
    sizes = [(16, 16)] * 5 + [(24, 20)] * 2 + [(16, 16)] * 6
    model.translate([pixels(*size, 3) for size in sizes])
    assert [shape[0] for shape in seen] == [8, 3, 2] and seen[2][2:] == [24, 20]
    seen.clear()
    model.translate(pixels(9, 16, 16, 3))
    assert [shape[0] for shape in seen] == [8, 1]
    seen.clear()
    monkeypatch.setattr(pictures, "MAX_BATCH_PIXELS", 2 * 16 * 16 + 1)
    model.translate([pixels(16, 16, 3)] * 3 + [pixels(64, 64, 3)] * 2)
    assert [shape[0] for shape in seen] == [2, 1, 1, 1]


@pytest.mark.parametrize("given", [generator, lambda: None])
def test_random_styles_are_those_of_one_tensor(model: mf.MUNIT, given: Callable[[], torch.Generator | None]) -> None:
    x = [pixels(16, 16, 3, seed=i) for i in range(10)]
    other = pixels(24, 20, 3)
    torch.manual_seed(3)
    expected = model.translate(tensor(*x), num_styles=2, generator=given())
    torch.manual_seed(3)
    y = model.translate([Image.fromarray(image) for image in [*x[:4], other, *x[5:]]], num_styles=2, generator=given())
    for i in (*range(4), *range(5, 10)):
        wanted = as_bytes(expected[i])[..., 0].astype(int)
        assert np.abs(np.array(arrays(y[i])).astype(int) - wanted).max() <= 1  # other batches, other roundings
    torch.manual_seed(3)
    codes = torch.randn(10, 2, 3, generator=given())
    alone = model.translate(Image.fromarray(other), style=codes[4])
    assert np.array_equal(arrays(y[4]), arrays(alone))


def test_codes_of_each_image_follow_it(model: mf.MUNIT) -> None:
    x = [pixels(16, 16, 3), pixels(20, 24, 3), pixels(16, 16, 3, seed=1)]
    codes = torch.randn(3, 2, 3)
    y = model.translate(x, style=codes)
    assert np.array_equal(y[1], model.translate(x[1], style=codes[1]))
    assert np.array_equal(y[2], as_bytes(model.translate(tensor(x[0], x[2]), style=codes[[0, 2]]))[1])


# -- styles


def test_styles_of_pictures(model: mf.MUNIT) -> None:
    x = tensor(pixels(16, 16, 3))
    small, large = pixels(16, 20), pixels(33, 30)
    code = [model.encode_style(tensor(image[:, :, None]), "b") for image in (small, large)]
    for style in (Image.fromarray(small), small, small[:, :, None], small[None, :, :, None], [small]):
        assert torch.equal(model.encode_style(style, "b"), code[0]) and code[0].shape == (1, 3)
        assert torch.equal(model.translate(x, style=style), model.translate(x, style=code[0]))
    mixed = [Image.fromarray(small), large, tensor(small[:, :, None])[0]]
    codes = model.encode_style(mixed, "b")
    torch.testing.assert_close(codes, torch.cat([code[0], code[1], code[0]]))
    assert torch.equal(codes[1:2], code[1])
    y = model.translate(pixels(16, 16, 3), style=mixed)
    assert np.array_equal(y, model.translate(pixels(16, 16, 3), style=codes))
    bright = floats(16, 20, 1)
    expected = model.encode_style(torch.from_numpy(bright).permute(2, 0, 1)[None], "b")
    assert torch.equal(model.encode_style(bright, "b"), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_as_an_array(model: mf.MUNIT, dtype: type) -> None:
    x, codes = pixels(16, 16, 3), torch.randn(4, 3)
    assert np.array_equal(model.translate(x, style=codes.numpy().astype(dtype)), model.translate(x, style=codes))
    assert torch.equal(
        model.translate(tensor(x), style=codes.numpy().astype(dtype)), model.translate(tensor(x), style=codes)
    )


def test_codes_of_each_image_as_an_array(model: mf.MUNIT) -> None:
    x, codes = pixels(2, 16, 16, 3), torch.randn(2, 4, 3)
    assert np.array_equal(model.translate(x, style=codes.numpy()), model.translate(x, style=codes))
    # Where codes have as many numbers as pictures have channels, an array of three axes is a picture.
    back, picture = pixels(2, 16, 16, 1), floats(16, 16, 3)
    expected = model.translate(back, "b2a", style=model.encode_style(picture, "a"))
    assert np.array_equal(model.translate(back, "b2a", style=picture), expected)


def test_the_number_of_styles(model: mf.MUNIT) -> None:
    x = pixels(16, 16, 3)
    for count in (np.int64(3), np.array(3)):
        assert np.array_equal(
            model.translate(x, num_styles=count, generator=generator()),
            model.translate(x, num_styles=3, generator=generator()),
        )
    for bad in (True, np.True_, 0, -1, 2.0, "2", None):
        with pytest.raises(ValueError, match="num_styles"):
            model.translate(x, num_styles=bad)


def test_the_precision_of_the_model(model: mf.MUNIT) -> None:
    model.double()
    x = pixels(16, 16, 3)
    style = torch.randn(1, 3, dtype=torch.float64)
    assert model.encode_style(Image.fromarray(x), "a").dtype == torch.float64
    assert np.array_equal(
        model.translate(x, style=style), as_bytes(model.translate(tensor(x).double(), style=style))[0]
    )


def test_a_model_in_bfloat16(model: mf.MUNIT) -> None:
    model.bfloat16()
    x, style = floats(16, 16, 3), torch.randn(2, 3)
    expected = model.translate(torch.from_numpy(x).permute(2, 0, 1)[None], style=style)[0].movedim(-3, -1)
    assert np.array_equal(model.translate(x, style=style), expected.numpy())
    assert len(model.translate(Image.fromarray(pixels(16, 16, 3)), style=Image.fromarray(pixels(16, 16)))) == 1


def test_under_autocast(model: mf.MUNIT) -> None:
    x, style = pixels(16, 16, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = as_bytes(model.translate(tensor(x), style=style))[0]
        assert np.array_equal(model.translate(x, style=style), expected)
        assert model.encode_style(Image.fromarray(x), "a").shape == (1, 3)


def test_nan_is_not_written_to_pixels(model: mf.MUNIT) -> None:
    for parameter in model.gen_b.dec.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        model.translate(pixels(16, 16, 3))


# -- errors


@pytest.mark.parametrize(
    ("x", "word"),
    [
        ("picture.png", r"^x .*path.*PIL\.Image\.open.*munit-fast translate"),
        (Path("picture.png"), r"^x .*path.*PIL\.Image\.open"),
        (["picture.png"], r"^x\[0\] .*path.*PIL\.Image\.open"),
        (None, r"^x .*NoneType"),
        (1.5, r"^x .*float"),
        ({"x": 1}, r"^x .*dict"),
        ([], r"^x .*empty list"),
        ((), r"^x .*empty tuple"),
        ([[pixels(8, 8, 3)]], r"^x\[0\] .*list.*nested"),
        ([pixels(8, 8, 3), 3], r"^x\[1\] .*int"),
        (pixels(3, 32, 40), r"^x .*\[H, W, 3\].*\[3, 32, 40\].*channels first.*transpose\(1, 2, 0\)"),
        (pixels(2, 3, 32, 40), r"^x .*\[2, 3, 32, 40\].*channels first.*transpose\(0, 2, 3, 1\)"),
        ([pixels(3, 32, 40)], r"^x\[0\] .*channels first.*x\[0\]\.transpose"),
        (pixels(8, 8), r"^x .*\[H, W, 3\].*\[8, 8\].*fromarray\(x\)"),
        (pixels(8, 8, 4), r"^x .*\[8, 8, 4\].*fromarray\(x\)"),
        (pixels(8, 8, 1), r"^x .*\[8, 8, 1\]"),
        (pixels(8), r"^x .*\[8\]"),
        (np.array(8, np.uint8), r"^x .*\[\]"),
        (pixels(1, 1, 8, 8, 3), r"^x .*\[1, 1, 8, 8, 3\]"),
        ([pixels(2, 8, 8, 3)], r"^x\[0\] .*\[2, 8, 8, 3\].*one by one"),
        (pixels(0, 8, 3), r"^x .*\[0, 8, 3\]"),
        (pixels(0, 8, 8, 3), r"^x .*\[0, 8, 8, 3\]"),
        (Image.new("RGB", (0, 8)), r"^x .*0×8"),
        (pixels(8, 8, 3) > 9, r"^x .*bool.*astype\(np\.uint8\) \* 255"),
        (pixels(8, 8, 3).astype(np.int32), r"^x .*uint8 .*int32"),
        (pixels(8, 8, 3).astype(np.int64), r"^x .*uint8 .*int64"),
        (pixels(8, 8, 3).astype(object), r"^x .*object"),
        (floats(8, 8, 3).astype(np.complex64), r"^x .*complex64"),
        (floats(8, 8, 3).astype(np.longdouble), r"^x .*float128|longdouble"),
        (pixels(8, 8, 3).astype(np.int16), r"^x .*a model with range_a"),
        (pixels(8, 8, 3).astype(np.int64), r"^x .*x\.astype\(np\.uint8\)"),
        (np.full((8, 8, 3), 1.0000001, np.float32), r"^x .*1\.0000001.*x\.clip\(-1, 1\)"),
        (np.full((8, 8, 3), np.nan), r"^x (?!.*astype)(?!.*\bnan\b).*finite"),
        (floats(8, 8, 3) * 255, r"^x .*\[-1, 1\].* / 127\.5|^x .*\[-1, 1\].*values from"),
        (np.full((8, 8, 3), np.nan, np.float32), r"^x .*finite"),
        (np.full((8, 8, 3), np.inf, np.float16), r"^x .*finite"),
        ([torch.rand(1, 3, 8, 8)], r"^x\[0\] .*\[3, H, W\].*\[1, 3, 8, 8\].*by itself"),
        ([torch.rand(1, 8, 8)], r"^x\[0\] .*\[1, 8, 8\]"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], r"^x\[0\] .*torch\.uint8"),
        ([torch.rand(3, 0, 8)], r"^x\[0\] .*\[3, 0, 8\]"),
    ],
)
def test_what_is_no_picture_is_named(model: mf.MUNIT, unit: mf.UNIT, x: Any, word: str) -> None:
    for translate in (model.translate, unit.translate):
        with pytest.raises(ValueError, match=word) as caught:
            translate(x)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=word):
        model.encode_style(x, "a")
    if x is not None:
        with pytest.raises(ValueError, match=re.sub(r"\bx\b", "style", word)):
            model.translate(torch.rand(1, 1, 8, 8), "b2a", style=x)


@pytest.mark.parametrize(
    ("style", "word"),
    [
        (floats(2, 5), r"^style .*\[S, 3\].*\[2, 5\]"),
        (np.full((2, 3), np.nan), r"^style .*finite"),
        (torch.full((2, 3), torch.nan), r"^style .*finite"),
        (floats(8, 8), r"^style .*\[S, 3\].*\[S, H, W, C\].*\[8, 8\]"),
        (floats(2, 4, 5), r"^style .*\[2, 4, 5\].*\[N, S, 3\]"),
        (floats(2, 4, 3), r"^style .*\[1, S, 3\].*\[2, 4, 3\]"),
        (np.zeros((2, 3), np.int64), r"^style .*\[N, S, 3\]"),
        (np.zeros(3), r"^style .*\[3\].*\[N, S, 3\]"),
        ([np.zeros(3)], r"^style\[0\] .*\[3\].*\[N, S, 3\]"),
        ([[0.0, 0.0, 0.0]], r"^style\[0\] .*\[N, S, 3\]"),
        ([0.0, 0.0, 0.0], r"^style\[0\] .*\[N, S, 3\]"),
        (torch.zeros(3), r"^style .*\[S, 3\]"),
        ([torch.zeros(3)], r"^style\[0\] .*\[3\].*stack"),
        ([], r"^style .*empty list"),
        ("style.png", r"^style .*path"),
    ],
)
def test_bad_styles_are_named(model: mf.MUNIT, style: Any, word: str) -> None:
    for x in (torch.rand(1, 3, 16, 16), pixels(16, 16, 3)):
        with pytest.raises(ValueError, match=word):
            model.translate(x, style=style)


def test_tensors_and_floats_need_no_pillow() -> None:
    code = (
        "import sys, torch, munit_fast as mf\n"
        "model = mf.MUNIT({'gen': {'dim': 4, 'mlp_dim': 8, 'style_dim': 3, 'n_res': 1}})\n"
        "model.translate(torch.zeros(1, 3, 16, 16))\n"
        "model.translate([torch.zeros(3, 16, 16)])\n"
        "model.translate(torch.zeros(16, 16, 3).numpy())\n"
        "assert 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- whole numbers in the values of a domain


def test_whole_numbers_go_in_and_out_in_the_values_of_their_domains() -> None:
    torch.manual_seed(0)
    gen = {"dim": 4, "n_res": 1, "mlp_dim": 8, "style_dim": 3}
    config = {"gen": gen, "input_dim_a": 1, "input_dim_b": 2, "range_a": [-1000, 1000], "range_b": [0, 16383]}
    model = mf.MUNIT(config).eval()
    counts, style = np.random.default_rng(0).integers(-1000, 1001, (16, 20, 1)), torch.randn(2, 3)
    expected = model.translate(torch.from_numpy(counts / 1000).permute(2, 0, 1)[None].float(), style=style)[0]
    for dtype in (np.int16, np.int32, ">i2"):
        found = model.translate(counts.astype(dtype), style=style)
        assert found.dtype == np.dtype(dtype) and found.shape == (2, 16, 20, 2)
        values = (expected.permute(0, 2, 3, 1).double().numpy() + 1) / 2 * 16383
        assert np.abs(found - values).max() < 0.51 and np.ptp(found) > 100
    with pytest.raises(ValueError, match="no PIL images of 2 channels"):
        model.translate(Image.new("L", (16, 16)))


def test_16_bit_arrays_keep_their_depth(model: mf.MUNIT) -> None:
    x, style = np.random.default_rng(0).integers(0, 65536, (16, 20, 3)).astype(np.uint16), torch.randn(1, 3)
    found = model.translate(x, style=style)
    of_floats = model.translate((x / 32767.5 - 1).astype(np.float64), style=style)
    assert found.dtype == np.uint16 and np.abs(found / 32767.5 - 1 - of_floats).max() < 1e-4
    assert len(np.unique(found)) > 200


def test_results_that_a_type_cannot_hold_are_refused_before_anything_is_translated() -> None:
    gen = {"dim": 4, "n_res": 1, "mlp_dim": 8, "style_dim": 3}
    ct = mf.MUNIT({"gen": gen, "input_dim_a": 1, "input_dim_b": 1, "range_b": [-1024, 3071]}).eval()
    x = np.full((16, 16, 1), 100)
    for dtype in (np.uint8, np.uint16):
        with pytest.raises(ValueError, match=r"x is uint.* -1024\.\.3071 \(range_b\); use x\.astype\(np\.int32\)"):
            ct.translate(x.astype(dtype))
    with pytest.raises(ValueError, match=r"range_a names no range.* range_a: \[0, 255\]"):
        ct.translate(x.astype(np.int16), "b2a")
    with pytest.raises(ValueError, match=r"use x\.round\(\)\.astype\(np\.int32\) for the values of range_b"):
        ct.translate(x.astype(np.float32), "b2a")


def test_pil_images_of_signed_numbers_work_with_a_range() -> None:
    gen = {"dim": 4, "n_res": 1, "mlp_dim": 8, "style_dim": 3}
    ct = mf.MUNIT({"gen": gen, "input_dim_a": 1, "range_a": [-1000, 1000]}).eval()
    values, style = np.random.default_rng(0).integers(-1000, 1001, (16, 20)).astype(np.int32), torch.randn(1, 3)
    found = ct.translate(Image.fromarray(values), style=style)[0]
    wanted = ct.translate((values[:, :, None] / 1000).astype(np.float32), style=style)[0]
    assert np.abs(np.asarray(found) - (wanted + 1) * 127.5).max() < 0.51
