"""What the page computes: the numbers of the model itself, and refusals in words."""

from __future__ import annotations

import json
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from munit_fast.app import translation
from munit_fast.app.translation import Limits, Style, Translator, UserError
from munit_fast.data import decode_image, resize_short_side, save_image, to_model_range
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.translate import TranslateOptions, translate_files

PRETRAINED = "openmoji-lines2color"


@pytest.fixture(scope="module")
def bundled() -> Translator:
    return Translator(MUNIT.from_pretrained(PRETRAINED))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    return path


def test_translations_are_those_of_the_model(bundled: Translator, picture: Path) -> None:
    image = bundled.read(picture, "a")
    assert torch.equal(image, to_model_range(resize_short_side(decode_image(picture, 3), 64)))
    styles = bundled.random_styles(3, 4)
    for direction in translation.DIRECTIONS:
        wanted = bundled.model.translate(image[None], direction, style=torch.stack([s.code for s in styles]))[0]
        assert torch.equal(bundled.translate(image, direction, styles), wanted)


def test_many_styles_of_a_large_picture_go_in_parts(picture: Path) -> None:
    model = MUNIT.from_pretrained(PRETRAINED)
    image = Translator(model).read(picture, "a")
    pixels = image.shape[1] * image.shape[2]
    whole, parts = Translator(model), Translator(model, limits=Limits(translated_pixels=2 * pixels + 1))
    calls: list[int] = []
    translate = model.translate

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(kwargs["style"]))
        return translate(*args, **kwargs)

    styles = whole.random_styles(0, 5)
    wanted = whole.translate(image, "a2b", styles)
    model.translate = counted  # type: ignore[method-assign]
    assert torch.allclose(parts.translate(image, "a2b", styles), wanted, atol=1e-5)
    assert calls == [2, 2, 1]


def test_a_seed_gives_the_style_that_the_command_gives(bundled: Translator, picture: Path, tmp_path: Path) -> None:
    assert torch.equal(bundled.random_styles(7, 3)[2].code, bundled.random_style(9).code)
    assert not torch.equal(bundled.random_style(9).code, bundled.random_style(10).code)
    options = TranslateOptions(num_style=1, seed=9)
    translate_files(bundled.model, picture, tmp_path / "out", options)
    found = bundled.translate(bundled.read(picture, "a"), "a2b", [bundled.random_style(9)])[0]
    save_image(found, tmp_path / "page.png")
    written = Image.open(tmp_path / "out/output000.png")
    assert Image.open(tmp_path / "page.png").tobytes() == written.tobytes()
    assert Image.open(BytesIO(translation.png_bytes(translation.to_picture(found)))).tobytes() == (
        Image.open(tmp_path / "page.png").tobytes()
    )


