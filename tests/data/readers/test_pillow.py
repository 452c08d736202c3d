"""JPEG, GIF, WebP and animations: their orientation, frames and transparency; PGM and PPM of any largest value."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from munit_fast.data import ImageError, Picture, PixelFormat, decode_image, decode_pillow
from munit_fast.data.readers import count_pages, read_picture

Array = np.ndarray[Any, Any]
# Where row 0 and column 0 of what is stored are seen.
SEEN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def seen(stored: Array, orientation: int) -> Array:
    row0, column0 = SEEN[orientation]
    if row0 in ("left", "right"):
        stored = stored.swapaxes(0, 1)
    stored = stored[::-1] if "bottom" in (row0, column0) else stored
    return stored[:, ::-1] if "right" in (row0, column0) else stored


def photo(height: int = 24, width: int = 40) -> Array:
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def read(data: bytes, page: int = 0, name: str = "a.png") -> Picture:
    return read_picture(name, BytesIO(data), page)


def pages(data: bytes) -> int:
    return count_pages("a.png", BytesIO(data))


def saved(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, **options)
    return file.getvalue()


# -- orientation

FORMATS: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 95},
    "mpo": {"format": "MPO", "quality": 95, "save_all": True},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
    "tiff": {"format": "TIFF"},
    "tiff lzw": {"format": "TIFF", "compression": "tiff_lzw"},
    "tiff jpeg": {"format": "TIFF", "compression": "jpeg"},
    "animated webp": {"format": "WEBP", "lossless": True, "save_all": True},
    "animated png": {"format": "PNG", "save_all": True},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_every_orientation_is_applied_once(kind: str, orientation: int) -> None:
    first, second = Image.fromarray(photo()), Image.fromarray(photo()[::-1])
    exif = Image.Exif()
    exif[274] = orientation
    more = {"append_images": [second]} if "save_all" in FORMATS[kind] else {}
    plain = saved(first, **FORMATS[kind], **more)
    data = saved(first, **FORMATS[kind], **more, exif=exif)
    for page in range(pages(data)):
        stored = read(plain, page).pixels
        assert stored.shape == (24, 40, 3)
        assert np.array_equal(read(data, page).pixels, seen(stored, orientation))
    with Image.open(BytesIO(data)) as image:  # as a user hands it over
        assert np.array_equal(decode_pillow(image), seen(read(plain).pixels, orientation))
    with Image.open(BytesIO(data)) as image:
        image.load()
        assert np.array_equal(decode_pillow(image), seen(read(plain).pixels, orientation))


def test_a_damaged_note_of_the_orientation_is_none() -> None:
    for note in (b"Exif\0\0rubbish and more of it", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        data = saved(Image.fromarray(photo()), format="JPEG", exif=note)
        assert read(data).pixels.shape == (24, 40, 3)


def test_further_images_of_a_jpeg_are_not_pages() -> None:
    data = saved(Image.fromarray(photo()), append_images=[Image.new("RGB", (4, 3))], **FORMATS["mpo"])
    assert pages(data) == 1 and read(data).pixels.shape == (24, 40, 3)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".png", ".tif", ".gif", ".ppm", ".webp"])
@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "PNG"}, {"format": "TIFF"}, {"format": "GIF"}])
def test_content_decides_before_the_name(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    image = Image.fromarray(photo())
    (tmp_path / f"a{suffix}").write_bytes(saved(image, **options))
    assert decode_image(tmp_path / f"a{suffix}").shape == (24, 40, 3)


# -- animations


def frames(clear: bool) -> list[Array]:
    """A square that moves over a pattern, RGBA where `clear`; few colours, so that GIF keeps them."""
    made = []
    for step in range(4):
        frame = np.zeros((24, 40, 4), np.uint8)
        frame[::3, ::2, :3], frame[..., 3] = (0, 0, 255), 255
        frame[4 : 4 + 8, 6 * step : 6 * step + 8] = (255, 20 * step, 0, 255)
        if clear:
            frame[12:, 5 * step : 5 * step + 10] = 0
        made.append(frame if clear else frame[:, :, :3])
    return made


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"format": "GIF"},
        {"format": "GIF", "disposal": 2},
        {"format": "WEBP", "lossless": True, "exact": True},
        {"format": "PNG"},
        {"format": "PNG", "blend": 1, "disposal": 0},
        {"format": "PNG", "disposal": 1, "blend": 1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_frame_is_a_whole_image(options: dict[str, Any], clear: bool) -> None:
    wanted = frames(clear)
    keeps = options["format"] == "GIF" or options.get("blend") == 1
    if clear and keeps and options.get("disposal", 0) == 0:
        pytest.skip("what such frames leave of those before is not what was written")
    first, *others = [Image.fromarray(frame) for frame in wanted]
    data = saved(first, save_all=True, append_images=others, **options)
    assert pages(data) == 4
    for page, frame in enumerate(wanted):
        found = read(data, page)
        white = PixelFormat().apply(found)
        expected = PixelFormat().apply(Picture(frame[:, :, :3], True, frame[:, :, 3] if clear else None, (0, 255)))
        assert np.array_equal(white, expected), page
    with pytest.raises(ImageError, match=r"a\.png"):
        read(data, 4)


# -- PGM and PPM


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("largest", [1, 100, 255, 256, 1000, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_largest_value(channels: int, largest: int, plain: bool) -> None:
    values = np.random.default_rng(0).integers(0, largest, (5, 7, channels), np.uint16, endpoint=True)
    kind = {(1, True): 2, (3, True): 3, (1, False): 5, (3, False): 6}[channels, plain]
    body = b" ".join(b"%d" % v for v in values.flatten())
    raw = values.astype(np.uint8 if largest < 256 else ">u2").tobytes()
    data = b"P%d # note\n7 # columns\n 5\n%d\n" % (kind, largest) + (body if plain else raw)
    found = read(data, name="a.ppm")
    assert found.pixels.dtype == (np.uint8 if largest < 256 else np.uint16) and found.limits == (0, largest)
    assert np.array_equal(found.pixels, values) and found.colour == (channels == 3)
    if largest in (255, 65535) and channels == 1:
        with Image.open(BytesIO(data)) as image:
            assert np.array_equal(np.asarray(image), values[:, :, 0])
    with pytest.raises(ImageError, match="truncated"):
        read(data[:-2] if not plain else data[: -len(body) // 2], name="a.ppm")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"P5 7 5", "header"),
        (b"P5 2 1 70000\n\0\0\0\0", "70000"),
        (b"P5 2 1 0\n\0\0", "1..65535"),
        (b"P5 0 1 255\n", "without pixels"),
        (b"P5 99999999 99999999 255\n", "MUNIT_FAST_MAX_PIXELS"),
        (b"P5 2 1 100\n\x01\x65", "above 100"),
        (b"P2 2 1 100\n1 101", "outside 0..100"),
        (b"P2 2 1 100\n1 -1", "outside 0..100"),
        (b"P2 2 1 100\n1 x", "not a readable image"),
        (b"P2 2 1 100\n1 1234567", "truncated"),
    ],
)
def test_damaged_pgm_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^a\\.pgm: .*{reason}"):
        read(data, name="a.pgm")
