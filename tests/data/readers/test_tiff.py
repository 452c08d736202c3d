"""TIFF beyond the grid: colours, pages, masks, stacks, and what is refused with its reason."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from helpers.tiff_files import made
from munit_fast.data import FileSource, ImageError, Picture, PixelFormat, decode_image
from munit_fast.data.readers import count_pages, read_picture

Array = np.ndarray[Any, Any]
WHITE, BLACK, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8


def smooth(height: int = 32, width: int = 40, channels: int = 3) -> Array:
    small = np.random.default_rng(channels).integers(40, 216, (4, 5, channels), np.uint8)
    planes = [
        np.asarray(Image.fromarray(small[:, :, c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, axis=2)


def read(file: BytesIO | Path, page: int = 0) -> Picture:
    with BytesIO(file.read_bytes()) if isinstance(file, Path) else file as opened:
        return read_picture("a.tif", opened, page)


def written(**options: Any) -> BytesIO:
    file = BytesIO()
    tifffile.imwrite(file, **{"metadata": None, **options})
    file.seek(0)
    return file


# -- colours


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("bits", "data", "expected"),
    [
        (1, b"\x50\xa0", [[0, 255, 0, 255], [255, 0, 255, 0]]),
        (2, b"\x1b\xe4", [[0, 85, 170, 255], [255, 170, 85, 0]]),
        (4, b"\x0f\x3c", [[0, 255], [51, 204]]),
        (12, b"\x00\x10\x02\xff\xf1\x23", [[1, 2], [4095, 291]]),
        (10, b"\x00\x40\x20\xff\xc4\x80", [[1, 2], [1023, 72]]),
    ],
)
def test_packed_bits_lie_in_one_order(order: str, bits: int, data: bytes, expected: list[list[int]]) -> None:
    file = made({256: len(expected[0]), 257: 2, 258: bits}, data, order)
    with file:
        other = np.atleast_2d(imagecodecs.tiff_decode(file.getvalue()))
        picture = read_picture("a.tif", file)
    assert picture.pixels[:, :, 0].tolist() == expected
    assert picture.limits == ((0, 255) if bits < 8 else (0, 2**bits - 1))
    assert (other * (255 // (2**bits - 1) if bits < 8 else 1)).tolist() == expected


@pytest.mark.parametrize("factor", [1, 256, 257])
def test_palettes_of_8_bits_give_8_bits(factor: int) -> None:
    table = np.arange(768, dtype=np.uint16).reshape(3, 256) % 251 * factor
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = read(written(data=indices, photometric="palette", colormap=table))
    assert picture.colour and picture.pixels.dtype == np.uint8 and picture.limits == (0, 255)
    assert np.array_equal(picture.pixels, (table // factor).T[indices])


def test_palettes_of_16_bits_keep_them() -> None:
    table = np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = read(written(data=indices, photometric="palette", colormap=table))
    assert picture.pixels.dtype == np.uint16 and np.array_equal(picture.pixels, table.T[indices])


@pytest.mark.parametrize("compression", [None, "lzw", "jpeg"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["separated", "ycbcr"])
def test_colours_of_8_bits_become_rgb(photometric: str, planar: str, compression: str | None) -> None:
    stored = smooth(channels=4 if photometric == "separated" else 3)
    file = written(
        data=stored if planar == "contig" else stored.transpose(2, 0, 1),
        photometric=photometric,
        planarconfig=planar,
        compression=compression,
    )
    if (photometric, planar, compression) == ("ycbcr", "separate", "jpeg"):
        with pytest.raises(ImageError, match="YCBCR"):
            read(file)
        return
    other = imagecodecs.tiff_decode(file.getvalue(), asrgb=True)[:, :, :3].astype(int)
    picture = read(file)
    assert picture.colour and picture.pixels.dtype == np.uint8
    assert np.abs(picture.pixels - other).max() <= 1


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_lab_becomes_rgb(planar: str) -> None:
    rgb = smooth()
    profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
    turned = ImageCms.profileToProfile(Image.fromarray(rgb), *profiles, outputMode="LAB")
    assert turned is not None
    stored = np.frombuffer(turned.tobytes(), np.uint8).reshape(rgb.shape)
    data = stored if planar == "contig" else np.ascontiguousarray(stored.transpose(2, 0, 1))
    picture = read(written(data=data, photometric="cielab", planarconfig=planar))
    assert np.abs(picture.pixels.astype(int) - rgb).mean() < 3  # L, a and b have 8 bits
    assert np.array_equal(picture.pixels, np.asarray(turned.convert("RGB")))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax_is_black_on_white(compression: str) -> None:
    image = Image.fromarray(smooth()[:, :, 0] > 120)
    file = BytesIO()
    image.save(file, "TIFF", compression=compression)
    file.seek(0)
    assert np.array_equal(read(file).pixels[:, :, 0], np.asarray(image).astype(np.uint8) * 255)


@pytest.mark.parametrize("tile", [None, (256, 256)])
@pytest.mark.parametrize("side", [1000, 20_000, 65_500])
def test_a_jpeg_may_not_be_larger_than_its_place(tile: tuple[int, int] | None, side: int) -> None:
    file = written(data=smooth(), photometric="rgb", compression="jpeg", tile=tile)
    assert np.array_equal(read(BytesIO(file.getvalue())).pixels, imagecodecs.tiff_decode(file.getvalue()))
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = side.to_bytes(2, "big") * 2
    with pytest.raises(ImageError, match=r"damaged|bomb"):
        read(BytesIO(bytes(data)))


# -- pages


def test_pages_are_images_but_not_copies_and_masks(tmp_path: Path) -> None:
    first, second = smooth(), smooth()[::-1]
    mask = np.zeros((32, 40), bool)
    mask[:, 20:] = True
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(first, photometric="rgb", subfiletype=0, metadata=None)
        writer.write(first[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(mask, photometric="mask", subfiletype=4, metadata=None)
        writer.write(second, photometric="rgb", subfiletype=2, metadata=None, extratags=[(274, "H", 1, 6, True)])
    with (tmp_path / "a.tif").open("rb") as file:
        assert count_pages("a.tif", file) == 2
    picture = read(tmp_path / "a.tif")
    assert np.array_equal(picture.pixels, first) and picture.alpha is not None
    assert np.array_equal(picture.alpha, mask * np.uint8(255))
    assert (decode_image(tmp_path / "a.tif")[:, :20] == 255).all()
    assert np.array_equal(decode_image(tmp_path / "a.tif", page=1), np.rot90(second, -1))
    with pytest.raises(ImageError, match=r"a\.tif: there is no page 2"):
        decode_image(tmp_path / "a.tif", page=2)


@pytest.mark.parametrize("how", [{"imagej": True, "byteorder": ">"}, {"metadata": {"axes": "TYX"}}, {"ome": True}])
@pytest.mark.parametrize("truncate", [False, True])
def test_stacks_of_other_programs_are_pages(how: dict[str, Any], truncate: bool, tmp_path: Path) -> None:
    if truncate and "ome" in how:
        pytest.skip("OME has a page for each image")
    stack = np.random.default_rng(0).integers(0, 65536, (5, 12, 14), np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif", **{k: v for k, v in how.items() if k != "metadata"}) as writer:
        writer.write(stack, photometric="minisblack", metadata={"axes": "TYX"}, truncate=truncate)
    with (tmp_path / "a.tif").open("rb") as file, tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert count_pages("a.tif", file) == 5 and len(tif.pages) == (1 if truncate else 5)
    for page in range(5):
        found = read(tmp_path / "a.tif", page).pixels
        assert np.array_equal(found[:, :, 0], stack[page]) and found.dtype.isnative


def test_a_stack_may_not_promise_more_than_its_file_holds(tmp_path: Path) -> None:
    stack = np.zeros((5, 12, 14), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, truncate=True, metadata={"axes": "TYX"})
    data = (tmp_path / "a.tif").read_bytes()
    assert data.count(b"frames=5") == 1
    for damaged in (data[:-10], data.replace(b"images=5\nframes=5\n", b"images=9\nframes=9\n")):
        with pytest.raises(ImageError, match=r"truncated: it is too short for \d images"):
            count_pages("a.tif", BytesIO(damaged))


def test_series_in_other_files_are_not_opened(tmp_path: Path) -> None:
    uuid = "urn:uuid:00000000-0000-0000-0000-000000000000"
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", np.zeros((4, 4), np.uint8), metadata={"UUID": uuid}, ome=True)
    with (tmp_path / "a.ome.tif").open("rb") as file:
        assert count_pages("a.tif", file) == 1


# -- transparency


@pytest.mark.parametrize("premultiplied", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_both_kinds_of_alpha_show_the_same(dtype: type, premultiplied: bool, tmp_path: Path) -> None:
    white = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    rng = np.random.default_rng(0)
    share = rng.random((20, 30, 1))
    share[:5], share[5:10] = 0, 1
    colours = rng.random((20, 30, 3))
    shown = colours * share + (1 - share)  # over white
    colours = colours * share if premultiplied else np.where(share > 0, colours, 0)
    stored = np.concatenate([colours, share], axis=2) * white
    stored = (stored if dtype is np.float32 else stored.round()).astype(dtype)
    kind = "assocalpha" if premultiplied else "unassalpha"
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[kind])
    found = decode_image(tmp_path / "a.tif", PixelFormat(3, background=255))
    assert found.dtype == dtype and np.abs(found / white - shown).max() <= 1.6 / (white if white > 1 else 1e6)


def test_hidden_numbers_are_not_seen(tmp_path: Path) -> None:
    stored = np.full((4, 4, 4), 77, np.uint16)
    stored[:2, :, 3], stored[2:, :, 3] = 0, 65535
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["unassalpha"])
    assert decode_image(tmp_path / "a.tif", PixelFormat(3, background=0))[:, 0, 0].tolist() == [0, 0, 77, 77]


# -- refused


GREY = bytes(range(12))
REFUSED: dict[str, tuple[BytesIO, str]] = {
    "no photometric": (made({}, GREY, drop=(262,)), "interpretation none"),
    "cfa": (made({262: 32803}, GREY), "interpretation CFA"),
    "logl": (made({262: 32844, 258: 16}, GREY * 2), "interpretation"),
    "icclab": (made({262: 9, 277: 3, 258: (8, 8, 8)}, GREY * 3), "interpretation ICCLAB"),
    "unknown": (made({262: 777}, GREY), "interpretation 777"),
    "16-bit cmyk": (made({262: CMYK, 277: 4, 258: (16,) * 4}, GREY * 8), "SEPARATED"),
    "six inks": (made({262: CMYK, 277: 4, 258: (8,) * 4, 332: 2}, GREY * 4), "SEPARATED"),
    "inverted inks": (made({262: CMYK, 277: 4, 258: (8,) * 4, 336: (255, 0)}, GREY * 4), "SEPARATED"),
    "16-bit lab": (made({262: LAB, 277: 3, 258: (16,) * 3}, GREY * 6), "CIELAB"),
    "subsampled": (made({262: YCBCR, 277: 3, 258: (8,) * 3, 530: (2, 2)}, GREY * 3), "YCBCR"),
    "video range": (
        made({262: YCBCR, 277: 3, 258: (8,) * 3, 530: (1, 1), 529: ("f", (0.2126, 0.7152, 0.0722))}, GREY * 3),
        "YCBCR",
    ),
    "unequal depths": (made({262: RGB, 277: 3, 258: (5, 6, 5)}, GREY * 2), "bits"),
    "complex": (made({258: 64, 339: 6}, GREY * 8), "format"),
    "signed 12 bits": (made({258: 12, 339: 2, 256: 4}, GREY), "12 bits, format 2"),
    "white is zero, signed": (made({262: WHITE, 339: 2}, GREY), "MINISWHITE"),
    "palette without colours": (made({262: PALETTE}, GREY), "PALETTE"),
    "too few channels": (made({262: RGB}, GREY), "number of channels"),
    "two alphas": (made({277: 3, 258: (8,) * 3, 338: (2, 2)}, GREY * 3), "two alpha"),
    "signed alpha": (made({277: 2, 258: (8,) * 2, 338: 2, 339: (2, 2)}, GREY * 2), "transparency of signed"),
    "premultiplied white is zero": (made({262: WHITE, 277: 2, 258: (8,) * 2, 338: 1}, GREY * 2), "premultiplied"),
    "one more ink": (made({262: CMYK, 277: 5, 258: (8,) * 5, 338: 0}, GREY * 5), "more channels"),
    "jpeg 2000": (made({259: 34712}, GREY), "compression JPEG"),
    "unknown compression": (made({259: 999}, GREY), "compression 999"),
    "volume": (made({32997: 2}, GREY * 2), "volume"),
    "truncated": (made({279: 500}, GREY), "truncated"),
    "short strip": (made({279: 5}, GREY), "corrupted"),
    "missing strips": (made({278: 1}, GREY), "no data"),
    "sparse": (made({279: 0}, GREY), "no data"),
    "too wide": (made({256: 2**16 + 1, 257: 2**16}, GREY), "MUNIT_FAST_MAX_PIXELS"),
    "several depths": (made({32997: (0, 0), 257: 2**31}, GREY), "several sizes"),
    "several samples": (made({277: (1, 1), 284: 2, 257: 2**31, 278: 1}, GREY), "several sizes"),
    "no rows": (made({257: 0}, GREY), ""),
    "too many channels": (made({256: 2**13, 257: 2**13, 277: 600, 258: 8}, GREY), "MUNIT_FAST_MAX_PIXELS"),
    "huge tiles": (made({322: 2**16, 323: 2**16, 324: 8, 325: 12}, GREY, drop=(273, 278, 279)), "65536x65536"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_right_is_refused(what: str) -> None:
    file, reason = REFUSED[what]
    with pytest.raises(ImageError, match=f"^a\\.tif: .*({reason})") as caught:
        read(BytesIO(file.getvalue()))
    assert "\n" not in str(caught.value)


def test_the_base_of_the_refused_is_read() -> None:
    picture = read(made({}, GREY))
    assert picture.pixels[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("options", [{}, {"imagej": True}])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
def test_files_with_the_metadata_of_tifffile_and_imagej(
    tmp_path: Path, options: dict[str, Any], compression: str | None
) -> None:
    flat = np.zeros((64, 80), np.uint8)  # takes far less place than its pixels
    tifffile.imwrite(tmp_path / "a.tif", flat, compression=compression, **options)
    assert np.array_equal(decode_image(tmp_path / "a.tif", 1)[:, :, 0], flat)
    assert len(FileSource([tmp_path / "a.tif"])) == 1