def test_transparent_areas_show_the_background_of_the_model(bundled: Translator, tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 255, 0, 0)).save(tmp_path / "clear.png")
    assert bundled.read(tmp_path / "clear.png", "a").unique().tolist() == [1]
    other = Translator(MUNIT(bundled.model.config.model_copy(update={"background": 0})))
    assert other.read(tmp_path / "clear.png", "a").unique().tolist() == [-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(bundled: Translator, picture: Path, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = tmp_path / "turned.png"
    Image.open(picture).save(turned, exif=exif)
    ImageOps.exif_transpose(Image.open(turned)).save(tmp_path / "upright.png")
    upright = decode_image(tmp_path / "upright.png", 3)
    assert torch.equal(bundled.read(turned, "a", native=True), to_model_range(upright))


def bad_pictures(folder: Path) -> dict[str, Path]:
    """Files that are no picture of a use, by what is wrong with them."""
    files = {name: folder / f"{name}.png" for name in ("text", "empty", "truncated", "huge", "long", "zero")}
    files["text"].write_text("not a picture")
    files["empty"].write_bytes(b"")
    good = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(good, "PNG")
    files["truncated"].write_bytes(good.getvalue()[:2000])
    for name, size in (("huge", (20000, 20000)), ("zero", (0, 10))):
        header = bytearray(good.getvalue())
        header[16:24] = b"".join(side.to_bytes(4, "big") for side in size)
        header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
        files[name].write_bytes(header)
    Image.new("L", (1, 5000)).save(files["long"])
    return files


@pytest.mark.parametrize("what", ["text", "empty", "truncated", "huge", "long", "zero"])
def test_bad_pictures_are_refused_in_one_line(bundled: Translator, tmp_path: Path, what: str) -> None:
    path = bad_pictures(tmp_path)[what]
    with pytest.raises(UserError) as refused:
        bundled.read(path, "a")
    message = str(refused.value)
    assert path.name in message and str(tmp_path) not in message and "\n" not in message


def test_large_uploads_are_refused_before_they_are_decoded(bundled: Translator, picture: Path) -> None:
    strict = Translator(bundled.model, limits=Limits(pixels=70 * 90 - 1))
    with pytest.raises(UserError, match="90x70"):
        strict.read(picture, "a")
    assert Translator(bundled.model, limits=Limits(pixels=70 * 90)).read(picture, "a").shape[1] == 64


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.ppm", "a.npy", "a.webp", "a.bmp", "a.gif"])
def test_every_kind_is_refused_by_its_header(bundled: Translator, tmp_path: Path, name: str) -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    np.save(tmp_path / name, pixels) if name == "a.npy" else Image.fromarray(pixels).save(tmp_path / name)
    strict = Translator(bundled.model, limits=Limits(pixels=199))
    with pytest.raises(UserError, match=rf"^{name}: 20x10 is more than 199 pixels; make it smaller$"):
        strict.read(tmp_path / name, "a")
    assert bundled.read(tmp_path / name, "a").shape[1] == 64


def test_an_animation_gives_its_first_frame(bundled: Translator, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    red, _, blue = bundled.read(tmp_path / "a.gif", "b").mean((1, 2)).tolist()
    assert red > 0.9 and blue < -0.9


def test_native_size_is_bounded(bundled: Translator, tmp_path: Path) -> None:
    Image.new("RGB", (1025, 1025)).save(tmp_path / "large.png")
    assert bundled.read(tmp_path / "large.png", "a").shape == (3, 64, 64)
    with pytest.raises(UserError, match=r"large\.png"):
        bundled.read(tmp_path / "large.png", "a", native=True)
    Image.new("RGB", (1024, 1024)).save(tmp_path / "large.png")
    assert bundled.read(tmp_path / "large.png", "a", native=True).shape == (3, 1024, 1024)


def test_an_empty_drawing_is_refused(bundled: Translator, tmp_path: Path) -> None:
    drawing = Image.new("RGB", (512, 512), "white")
    drawing.save(tmp_path / "drawing.png")
    with pytest.raises(UserError):
        bundled.read_drawing(tmp_path / "drawing.png", "a")
    drawing.paste("black", (200, 200, 260, 216))
    drawing.save(tmp_path / "drawing.png")
    assert bundled.read_drawing(tmp_path / "drawing.png", "a").min() < 0


def test_the_style_of_a_picture_is_the_encoders(bundled: Translator, picture: Path) -> None:
    assert isinstance(bundled.model, MUNIT)
    for direction, domain in (("a2b", "b"), ("b2a", "a")):
        wanted = bundled.model.encode_style(bundled.read(picture, domain)[None], domain)[0]  # type: ignore[arg-type]
        found = bundled.style_of(picture, direction)  # type: ignore[arg-type]
        assert torch.equal(found.code, wanted) and found.seed is None


def test_a_unit_model_has_no_styles(small_config: dict[str, Any], picture: Path) -> None:
    model = UNIT(small_config).eval()
    translator = Translator(model)
    assert translator.style_dim == 0 and translator.name == "UNIT"
    image = translator.read(picture, "b")
    assert torch.equal(translator.translate(image, "b2a"), model.translate(image[None], "b2a")[0])


def test_a_model_that_gives_nan_is_an_error(small_config: dict[str, Any], picture: Path) -> None:
    model = MUNIT(small_config).eval()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    translator = Translator(model)
    with pytest.raises(UserError):
        translator.translate(translator.read(picture, "a"), "a2b", translator.random_styles(0, 1))


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (2**32, 1), (0, 0), (0, 13)])
def test_seed_and_count_are_bounded(bundled: Translator, seed: int, count: int) -> None:
    with pytest.raises(UserError):
        bundled.random_styles(seed, count)


# -- sliders


def test_sliders_that_were_not_moved_keep_the_style(bundled: Translator) -> None:
    for style in [*bundled.random_styles(0, 12), Style(torch.tensor([9.0, -7.0, 0.123456] + [0.0] * 5))]:
        assert translation.from_sliders(translation.to_sliders(style.code), style) is style


def test_a_moved_slider_changes_its_number_alone(bundled: Translator) -> None:
    style = bundled.random_style(1)
    values = translation.to_sliders(style.code)
    values[2] = -1.25
    moved = translation.from_sliders(values, style)
    wanted = style.code.clone()
    wanted[2] = -1.25
    assert torch.equal(moved.code, wanted) and moved.seed is None and style.seed == 1


def test_one_step_of_a_slider_counts(bundled: Translator) -> None:
    style = bundled.random_style(1)
    values = translation.to_sliders(style.code)
    values[0] = round(values[0] + translation.SLIDER_STEP, 2)
    assert translation.from_sliders(values, style).code[0].item() == pytest.approx(values[0])


def test_sliders_show_numbers_of_their_range() -> None:
    assert translation.to_sliders(torch.tensor([9.0, -9.0, 0.126])) == [3, -3, 0.13]


@pytest.mark.parametrize("values", [[0.0] * 7, [0.0] * 7 + [float("nan")], [0.0] * 7 + [3.5], [None] * 8, ["1"] * 8])
def test_impossible_slider_values_are_refused(bundled: Translator, values: list[Any]) -> None:
    with pytest.raises(UserError):
        translation.from_sliders(values, bundled.random_style(0))


# -- animations


def test_an_animation_starts_and_ends_with_the_styles_themselves(bundled: Translator, picture: Path) -> None:
    image = bundled.read(picture, "a")
    styles = [bundled.random_style(1), bundled.random_style(2)]
    frames = bundled.animate(image, "a2b", styles, 5)
    assert len(frames) == 5
    for frame, style in ((frames[0], styles[0]), (frames[-1], styles[1])):
        alone = translation.to_picture(bundled.translate(image, "a2b", [style])[0])
        # A batch of another size may round otherwise.
        assert np.abs(np.asarray(frame, int) - np.asarray(alone, int)).max() <= 1
    middle = Style((styles[0].code + styles[1].code) / 2)
    wanted = translation.to_picture(bundled.translate(image, "a2b", [middle])[0])
    assert np.abs(np.asarray(frames[2], int) - np.asarray(wanted, int)).max() <= 1
    assert np.abs(np.asarray(frames[0], int) - np.asarray(frames[-1], int)).max() > 10
    with Image.open(BytesIO(translation.animation_bytes(frames))) as file:
        assert file.format == "WEBP" and file.n_frames == 8 and file.info["loop"] == 0  # type: ignore[attr-defined]
    with pytest.raises(UserError):
        bundled.animate(image, "a2b", styles, 1000)


# -- style files


def test_a_style_file_comes_back_bit_for_bit(bundled: Translator, tmp_path: Path) -> None:
    path = tmp_path / "style.json"
    for style in (bundled.random_style(5), Style(bundled.random_style(5).code * 1.37)):
        path.write_text(translation.style_json(style, "b2a", bundled.name))
        file = bundled.load_style(path)
        assert torch.equal(file.style.code, style.code) and file.style.seed == style.seed
        assert (file.direction, file.model) == ("b2a", PRETRAINED)


def test_a_seed_of_other_numbers_is_left_out(bundled: Translator, tmp_path: Path) -> None:
    path = tmp_path / "style.json"
    path.write_text(translation.style_json(Style(bundled.random_style(5).code, 6), "a2b", "other"))
    file = bundled.load_style(path)
    assert file.style.seed is None and torch.equal(file.style.code, bundled.random_style(5).code)


GOOD = {"format": "munit-fast style", "model": "m", "direction": "a2b", "seed": 1, "code": [0.0] * 8}
HOSTILE = {
    "no JSON": b"\x89PNG\r\n",
    "nothing": b"",
    "a list": b"[]",
    "deep": b"[" * 200_000,
    "huge": b" " * (translation.MAX_STYLE_FILE_BYTES + 1),
    "a long number": b'{"format": "munit-fast style", "code": [' + b"9" * 5000 + b"]}",
    "not UTF-8": json.dumps(GOOD).encode("utf-16")[:-1],
} | {
    f"{key} {str(value)[:20]}": json.dumps(GOOD | {key: value}).encode()
    for key, value in [
        ("format", "other"),
        ("format", None),
        ("code", [0.0] * 7),
        ("code", [0.0] * 100_000),
        ("code", "00000000"),
        ("code", {"0": 1}),
        ("code", [float("nan")] * 8),
        ("code", [float("inf")] * 8),
        ("code", [1e300] * 8),
        ("code", [10**400] * 8),
        ("code", [True] * 8),
        ("code", [None] * 8),
        ("code", [[0.0]] * 8),
        ("direction", "c2d"),
        ("direction", ["a2b"]),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 1.5),
        ("seed", True),
        ("seed", "1"),
    ]
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_style_files_are_refused(bundled: Translator, tmp_path: Path, what: str) -> None:
    path = tmp_path / "style.json"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(UserError) as refused:
        bundled.load_style(path)
    assert str(tmp_path) not in str(refused.value) and len(str(refused.value)) < 200


def test_a_style_of_a_model_with_any_name_is_read(bundled: Translator, tmp_path: Path) -> None:
    path = tmp_path / "style.json"
    path.write_text(json.dumps(GOOD | {"model": "<script>" * 1000, "seed": None}))
    assert len(bundled.load_style(path).model) <= 100
