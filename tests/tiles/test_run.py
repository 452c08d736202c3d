"""`translate_slide`: the file it writes, its memory, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import munit_fast as mf
from munit_fast.data import ImageError
from munit_fast.io.atomic import FileWriteError
from munit_fast.tiles import TileOptions, translate_slide

SCRIPT = Path(__file__).parents[1] / "helpers" / "check_slide_memory.py"
PIXELS = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
STYLE = torch.ones(3)


@pytest.fixture
def model(small_config: dict[str, Any]) -> mf.MUNIT:
    torch.manual_seed(0)
    return mf.MUNIT(mf.make_config(small_config)).eval()


def test_the_file(model: mf.MUNIT, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    tifffile.imwrite(tmp_path / "in.tif", PIXELS, resolution=(20000, 10000), resolutionunit=3, iccprofile=b"profile")
    result = translate_slide(
        model, tmp_path / "in.tif", tmp_path / "out.TIFF", TileOptions(tile=32, samples=2), style=STYLE[None],
        progress=lambda *place: seen.append(place),
    )  # fmt: skip
    assert (result.path, result.size, result.resumed) == (tmp_path / "out.TIFF", (70, 50), False)
    with tifffile.TiffFile(result.path) as tiff:
        page: Any = tiff.pages[0]
        assert tiff.is_bigtiff and page.is_tiled and page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.shape == (70, 50, 3) and page.dtype == np.uint8 and page.photometric == tifffile.PHOTOMETRIC.RGB
        assert page.resolution == (20000, 10000) and page.resolutionunit == 3
        assert page.tags["InterColorProfile"].value == b"profile"
    done, total = [place[0] for place in seen], {place[1] for place in seen}
    assert done == list(range(1, len(done) + 1)) and total == {len(done)} and seen[-1][2] == "image"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.TIFF"]
    translate_slide(model, tmp_path / "in.tif", tmp_path / "again.tif", TileOptions(tile=32, samples=2), style=STYLE)
    assert (tmp_path / "again.tif").read_bytes() == result.path.read_bytes()


@pytest.mark.parametrize(("dtype", "kept"), [("u2", "u2"), ("u1", "u1"), ("f4", "f4")])
def test_depths(dtype: str, kept: str, model: mf.MUNIT, tmp_path: Path) -> None:
    scale = {"u1": 1, "u2": 257, "f4": 1 / 255}[dtype]
    tifffile.imwrite(tmp_path / "in.tif", (PIXELS.astype(float) * scale).astype(dtype), photometric="rgb")
    options = TileOptions(tile=32, statistics="exact")
    translate_slide(model, tmp_path / "in.tif", tmp_path / "out.tif", options, style=STYLE)
    written = tifffile.imread(tmp_path / "out.tif")
    x = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5)
    white = {"u1": 255, "u2": 65535, "f4": 1}[kept]
    wanted = ((model.translate(x, style=STYLE[None])[0, 0] + 1) / 2 * white).permute(1, 2, 0).numpy()
    assert written.dtype == np.dtype(kept) and abs(written - wanted).max() <= (kept != "f4") * 0.5 + white * 1e-5


def test_other_images_and_grey(model: mf.MUNIT, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "in.png")
    options = TileOptions(tile=32, statistics="exact")
    translate_slide(model, tmp_path / "in.png", tmp_path / "a.tif", options, style=STYLE)
    tifffile.imwrite(tmp_path / "in.tif", PIXELS)
    translate_slide(model, tmp_path / "in.tif", tmp_path / "b.tif", options, style=STYLE)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    grey = mf.UNIT(mf.make_config({"gen": {"dim": 4, "n_res": 1}, "input_dim_b": 1})).eval()
    translate_slide(grey, tmp_path / "in.tif", tmp_path / "c.tif", TileOptions(tile=32))
    assert tifffile.imread(tmp_path / "c.tif").shape == (70, 50)


def test_autocast_is_near(model: mf.MUNIT, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PIXELS)
    images = []
    for amp in ("off", "bf16"):
        options = TileOptions(tile=16, samples=4, amp=amp)
        translate_slide(model, tmp_path / "in.tif", tmp_path / "out.tif", options, style=STYLE)
        images.append(tifffile.imread(tmp_path / "out.tif").astype(int))
    assert 0 < abs(images[0] - images[1]).max() < 20


def test_what_it_takes_is_said_first(model: mf.MUNIT, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PIXELS)
    said: list[str] = []
    options = TileOptions(tile=32, statistics="exact", disk=0)
    done: list[int] = []
    result = translate_slide(
        model, tmp_path / "in.tif", tmp_path / "out.tif", options, style=STYLE, say=said.append,
        progress=lambda *place: done.append(len(said)),
    )  # fmt: skip
    assert said == result.notes and done[0] == len(said) and result.disk == 0
    assert "times the arithmetic" in said[0] and "may be taken" in said[1]


@pytest.mark.parametrize(
    ("options", "style", "output", "reason"),
    [
        ({"tile": 15}, STYLE, "out.tif", "--tile must"),
        ({"statistics": "tile"}, STYLE, "out.tif", "--tile_statistics"),
        ({"samples": 0}, STYLE, "out.tif", "--tile_samples"),
        ({"level": -1}, STYLE, "out.tif", "--level"),
        ({"level": 1}, STYLE, "out.tif", "no level 1"),
        ({"disk": -1}, STYLE, "out.tif", "--tile_disk"),
        ({"direction": "a"}, STYLE, "out.tif", "direction"),
        ({"statistics": "exact", "amp": "bf16"}, STYLE, "out.tif", "--amp bf16"),
        ({}, None, "out.tif", r"style must be a code \[3\]"),
        ({}, torch.ones(4), "out.tif", "got \\[4\\]"),
        ({}, torch.full((3,), torch.nan), "out.tif", "finite"),
        ({}, STYLE, "out.png", r"\.tif"),
        ({}, STYLE, "in.tif", "is the input"),
    ],
)
def test_what_is_refused(
    options: dict[str, Any], style: Any, output: str, reason: str, model: mf.MUNIT, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PIXELS)
    before = (tmp_path / "in.tif").read_bytes()
    with pytest.raises(ValueError, match=reason) as error:
        translate_slide(model, tmp_path / "in.tif", tmp_path / output, TileOptions(**options), style=style)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"] and (tmp_path / "in.tif").read_bytes() == before


def test_files_that_are_not_there(model: mf.MUNIT, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        translate_slide(model, tmp_path / "in.tif", tmp_path / "out.tif", style=STYLE)
    tifffile.imwrite(tmp_path / "in.tif", PIXELS)
    with pytest.raises(FileWriteError, match="missing"):
        translate_slide(model, tmp_path / "in.tif", tmp_path / "missing" / "out.tif", style=STYLE)
    unit = mf.UNIT(mf.make_config({"gen": {"dim": 4}}))
    with pytest.raises(ValueError, match="UNIT"):
        translate_slide(unit, tmp_path / "in.tif", tmp_path / "out.tif", style=STYLE)


def test_weights_that_give_nan(model: mf.MUNIT, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PIXELS)
    model.gen_b.dec.model[-1].conv.bias.data += torch.nan
    with pytest.raises(ImageError, match="NaN"):
        translate_slide(model, tmp_path / "in.tif", tmp_path / "out.tif", style=STYLE)
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of the resident set")
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    small, large, exact, features = map(float, done.stdout.split())
    assert features > 60  # MB of one layer of the large image, of which the untiled network holds several
    assert large < small + 16 and exact < small + 16
