"""Decoding, resizing and saving single images; finding them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from munit_fast.data import (
    IMAGE_EXTENSIONS,
    ImageError,
    PixelFormat,
    decode_image,
    list_images,
    read_list,
    resize_short_side,
    save_image,
    to_model_range,
)
from munit_fast.data.images import SAVED_FORMATS
from munit_fast.io.atomic import FileWriteError


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth random bytes, [H, W, C]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), np.uint8)
    image = Image.fromarray(small[:, :, 0] if channels == 1 else small)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, channels)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


# -- decoding

OF_ARRAYS = (".npy", ".npz", ".nii", ".nii.gz", ".dcm")  # tests/data/readers has them


@pytest.mark.parametrize("extension", [e for e in IMAGE_EXTENSIONS if e not in OF_ARRAYS])
def test_every_extension_is_read(tmp_path: Path, extension: str) -> None:
    pixels = picture(30, 20)
    path = saved(tmp_path / f"a{extension.upper()}", pixels)
    read = decode_image(path, 3)
    assert read.shape == (30, 20, 3) and read.dtype == np.uint8
    lossy = extension in (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif")
    assert np.abs(read.astype(int) - pixels).mean() <= (12 if lossy else 0)
    assert list_images(tmp_path) == [path]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_converted_as_pillow_does(tmp_path: Path, mode: str, channels: int) -> None:
    path = saved(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), picture(9, 8), mode)
    expected = np.asarray(Image.open(path).convert("L" if channels == 1 else "RGB")).reshape(9, 8, channels)
    assert np.array_equal(decode_image(path, channels), expected)


def test_the_background_shows_through_transparent_pixels_only(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 10, np.uint8)
    pixels[:, :2, 3], pixels[:, 2:, 3] = 0, 255
    path = saved(tmp_path / "a.png", pixels)
    for background in (255, 7):
        read = decode_image(path, PixelFormat(background=background))
        assert (read[:, :2] == background).all() and (read[:, 2:] == 10).all()


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_files_keep_their_range(tmp_path: Path, extension: str, channels: int) -> None:
    pixels = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    path = saved(tmp_path / f"a.{extension}", pixels)
    read = decode_image(path, channels)
    assert read.dtype == np.uint16 and read.shape == (6, 8, channels)
    assert all(np.array_equal(read[:, :, c], pixels) for c in range(channels))
    tensor = to_model_range(read)
    assert tensor.min() == -1 and tensor.max() == 1


def test_integers_beyond_16_bits_need_a_range(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", np.array([[0, 70000]], np.int32))
    with pytest.raises(ImageError, match=r"a\.tif: 32-bit signed .*0\.\.70000.* range: \[low, high\]"):
        decode_image(path, 1)
    assert decode_image(path, PixelFormat(1, limits=(0, 70000))).flatten().tolist() == [0, 1]


def test_a_float_tiff_is_read(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    read = decode_image(saved(tmp_path / "a.tif", pixels), 3)
    assert read.dtype == np.float32 and np.array_equal(read[:, :, 1], pixels)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 7), (5, 7, 1)),
        ((5, 7, 1), (5, 7, 1)),
        ((5, 7, 3), (5, 7, 3)),
        ((3, 5, 7), (5, 7, 3)),
        ((1, 5, 7), (5, 7, 1)),
        ((3, 7, 3), (3, 7, 3)),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "f2", "f4", "f8"])
def test_arrays_are_read_in_every_layout(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int, int], dtype: str
) -> None:
    values = np.random.default_rng(0).uniform(0, 1 if "f" in dtype else 255, shape).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    read = decode_image(tmp_path / "a.npy", expected[2])
    assert read.dtype == {"u1": np.uint8, "u2": np.uint16}.get(dtype[-2:], np.float32)
    channels_last = values.transpose(1, 2, 0) if shape[-1] == 7 and len(shape) == 3 else values
    assert read.shape == expected and np.allclose(read, channels_last.reshape(expected), atol=1e-3)
    assert read.dtype.isnative


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.zeros((4, 4, 2), np.uint8), "has 2 channels where 3 are wanted"),
        (np.zeros((4, 4, 4), np.uint8), "has 4 channels where 3 are wanted"),
        (np.zeros(4, np.uint8), r"shape \[4\]"),
        (np.zeros((0, 4), np.uint8), r"a\.npy: "),
        (np.zeros((4, 4), np.int64), r"64-bit signed .* range: \[low, high\]"),
        (np.zeros((4, 4), complex), "type complex128"),
        (np.full((4, 4), np.nan, np.float32), "finite"),
        (np.full((4, 4), np.inf, np.float32), "finite"),
        (np.full((4, 4), 255, np.float32), "255"),
        (np.full((4, 4), -0.1, np.float64), "-0.1"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path: Path, values: np.ndarray, complaint: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ImageError, match=complaint):
        decode_image(tmp_path / "a.npy", 3)


def test_an_array_file_never_runs_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "a.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(ImageError, match=name):
            decode_image(tmp_path / name, 3)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_grey_is_the_luma_of_pillow(tmp_path: Path, dtype: type) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    np.save(tmp_path / "a.npy", (pixels * np.float64(scale)).round(6).astype(dtype))
    grey = decode_image(tmp_path / "a.npy", 1)
    assert grey.dtype == dtype and grey.shape == (16, 16, 1)
    assert np.abs(grey[:, :, 0] / scale - luma).max() <= (0 if dtype == np.uint8 else 0.51)


def test_missing_empty_and_special_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    cases = {
        "missing.png": "no such file",
        "empty.png": "empty",
        "text.png": "not an image",
        "folder.png": "not a plain file",
    }
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        cases["pipe.png"] = "not a plain file"
    for name, complaint in cases.items():
        with pytest.raises(ImageError) as caught:
            decode_image(tmp_path / name, 3)
        place, _, reason = str(caught.value).partition(": ")
        assert place == str(tmp_path / name) and complaint in reason
        assert "\n" not in str(caught.value)


def test_other_channel_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"has 3 channels where 4 .* input_dim: 3"):
        decode_image(saved(tmp_path / "a.png", picture(4, 4)), 4)


@pytest.mark.parametrize(
    "extension", [e for e in IMAGE_EXTENSIONS if e not in (".jpeg", ".tiff", ".svs", *OF_ARRAYS[1:])]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_truncated_files_are_refused(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    np.save(path, pixels) if extension == ".npy" else saved(path, pixels)
    content = path.read_bytes()
    for part in (0.02, 0.5, 0.9):
        path.write_bytes(content[: max(1, int(len(content) * part))])
        with pytest.raises(ImageError, match=f"a{extension}: "):
            decode_image(path, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about damaged tags
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_decode_or_raise_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "NPY"]))
    buffer = BytesIO()
    pixels = picture(12, 12)
    np.save(buffer, pixels) if kind == "NPY" else Image.fromarray(pixels).save(buffer, format=kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(200, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{'npy' if kind == 'NPY' else 'png'}"
    path.write_bytes(content)
    complaint, shape = "", (1, 1, 3)
    try:
        shape = decode_image(path, 3).shape
    except ImageError as error:
        complaint = str(error)
    assert len(shape) == 3 and shape[2] == 3 and "\n" not in complaint
    assert complaint == "" or complaint.startswith(f"{path}: ")


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(_png_header(side, side))
    with pytest.raises(ImageError, match=r"bomb\.png: .*134217728 .*MUNIT_FAST_MAX_PIXELS"):
        decode_image(tmp_path / "bomb.png", 3)


def test_an_array_with_a_huge_header_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "bomb.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**20)})
        file.write(bytes(64))
    with pytest.raises(ImageError, match=r"bomb\.npy: "):
        decode_image(tmp_path / "bomb.npy", 3)


def test_the_limit_of_pixels_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", picture(10, 10))
    np.save(tmp_path / "a.npy", picture(10, 10))
    monkeypatch.setenv("MUNIT_FAST_MAX_PIXELS", "99")
    for name in ("a.png", "a.npy"):
        with pytest.raises(ImageError, match=r"10x10 .* 99 "):
            decode_image(tmp_path / name, 3)
    monkeypatch.setenv("MUNIT_FAST_MAX_PIXELS", "100")
    assert decode_image(path, 3).shape == (10, 10, 3)
    monkeypatch.setenv("MUNIT_FAST_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match=r"MUNIT_FAST_MAX_PIXELS .*'many'"):
        decode_image(path, 3)


def test_a_raised_limit_reaches_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    path = saved(tmp_path / "a.png", picture(10, 10))
    assert decode_image(path, 3).shape == (10, 10, 3)


# -- ranges and sizes


def test_the_model_range() -> None:
    values = np.array([0, 51, 127, 255], np.uint8).reshape(1, 4, 1)
    tensor = to_model_range(values)
    assert tensor.shape == (1, 1, 4) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert torch.equal(tensor.flatten(), (torch.tensor([0.0, 51, 127, 255]) / 255 - 0.5) / 0.5)
    pixels = picture(5, 6)
    assert torch.equal(to_model_range(pixels)[2], to_model_range(pixels[:, :, 2:])[0])


def test_the_model_range_copies() -> None:
    values = np.zeros((2, 2, 3), np.float32)
    to_model_range(values)[0] = 9
    assert (values == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.sampled_from([1, 3]))
def test_bytes_are_resized_exactly_as_by_pillow(height: int, width: int, size: int, channels: int) -> None:
    pixels = picture(height, width, channels)
    long = int(size * max(height, width) / min(height, width))
    shape = (size, long) if height <= width else (long, size)
    resized = resize_short_side(pixels, size)
    assert resized.shape == (*shape, channels) and resized.dtype == np.uint8
    plain = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    expected = np.asarray(plain.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
    assert np.array_equal(resized, expected.reshape(*shape, channels))


@pytest.mark.parametrize(("size", "grow"), [(20, False), (75, True)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_types_are_resized_alike_and_stay_in_range(dtype: type, size: int, grow: bool) -> None:
    pixels = picture(50, 64)
    scale = 257 if dtype == np.uint16 else 1 / 255
    resized = resize_short_side((pixels * np.float64(scale)).clip(0, 1 if scale < 1 else 65535).astype(dtype), size)
    expected = resize_short_side(pixels, size)
    assert resized.dtype == dtype and resized.shape == expected.shape
    assert np.abs(resized / scale - expected).max() < 1.5
    assert resized.min() >= 0 and resized.max() <= 255 * scale * (1 + 1e-6)


def test_resized_16_bit_values_are_rounded() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (30, 31, 1)).astype(np.uint16)
    exact = resize_short_side((pixels / 65535).astype(np.float32), 12) * 65535.0
    assert np.abs(resize_short_side(pixels, 12) - exact).max() < 0.52


def test_a_fitting_image_is_left_alone() -> None:
    pixels = picture(20, 30)
    assert resize_short_side(pixels, 20) is pixels


def test_a_needle_is_not_blown_up() -> None:
    with pytest.raises(ImageError, match=r"100000x1 .* 256"):
        resize_short_side(np.zeros((1, 100_000, 3), np.uint8), 256)


# -- saving


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_saving_rounds_and_clamps(tmp_path: Path, channels: int, dtype: torch.dtype) -> None:
    values = torch.tensor([-3, -1, -0.5, 0, 0.5, 1, 7]).expand(channels, 2, 7).to(dtype)
    save_image(values, tmp_path / "a.png")
    read = decode_image(tmp_path / "a.png", channels)
    assert read[1, :, 0].tolist() == [0, 0, 64, 128, 191, 255, 255]
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == ("L" if channels == 1 else "RGB")


def test_bytes_survive_the_round_trip(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    save_image(to_model_range(pixels).requires_grad_(), tmp_path / "a.png")
    assert np.array_equal(decode_image(tmp_path / "a.png", 1), pixels)


@pytest.mark.parametrize("extension", SAVED_FORMATS)
def test_every_extension_is_saved_as_itself(tmp_path: Path, extension: str) -> None:
    pixels = picture(16, 16)
    save_image(to_model_range(pixels), tmp_path / f"a{extension}")
    with Image.open(tmp_path / f"a{extension}") as image:
        assert f"a{extension}".endswith(tuple(e for e, kind in Image.EXTENSION.items() if kind == image.format))
        assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 8


@pytest.mark.parametrize(
    ("tensor", "name", "complaint"),
    [
        (torch.zeros(3, 4, 4), "a.npy", r"a\.npy.*\.png"),
        (torch.zeros(3, 4, 4), "a", "bare name"),
        (torch.zeros(2, 4, 4), "a.png", r"\[2, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4), "a.png", r"\[1, 3, 4, 4\]"),
        (torch.zeros(3, 0, 4), "a.png", r"\[3, 0, 4\]"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "a.png", "uint8"),
        (torch.full((3, 4, 4), torch.nan), "a.png", "NaN"),
        (torch.full((3, 4, 4), torch.inf), "a.png", "NaN or infinite"),
    ],
)
def test_what_is_no_image_is_not_saved(tmp_path: Path, tensor: torch.Tensor, name: str, complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint):
        save_image(tensor, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_saving_into_a_missing_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="nowhere"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "nowhere" / "a.png")


# -- the error


def _fail_in_child() -> None:
    raise ImageError("a.png: bad")


def test_the_error_crosses_processes() -> None:
    copy = pickle.loads(pickle.dumps(ImageError("a.png: bad")))
    assert type(copy) is ImageError and str(copy) == "a.png: bad" and isinstance(copy, ValueError)
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(ImageError, match=r"^a\.png: bad$"):
        pool.apply(_fail_in_child)


# -- finding


def test_images_are_found_recursively_and_sorted(tmp_path: Path) -> None:
    wanted = ["B.PNG", "a.jpg", "sub/c.npy", "sub/deep/d.tiff", "sub2/e.WebP"]
    others = ["notes.txt", "png", ".hidden.png", "._a.jpg", ".thumbs/x.png", "sub/y.pdf"]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == sorted(wanted)
    assert [path.name for path in list_images(tmp_path / ".thumbs")] == ["x.png"]


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    for folder, complaint in {
        tmp_path: " ".join(IMAGE_EXTENSIONS),
        tmp_path / "missing": "no such folder",
        tmp_path / "a.txt": "not a folder",
    }.items():
        with pytest.raises(ImageError) as caught:
            list_images(folder)
        assert str(caught.value).startswith(f"{folder}: ") and complaint in str(caught.value)


def test_an_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match=r"locked: .*Permission denied"):
        list_images(tmp_path)


def test_a_list_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c d.png"):
        (tmp_path / name).touch()
    lines = ["b.png", "", "  sub/c d.png  ", str(tmp_path / "a.png"), "sub/../b.png", ""]
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    names = [path.relative_to(tmp_path).as_posix() for path in read_list(tmp_path / "list.txt", tmp_path)]
    assert names == ["b.png", "sub/c d.png", "a.png", "b.png"]


@pytest.mark.parametrize("entry", ["../secret.png", "sub/../../secret.png", "OUTSIDE/secret.png"])
def test_a_list_cannot_leave_its_root(tmp_path: Path, entry: str) -> None:
    root = tmp_path / "base"
    root.mkdir()
    for name in ("secret.png", "base/a.png", "base-twin.png"):
        (tmp_path / name).touch()
    entry = entry.replace("OUTSIDE", str(tmp_path))
    (tmp_path / "list.txt").write_text(f"a.png\n{entry}\n")
    with pytest.raises(ImageError, match=r"list\.txt, line 2: .*secret\.png"):
        read_list(tmp_path / "list.txt", root)
    (tmp_path / "list.txt").write_text("../base-twin.png\n")
    with pytest.raises(ImageError, match="leads out of"):
        read_list(tmp_path / "list.txt", root)


def test_bad_lists_are_named(tmp_path: Path) -> None:
    (tmp_path / "missing.txt").write_text("\nnone.png\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    for name, complaint in {
        "missing.txt": r"missing\.txt, line 2: .*none\.png",
        "empty.txt": r"empty\.txt: .*no image",
        "bytes.txt": "not UTF-8 text",
        "nowhere.txt": r"nowhere\.txt: .*No such file",
    }.items():
        with pytest.raises(ImageError, match=complaint):
            read_list(tmp_path / name, tmp_path)


def test_a_size_that_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"wide\.webp: 16400×2 .*WEBP.*\.png"):
        save_image(torch.zeros(3, 2, 16400), tmp_path / "wide.webp")
    assert list(tmp_path.iterdir()) == []
