"""Arrays of any number of channels from .npy and .npz files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from munit_fast.data import FileSource, ImageError, PixelFormat, decode_image
from munit_fast.data.readers import count_pages, read_picture
from munit_fast.data.readers.numpy import channels_first


def values(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float32"])
def test_layouts_give_one_image(tmp_path: Path, channels: int, dtype: str, order: str) -> None:
    last = values(12, 17, channels, dtype=dtype)
    scaled = last / np.float32(200) if dtype == "float32" else last
    wanted = decoded(tmp_path, scaled, channels)
    assert wanted.shape == last.shape and np.array_equal(wanted, scaled.astype(scaled.dtype.newbyteorder("=")))
    assert np.array_equal(decoded(tmp_path, np.asarray(scaled.transpose(2, 0, 1), order=order), channels), wanted)
    stack = np.asarray(np.stack([scaled, scaled[::-1]]), order=order)
    assert np.array_equal(decoded(tmp_path, stack, channels, 1), wanted[::-1])


def decoded(folder: Path, array: np.ndarray, channels: int, page: int = 0) -> np.ndarray:
    np.save(folder / "x.npy", array)
    return decode_image(folder / "x.npy", channels, page)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((8, 9, 4), False),
        ((4, 8, 9), True),
        ((8, 9, 3), False),
        ((3, 8, 9), True),
        ((3, 2, 9), True),  # as before other numbers of channels were read
        ((2, 9, 3), False),
        ((4, 9, 4), False),  # either: the last
        ((9, 4, 8), False),
        ((8, 8, 200), False),
        ((1, 9, 2), True),
    ],
)
def test_the_axis_of_channels(shape: tuple[int, ...], first: bool) -> None:
    assert channels_first(shape) is first


def test_a_wrong_guess_is_refused_not_used(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(7, 9, 224))
    with pytest.raises(ImageError, match="has 7 channels where 224 are wanted; set input_dim_a: 7"):
        decode_image(tmp_path / "x.npy", PixelFormat(224, domain="a"))


def test_every_array_of_an_npz_is_an_image_but_for_labels(tmp_path: Path) -> None:
    one, many, grey = values(8, 9, 4), values(3, 8, 9, 4), values(8, 9)
    np.savez_compressed(tmp_path / "x.npz", one=one, label=np.arange(5), many=many, grey=grey)
    source = FileSource([tmp_path / "x.npz"])
    assert [source.name(i) for i in range(len(source))] == [f"x.npz#{i}" for i in range(5)]
    pixels = [source.read(i).pixels for i in range(len(source))]
    assert all(np.array_equal(a, b) for a, b in zip(pixels, [one, *many, grey[:, :, None]]))


def test_masks_and_integers(tmp_path: Path) -> None:
    mask = values(8, 9) > 99
    assert np.array_equal(decoded(tmp_path, mask, 1)[:, :, 0], mask * np.uint8(255))
    np.save(tmp_path / "x.npy", values(8, 9, dtype="int64"))
    with pytest.raises(ImageError, match=r"64-bit signed .* set range_b: \[low, high\], or auto"):
        decode_image(tmp_path / "x.npy", PixelFormat(1, domain="b"))
    assert decode_image(tmp_path / "x.npy", PixelFormat(1, limits=(0.0, 200.0))).max() <= 1


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((8, 9), complex), "values of type complex128"),
        (np.zeros(8), "an array of shape"),
        (np.zeros((2, 2, 2, 2, 2)), "an array of shape"),
        (np.zeros((0, 9, 4)), "without pixels"),
        (np.zeros((9, 9, 1025), np.uint8), "1025 channels"),
        (np.array([{}, {}], object)[None], "use integers or floating point"),
    ],
)
def test_what_is_refused(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(ImageError, match=reason):
        decode_image(tmp_path / "x.npy", 1)


def lying(shape: tuple[int, ...], left: bytes) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + left


@pytest.mark.parametrize("shape", [(2**40, 1, 1, 1), (2**20, 2**20), (9, 9, 9), (2**62, 2**62)])
def test_a_header_gets_no_memory(shape: tuple[int, ...]) -> None:
    data = lying(shape, bytes(100))
    for name, wrapped in (("x.npy", data), ("x.npz", zipped(data))):
        with pytest.raises(ImageError):
            read_picture(name, io.BytesIO(wrapped), count_pages(name, io.BytesIO(wrapped)) - 1)


def test_a_small_archive_does_not_unpack_to_a_million_images() -> None:
    data = zipped(lying((2**21, 1, 1, 1), bytes(2**21)))
    with pytest.raises(ImageError, match="2097152 images in one file"):
        count_pages("x.npz", io.BytesIO(data))


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", data)
    return buffer.getvalue()
