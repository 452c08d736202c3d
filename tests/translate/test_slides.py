"""Files that are translated tile by tile, and one style for a whole set."""

from __future__ import annotations

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
from munit_fast.tiles import TileOptions, mean_style, translate_slide
from munit_fast.tiles.storage import open_job
from munit_fast.translate import Shard, TranslateOptions, random_styles, translate_files, translate_slides
from munit_fast.translate import slides as translate_slides_module

TILES = TileOptions(tile=32, samples=2)


@pytest.fixture
def model() -> mf.MUNIT:
    torch.manual_seed(0)
    return mf.MUNIT({"gen": {"dim": 4, "n_res": 1, "mlp_dim": 8, "style_dim": 3}}).eval()


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.tif", "b/c.tif", "b/d.tif"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, rng.integers(0, 256, (90, 110, 3), np.uint8), photometric="rgb", tile=(32, 32))
    return tmp_path / "in"


def options(**more: Any) -> TranslateOptions:
    return TranslateOptions(**{"num_style": 2, "extension": "tif", **more})


def test_every_slide_in_its_styles(model: mf.MUNIT, slides: Path, tmp_path: Path) -> None:
    result = translate_slides(model, slides, tmp_path / "out", options(), TILES)
    names = [f"{name}_00{j}.tif" for name in ("a", "b/c", "b/d") for j in range(2)]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in result.written] == names
    style = random_styles(10, 2, 3, 1)[1]
    translate_slide(model, slides / "b" / "c.tif", tmp_path / "alone.tif", TILES, style=style)
    assert (tmp_path / "alone.tif").read_bytes() == (tmp_path / "out" / "b" / "c_001.tif").read_bytes()


def test_finished_slides_are_kept_and_shared(model: mf.MUNIT, slides: Path, tmp_path: Path) -> None:
    def run(folder: str, **more: Any) -> tuple[int, int]:
        result = translate_slides(model, slides, tmp_path / folder, options(), TILES, **more)
        return len(result.written), result.done_before

    assert run("out") == (6, 0) and run("out") == (0, 3)
    (tmp_path / "out" / "b" / "c_001.tif").unlink()
    assert run("out") == (2, 2)
    assert [run("two", shard=Shard(rank, 2)) for rank in range(2)] == [(4, 0), (2, 0)]
    for path in (tmp_path / "out").rglob("*.tif"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "out")).read_bytes()
    other = TileOptions(tile=32, samples=3)
    assert len(translate_slides(model, slides, tmp_path / "out", options(), other).written) == 6


