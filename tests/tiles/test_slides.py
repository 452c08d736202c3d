"""Reading TIFF files by regions: every layout gives the pixels that a whole decoding gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from munit_fast.data import ImageError, PixelFormat
from munit_fast.tiles import tiff_regions
from munit_fast.tiles.slides import open_slide

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (131, 90, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (131, 90), dtype=np.uint16)
BOXES = [(0, 131, 0, 90), (0, 1, 0, 1), (30, 66, 15, 48), (100, 131, 60, 90), (63, 65, 0, 90), (130, 131, 89, 90)]
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 7},
    "one strip": {},
    "compressed strips": {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
    "one compressed strip": {"rowsperstrip": 131, "compression": "lzw"},
    "tiles": {"tile": (16, 32)},
    "compressed tiles": {"tile": (64, 64), "compression": "zstd"},
    "big endian": {"byteorder": ">", "rowsperstrip": 9, "compression": "zlib"},
    "big endian, plain": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True, "tile": (32, 32)},
}


def write(path: Path, pixels: np.ndarray[Any, Any], **options: Any) -> Path:
    writer = {name: options.pop(name) for name in ("byteorder", "bigtiff") if name in options}
    options.setdefault("photometric", "rgb" if pixels.ndim == 3 and 3 in (pixels.shape[0], pixels.shape[2]) else None)
    with tifffile.TiffWriter(path, **writer) as file:
        file.write(pixels, metadata=None, **options)
    return path


def check(path: Path, whole: np.ndarray[Any, Any], channels: int, *, level: int = 0, background: int = 255) -> None:
    with open_slide(path, level, PixelFormat(channels, background=background)) as slide:
        assert (slide.height, slide.width) == whole.shape[:2]
        for top, bottom, left, right in BOXES:
            if bottom <= slide.height and right <= slide.width:
                found = slide.read(top, bottom, left, right)
                assert found.dtype == whole.dtype and np.array_equal(found, whole[top:bottom, left:right])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    check(write(tmp_path / "a.tif", COLOUR, **LAYOUTS[layout]), COLOUR, 3)
    check(write(tmp_path / "b.tif", GREY16, **LAYOUTS[layout]), GREY16[:, :, None], 1)
    check(tmp_path / "b.tif", GREY16[:, :, None].repeat(3, axis=2), 3)
    planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    check(write(tmp_path / "c.tif", planes, planarconfig="separate", **LAYOUTS[layout]), COLOUR, 3)


def test_every_level_of_a_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32), "metadata": None}
        file.write(COLOUR, subifds=1, resolution=(40000, 20000), resolutionunit="CENTIMETER", **options)
        file.write(COLOUR[::2, ::2], subfiletype=1, **options)
    check(path, COLOUR, 3)
    check(path, COLOUR[::2, ::2], 3, level=1)
    with open_slide(path, 1, PixelFormat(3)) as slide:
        assert slide.tags == {"resolution": (20000.0, 10000.0), "resolutionunit": 3}
    with pytest.raises(ImageError, match="no level 2"), open_slide(path, 2, PixelFormat(3)):
        pass


def test_jpeg_tiles(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 90)[None, :, None] * np.ones((131, 1, 3))
    path = write(tmp_path / "a.tif", smooth.astype(np.uint8), tile=(32, 32), compression="jpeg")
    check(path, tifffile.imread(path), 3)
    assert abs(tifffile.imread(path) - smooth).max() < 12


def test_transparency_lies_over_the_background(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (131, 90, 1), dtype=np.uint8)
    share = alpha / 255
    pixels = np.concatenate([COLOUR, alpha], axis=2)
    path = write(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32))
    check(path, (COLOUR * share + (1 - share) * 200).round().astype(np.uint8), 3, background=200)
    premultiplied = np.concatenate([(COLOUR * share).round().astype(np.uint8), alpha], axis=2)
    path = write(tmp_path / "b.tif", premultiplied, photometric="rgb", extrasamples=["assocalpha"], tile=(32, 32))
    with open_slide(path, 0, PixelFormat(3, background=200)) as slide:
        wanted = COLOUR * share + (1 - share) * 200
        assert abs(slide.read(0, 131, 0, 90) - wanted).max() <= 1.5


def test_values(tmp_path: Path) -> None:
    check(
        write(tmp_path / "a.tif", 255 - COLOUR[:, :, 0], photometric="miniswhite", rowsperstrip=5), COLOUR[:, :, :1], 1
    )
    share = RNG.random((131, 90)).astype(np.float32)
    check(write(tmp_path / "b.tif", share, tile=(16, 16)), share[:, :, None], 1)
    check(
        write(tmp_path / "c.tif", share.astype(np.float16)), share.astype(np.float16).astype(np.float32)[:, :, None], 1
    )
    bands = RNG.integers(0, 256, (131, 90, 5), dtype=np.uint8)
    check(write(tmp_path / "d.tif", bands, photometric="minisblack", planarconfig="contig", tile=(16, 16)), bands, 5)
    write(tmp_path / "e.tif", COLOUR, rowsperstrip=5)
    with open_slide(tmp_path / "e.tif", 0, PixelFormat(1)) as slide:
        assert (
            abs(slide.read(0, 131, 0, 90)[:, :, 0] - np.asarray(Image.fromarray(COLOUR).convert("L")).astype(int)).max()
            <= 1
        )


def test_what_is_not_stored_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    tiles = [COLOUR[:64, :64], None, None, COLOUR[:64, :64]]
    with tifffile.TiffWriter(path) as file:
        file.write(iter(tiles), shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb", metadata=None)
    with open_slide(path, 0, PixelFormat(3)) as slide:
        whole = slide.read(0, 128, 0, 128)
    assert np.array_equal(whole[64:, 64:], COLOUR[:64, :64]) and not whole[:64, 64:].any()


def test_few_pieces_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_regions, "CACHE_BYTES", 3 * 16 * 32 * 3)
    path = write(tmp_path / "a.tif", COLOUR, tile=(16, 32), compression="zlib")
    check(path, COLOUR, 3)
    with open_slide(path, 0, PixelFormat(3)) as slide:
        for top in range(0, 128, 16):
            slide.read(top, top + 16, 0, 90)
            regions: Any = slide._regions  # type: ignore[attr-defined]
            assert sum(values.nbytes for values in regions._cache.values()) == regions._cached <= 3 * 16 * 32 * 3


def test_other_images_are_read_as_a_whole(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    check(tmp_path / "a.png", COLOUR, 3)
    with pytest.raises(ImageError, match="no level 1"), open_slide(tmp_path / "a.png", 1, PixelFormat(3)):
        pass


@pytest.mark.parametrize(
    ("pixels", "options", "reason"),
    [
        (COLOUR, {"extratags": [(274, "H", 1, 6, True)]}, "orientation 6"),
        (np.stack([COLOUR, COLOUR]), {}, "not one image"),
        (RNG.integers(0, 9, (20, 20), dtype=np.int16), {}, "16-bit signed .* set range"),
        (RNG.random((20, 20)) + 1.0, {}, "0..1"),
        (RNG.integers(0, 9, (20, 20, 4), dtype=np.uint8), {"photometric": "separated"}, "SEPARATED"),
        (
            RNG.integers(0, 9, (20, 20, 4), dtype=np.uint8),
            {"photometric": "minisblack", "planarconfig": "contig"},
            "input_dim: 4",
        ),
    ],
)
def test_what_is_refused(pixels: np.ndarray[Any, Any], options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(ImageError, match=reason) as error, open_slide(path, 0, PixelFormat(3)) as slide:
        slide.read(0, 20, 0, 20)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_large_pieces_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("munit_fast.tiles.slides.MAX_PIECE_BYTES", 10_000)
    check(write(tmp_path / "plain.tif", COLOUR), COLOUR, 3)  # is mapped, whatever its strips
    path = write(tmp_path / "a.tif", COLOUR, rowsperstrip=131, compression="zlib")
    with pytest.raises(ImageError, match="write it in tiles"), open_slide(path, 0, PixelFormat(3)):
        pass


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_files_are_refused(layout: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tif", COLOUR, **LAYOUTS[layout]).read_bytes()
    for name, data in (("short.tif", whole[:-100]), ("tiny.tif", whole[:6]), ("missing.tif", None)):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=name), open_slide(tmp_path / name, 0, PixelFormat(3)) as slide:
            slide.read(0, 131, 0, 90)


def several(tmp_path: Path) -> list[Path]:
    """Files with several images."""
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    np.save(tmp_path / "a.npy", np.stack([COLOUR, COLOUR, COLOUR]))
    volume = np.linspace(0, 1, 60, dtype=np.float32).reshape(5, 4, 3)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    for name, metadata in (("sizes.tif", None), ("described.tif", {})):
        with tifffile.TiffWriter(tmp_path / name) as file:
            for height in (131, 100):
                file.write(COLOUR[:height], photometric="rgb", metadata=metadata)
    with tifffile.TiffWriter(tmp_path / "ome.ome.tif") as file:
        for name in ("one", "two"):
            file.write(COLOUR, photometric="rgb", metadata={"Name": name})
    frames[0].save(tmp_path / "alike.tif", save_all=True, append_images=frames[1:])
    tifffile.imwrite(tmp_path / "stack.tif", GREY16[None].repeat(3, axis=0), imagej=True, metadata={"axes": "TYX"})
    return sorted(path for path in tmp_path.iterdir())


def test_files_with_several_images_are_refused(tmp_path: Path) -> None:
    for path in several(tmp_path):
        with pytest.raises(ImageError, match="--tile") as error, open_slide(path, 0, PixelFormat(3)):
            pass
        assert str(path) in str(error.value) and "\n" not in str(error.value), path


def test_masks_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(COLOUR, photometric="rgb", tile=(32, 32), metadata=None)
        file.write(COLOUR[:, :, 0] > 99, subfiletype=4, photometric="minisblack", metadata=None)
    with pytest.raises(ImageError, match="transparency mask"), open_slide(tmp_path / "a.tif", 0, PixelFormat(3)):
        pass


def test_what_lies_beside_a_slide_is_no_image(tmp_path: Path) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32), "metadata": None}
    whole, small, label = COLOUR, COLOUR[::2, ::2], COLOUR[:40, :50]
    with tifffile.TiffWriter(tmp_path / "plain.tif") as file:  # as libvips writes pyramids
        file.write(whole, **options)
        file.write(small, subfiletype=1, **options)
        file.write(label, subfiletype=1, photometric="rgb", metadata=None)
    check(tmp_path / "plain.tif", COLOUR, 3)
    check(tmp_path / "plain.tif", COLOUR[::2, ::2], 3, level=1)
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        file.write(whole, description="Aperio Image Library\n131x90 |AppMag = 20", **options)
        file.write(label, photometric="rgb", metadata=None, description="Aperio Image Library\nthumbnail")
        file.write(small, description="Aperio Image Library\nlevel", **options)
        file.write(label[:30], photometric="rgb", metadata=None, subfiletype=1, description="Aperio\nlabel")
        file.write(label[:20], photometric="rgb", metadata=None, subfiletype=9, description="Aperio\nmacro")
    check(tmp_path / "a.svs", COLOUR, 3)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for name, pixels in (("slide", whole), ("label image", label), ("macro image", small)):
            file.write(pixels, photometric="rgb", metadata={"Name": name})
    check(tmp_path / "a.ome.tif", COLOUR, 3)
