"""Translating files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import munit_fast as mf
from helpers.source_files import png, write_folder, write_zip
from munit_fast.data import FileSource, ImageError, ImageSource, decode_image, to_model_range
from munit_fast.translate import TranslateOptions, random_styles, style_path, translate_files
from munit_fast.translate import grid as grids


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path))


def test_one_picture(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    result = translate_files(model, pictures / "a.png", tmp_path / "out", TranslateOptions(num_style=3))
    names = ["input.png", "output000.png", "output001.png", "output002.png"]
    assert sorted(p.name for p in result.written) == sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert np.array_equal(pixels(tmp_path / "out" / "input.png"), pixels(pictures / "a.png"))
    # The picture is (y + 1) / 2, not stretched to the full range.
    codes = random_styles(10, 3, 3, 0)[None]
    y = model.translate(to_model_range(decode_image(pictures / "a.png", 3))[None], style=codes)[0, 1]
    expected = ((y + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(tmp_path / "out" / "output001.png"), expected)


def test_outputs_are_not_flushed_to_the_disk(
    model: mf.MUNIT, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    for name in ("fsync", "fdatasync", "sync"):
        monkeypatch.setattr(os, name, lambda *descriptor, name=name: flushed.append(name))
    options = TranslateOptions(num_style=10, grid=tmp_path / "grid.png")
    result = translate_files(model, pictures / "a.png", tmp_path / "out", options)
    assert len(result.written) == 12 and all(path.is_file() for path in result.written)
    assert flushed == []


def test_a_folder_in_any_batch_size(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    for batch_size in (1, 3):
        options = TranslateOptions(num_style=2, batch_size=batch_size, output_only=True)
        translate_files(model, pictures, tmp_path / str(batch_size), options)
    one, three = (sorted(p for p in (tmp_path / n).rglob("*.png")) for n in ("1", "3"))
    names = ["a_000.png", "a_001.png", "b_000.png", "b_001.png", "more/c_000.png", "more/c_001.png"]
    assert [str(p.relative_to(tmp_path / "1")) for p in one] == [*names, "more/d_000.png", "more/d_001.png"]
    for x, y in zip(one, three, strict=True):
        assert np.abs(pixels(x).astype(int) - pixels(y)).max() <= 1
    assert not np.array_equal(pixels(one[0]), pixels(one[1]))


def test_sizes(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    translate_files(model, pictures / "b.jpg", tmp_path / "short", TranslateOptions(num_style=1))
    assert pixels(tmp_path / "short" / "output000.png").shape == (38, 32, 3)  # 45×37 with a short side of 32
    translate_files(model, pictures / "b.jpg", tmp_path / "native", TranslateOptions(num_style=1, native_size=True))
    assert pixels(tmp_path / "native" / "output000.png").shape == (45, 37, 3)


def test_synchronized_styles_and_seeds(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    Image.open(pictures / "a.png").save(pictures / "a2.png")

    def translated(name: str, **options: Any) -> list[np.ndarray[Any, Any]]:
        translate_files(model, pictures, tmp_path / name, TranslateOptions(num_style=1, output_only=True, **options))
        return [pixels(tmp_path / name / f"{stem}_000.png") for stem in ("a", "a2")]

    same = translated("same", synchronized=True)
    assert np.array_equal(*same)
    free = translated("free")
    assert not np.array_equal(*free)
    assert np.array_equal(free, translated("again"))
    assert not np.array_equal(free, translated("other", seed=11))


def test_style_of_an_example(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    options = TranslateOptions(style=pictures / "more" / "c.png", num_style=10, output_only=True)
    result = translate_files(model, pictures / "a.png", tmp_path / "out", options)
    assert [p.name for p in result.written] == ["output000.png"]
    x, example = (to_model_range(decode_image(pictures / n, 3))[None] for n in ("a.png", "more/c.png"))
    expected = model.translate(x, style=example)[0, 0]
    assert np.array_equal(
        pixels(tmp_path / "out" / "output000.png"), ((expected + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    )


def test_b2a_and_unit(small_config: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    unit = mf.UNIT(mf.make_config(small_config | {"input_dim_b": 1})).eval()
    result = translate_files(unit, pictures / "a.png", tmp_path / "out", TranslateOptions(direction="b2a"))
    assert [p.name for p in result.written] == ["output000.png", "input.png"]
    assert pixels(tmp_path / "out" / "input.png").ndim == 2
    with pytest.raises(ValueError, match="--style"):
        translate_files(unit, pictures / "a.png", tmp_path / "out", TranslateOptions(style=pictures / "a.png"))


def test_names_that_would_collide(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    Image.open(pictures / "a.png").save(pictures / "a.jpg")
    Image.open(pictures / "a.png").save(pictures / "a_png.bmp")
    result = translate_files(model, pictures, tmp_path / "out", TranslateOptions(num_style=2))
    assert len(set(result.written)) == len(result.written) == 6 * 3


def test_styles_do_not_depend_on_the_other_pictures(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    options = TranslateOptions(num_style=2, output_only=True)
    translate_files(model, pictures, tmp_path / "before", options)
    Image.open(pictures / "a.png").save(pictures / "z.png")
    translate_files(model, pictures, tmp_path / "after", options)
    assert np.array_equal(pixels(tmp_path / "before" / "b_001.png"), pixels(tmp_path / "after" / "b_001.png"))


def test_inputs_are_never_overwritten(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    Image.open(pictures / "a.png").save(pictures / "a_000.png")
    before = (pictures / "a_000.png").read_bytes()
    chosen = FileSource([pictures / "a.png", pictures / "a_000.png"])
    with pytest.raises(ValueError, match=r"a_000\.png"):
        translate_files(model, chosen, pictures, TranslateOptions(num_style=1))
    (pictures / "a.png").rename(pictures / "input.png")
    with pytest.raises(ValueError, match=r"input\.png"):
        translate_files(model, pictures / "input.png", pictures, TranslateOptions(num_style=1))
    assert (pictures / "a_000.png").read_bytes() == before


def test_the_folder_of_the_inputs_is_refused(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    """A second run would take the results for inputs."""
    before = sorted(pictures.rglob("*"))
    (tmp_path / "link").symlink_to(pictures)
    for out in (pictures, tmp_path / "link", pictures / "more" / ".."):
        with pytest.raises(ValueError, match=r"--output_folder .* is the folder of the inputs; choose another"):
            translate_files(model, pictures, out, TranslateOptions(num_style=1))
    assert before == sorted(pictures.rglob("*"))
    translate_files(model, pictures / "a.png", pictures, TranslateOptions(num_style=1))  # one image, not a folder


def test_outputs_inside_the_input_folder_are_not_inputs(model: mf.MUNIT, pictures: Path) -> None:
    options = TranslateOptions(num_style=1)
    first = translate_files(model, pictures, pictures / "out", options)
    second = translate_files(model, pictures, pictures / "out", options)
    assert len(first.written) == 8 and (second.written, second.done_before, second.total) == ([], 4, 4)


def test_unreadable_pictures_are_reported_and_the_rest_is_done(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    result = translate_files(model, pictures, tmp_path / "out", TranslateOptions(num_style=1, output_only=True))
    assert len(result.written) == 4
    assert len(result.failures) == 1
    assert "broken.png" in result.failures[0]
    with pytest.raises(ImageError, match=r"broken\.png"):
        translate_files(model, pictures / "broken.png", tmp_path / "out2", TranslateOptions())
    assert not (tmp_path / "out2").exists()


def test_examples_are_read_one_after_the_other(
    model: mf.MUNIT, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, codes = list[str](), list[torch.Tensor]()
    read, encode = ImageSource.read, mf.MUNIT.encode_style

    def reading(self: ImageSource, i: int) -> Any:
        steps.append("read")
        return read(self, i)

    def encoding(self: mf.MUNIT, *args: Any) -> torch.Tensor:
        steps.append("encode")
        codes.append(encode(self, *args))
        return codes[-1]

    monkeypatch.setattr(ImageSource, "read", reading)
    monkeypatch.setattr(mf.MUNIT, "encode_style", encoding)
    options = TranslateOptions(style=pictures / "more", output_only=True)
    result = translate_files(model, pictures / "a.png", tmp_path / "out", options)
    assert len(result.written) == 2 and steps == ["read", "encode", "read", "encode", "read"]
    (pictures / "more" / "e.png").write_bytes(b"no picture")
    for mean in (False, True):
        options = TranslateOptions(style=pictures / "more", output_only=True, mean_style=mean)
        with pytest.raises(ImageError, match=r"more/e\.png"):
            translate_files(model, pictures, tmp_path / "none", options)
    assert not list((tmp_path / "none").glob("*.png"))


def test_the_way_from_style_to_style() -> None:
    codes = torch.tensor([[0.0, 0.0], [4.0, 8.0], [5.0, 8.0]])
    expected = torch.tensor([[0.0, 0.0], [2.0, 4.0], [4.0, 8.0], [4.5, 8.0], [5.0, 8.0]])
    assert torch.equal(style_path(codes, 2), expected)
    assert torch.equal(style_path(codes.expand(3, -1, -1), 2), expected.expand(3, -1, -1))
    assert torch.equal(style_path(codes, 1), codes)


def test_interpolation(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    def frames(name: str, **options: Any) -> list[np.ndarray[Any, Any]]:
        options = {"num_style": 2, "output_only": True} | options
        translate_files(model, pictures / "a.png", tmp_path / name, TranslateOptions(**options))
        return [pixels(p) for p in sorted((tmp_path / name).iterdir())]

    ends, way = frames("ends"), frames("way", interpolate=4)
    assert len(way) == 5
    assert np.array_equal(way[0], ends[0]) and np.array_equal(way[-1], ends[1])
    assert not any(np.array_equal(x, y) for x, y in zip(way, way[1:]))
    assert len(frames("examples", style=pictures / "more", interpolate=3)) == 4
    with pytest.raises(ValueError, match="--num_style 2"):
        frames("one", num_style=1, interpolate=4)
    with pytest.raises(ValueError, match=r"--interpolate .*0"):
        frames("none", interpolate=0)
    assert not (tmp_path / "one").exists() and not (tmp_path / "none").exists()


def test_a_grid_is_bounded(model: mf.MUNIT, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "MAX_GRID_ROWS", 3)
    grid = tmp_path / "grid.png"
    translate_files(model, pictures / "more", tmp_path / "two", TranslateOptions(num_style=1, grid=grid))
    assert pixels(grid).shape[0] == 2 * 34 + 2
    translate_files(model, pictures, tmp_path / "all", TranslateOptions(num_style=1, grid=grid, batch_size=1))
    assert pixels(grid).shape[0] == 2 * 34 + 40 + 2


@pytest.mark.parametrize("spare", [0, -1])
def test_a_grid_that_nothing_could_open_is_left_out(
    model: mf.MUNIT, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    monkeypatch.setattr(grids, "MAX_GRID_PIXELS", 2 * 2 * 32 * 32 + spare)  # two inputs, one translation of each
    grid, out = tmp_path / "grid.png", tmp_path / "out"
    result = translate_files(model, pictures / "more", out, TranslateOptions(num_style=1, grid=grid))
    assert grid.exists() == (grid in result.written) == (spare == 0)
    assert len(list(out.glob("*.png"))) == 4  # the translations are there all the same
    assert bool(result.failures) == (spare < 0)
    if spare < 0:
        assert str(grid) in result.failures[0]


def test_a_grid_of_all(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    grid = tmp_path / "seen" / "grid.png"
    options = TranslateOptions(num_style=2, grid=grid, native_size=True, batch_size=1)
    result = translate_files(model, pictures, tmp_path / "out", options)
    assert result.written[-1] == grid
    picture = pixels(grid)
    assert picture.shape == (3 * 34 + 47 + 2, 3 * (37 + 2) + 2, 3)
    assert np.array_equal(picture[2:34, 4:36], pixels(pictures / "a.png"))  # in the middle of its cell
    assert np.array_equal(picture[36:81, 41:78], pixels(tmp_path / "out" / "b_000.png"))
    before = sorted(p.name for p in (tmp_path / "out").rglob("*"))
    for taken in (pictures / "b.jpg", tmp_path / "out" / "a_000.png"):
        with pytest.raises(ValueError, match=f"--grid .*{taken.name}"):
            translate_files(model, pictures, tmp_path / "out", TranslateOptions(num_style=1, grid=taken))
    with pytest.raises(ValueError, match=r"--grid .*grid\.pdf.*\.png"):
        translate_files(model, pictures, tmp_path / "no", TranslateOptions(grid=tmp_path / "grid.pdf"))
    assert before == sorted(p.name for p in (tmp_path / "out").rglob("*")) and not (tmp_path / "no").exists()


def test_archives_give_what_their_folders_give(small_config: dict[str, Any], tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(3)} | {"notes.txt": b"x"}
    model, said = mf.MUNIT(mf.make_config(small_config)).eval(), list[str]()
    folder, archive = write_folder(tmp_path / "in", files), write_zip(tmp_path / "in.zip", files)
    for place in (folder, archive):
        translate_files(model, place, tmp_path / f"{place.name}_out", TranslateOptions(num_style=2), say=said.append)
    written = [
        {path.name: path.read_bytes() for path in sorted((tmp_path / f"{place.name}_out").glob("*.png"))}
        for place in (folder, archive)
    ]
    assert len(written[0]) == 9 and written[0] == written[1]
    assert [line for line in said if "1 file skipped" in line and "not an image (.txt)" in line][0:2] == said[:2]