def test_a_folder_keeps_its_precision(
    model: mf.MUNIT, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(answer: str, name: str, amp: str = "auto", statistics: Any = "sampled") -> list[bytes]:
        monkeypatch.setattr(translate_slides_module, "resolve", lambda amp, *_: answer if amp == "auto" else amp)
        tiles = TileOptions(tile=32, samples=2, amp=amp, statistics=statistics)
        translate_slides(model, slides, tmp_path / name, options(), tiles)
        return [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.tif"))]

    first = run("bf16", "out")
    (tmp_path / "out" / "a_000.tif").unlink()
    assert run("off", "out") == first == run("off", "named", amp="bf16") != run("off", "off")
    run("bf16", "exact", statistics="exact")


def test_a_bad_slide_of_a_folder_is_left_out(model: mf.MUNIT, slides: Path, tmp_path: Path) -> None:
    (slides / "b" / "c.tif").write_bytes(b"II*\0nothing")
    result = translate_slides(model, slides, tmp_path / "out", options(), TILES)
    assert len(result.written) == 4 and len(result.failures) == 1 and "c.tif" in result.failures[0]
    with pytest.raises(ImageError, match=r"c\.tif"):
        translate_slides(model, slides / "b" / "c.tif", tmp_path / "one", options(), TILES)


def test_what_tiles_cannot_do(model: mf.MUNIT, slides: Path, tmp_path: Path) -> None:
    for more in ({"extension": "png"}, {"grid": tmp_path / "grid.png"}):
        with pytest.raises(ValueError, match="--tile writes tiled TIFF"):
            translate_slides(model, slides, tmp_path / "out", options(**more), TILES)
    (slides / "a_000.tif").write_bytes((slides / "a.tif").read_bytes())
    with pytest.raises(ValueError, match="is the folder of the inputs"):
        translate_slides(model, slides, slides, options(), TILES)


def test_a_slide_that_another_process_makes_is_left_out(model: mf.MUNIT, slides: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / "out" / "b").mkdir(parents=True)
    with open_job(tmp_path / "out" / "b" / "c_001.tif", {}):
        result = translate_slides(model, slides, tmp_path / "out", options(), TILES)
        assert len(result.written) == 4 and len(result.failures) == 1
        assert "c_001.tif: another process is making it" in result.failures[0]
    result = translate_slides(model, slides, tmp_path / "out", options(), TILES)
    assert (len(result.written), result.done_before, result.failures) == (2, 2, [])
    (tmp_path / "one").mkdir()
    with open_job(tmp_path / "one" / "output000.tif", {}), pytest.raises(FileWriteError, match="another process"):
        translate_slides(model, slides / "a.tif", tmp_path / "one", options(), TILES)


def test_what_is_left_out_is_said(model: mf.MUNIT, slides: Path, tmp_path: Path) -> None:
    said: list[str] = []
    translate_slides(model, slides, tmp_path / "out", options(), TILES, say=said.append)
    assert not any("skipped" in line or "no effect" in line for line in said)
    (slides / "notes.txt").write_text("text")
    said.clear()
    unused = options(batch_size=2, workers=1, native_size=True)
    translate_slides(model, slides, tmp_path / "out", unused, TILES, say=said.append)
    assert any(str(slides) in line and "txt" in line for line in said)
    assert "with --tile, --batch_size, --workers, --native_size has no effect" in said
    said.clear()
    translate_slides(model, slides, tmp_path / "out", unused, TILES, say=said.append, shard=Shard(1, 2))
    assert not any("no effect" in line or "txt" in line for line in said)


def test_bands_in_files_of_their_own_are_refused(slides: Path, tmp_path: Path) -> None:
    gen = {"dim": 4, "n_res": 1, "mlp_dim": 8, "style_dim": 3}
    model = mf.MUNIT({"gen": gen, "bands_a": ["a", "c", "d"]}).eval()
    with pytest.raises(ValueError, match="--tile reads one file an image, and bands_a joins several"):
        translate_slides(model, slides, tmp_path / "out", options(), TILES)
    assert not (tmp_path / "out").exists()
    assert translate_slides(model, slides / "a.tif", tmp_path / "out", options(), TILES).written
    assert translate_slides(model, slides, tmp_path / "out", options(direction="b2a"), TileOptions("b2a", 32)).written


def test_one_style_for_a_whole_set(model: mf.MUNIT, slides: Path, tmp_path: Path) -> None:
    examples = tmp_path / "examples"
    examples.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 80, 3), np.uint8)).save(examples / f"{i}.png")
    given = {"style": examples, "mean_style": True, "native_size": True}
    result = translate_files(model, slides, tmp_path / "out", options(extension="npy", output_only=True, **given))
    assert [path.name for path in result.written] == ["a_000.npy", "c_000.npy", "d_000.npy"]
    style = mean_style(model, examples, "b", native_size=True)
    codes = [
        model.encode_style(torch.from_numpy(np.asarray(Image.open(path))).permute(2, 0, 1)[None] / 127.5 - 1, "b")
        for path in sorted(examples.iterdir())
    ]
    assert torch.allclose(style, torch.cat(codes).mean(0, keepdim=True), atol=1e-6)
    x = torch.from_numpy(tifffile.imread(slides / "a.tif")).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = (model.translate(x, style=style)[0, 0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(np.load(tmp_path / "out" / "a_000.npy") - wanted).max() < 0.51
    tiled = translate_slides(model, slides / "a.tif", tmp_path / "tiled", options(**given), TileOptions(tile=32))
    assert np.abs(tifffile.imread(tiled.written[0]).astype(float) - wanted).max() < 0.51
    with pytest.raises(ValueError, match="--style_folder"):
        translate_files(model, slides, tmp_path / "none", options(mean_style=True))


def test_files_with_several_images_are_left_out(model: mf.MUNIT, slides: Path, tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((40, 50, 3), value, np.uint8)) for value in (0, 99)]
    pages[0].save(slides / "b" / "c.gif", save_all=True, append_images=pages[1:])
    result = translate_slides(model, slides, tmp_path / "out", options(), TILES)
    assert len(result.written) == 6
    assert len(result.failures) == 1 and "c.gif: holds 2 images" in result.failures[0]
    with pytest.raises(ImageError, match="leave out --tile"):
        translate_slides(model, slides / "b" / "c.gif", tmp_path / "one", options(), TILES)
