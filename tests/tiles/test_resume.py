"""A killed job continues where it was and makes the same file; one with other settings begins anew."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import munit_fast as mf
from munit_fast.io.atomic import FileWriteError
from munit_fast.tiles import TileOptions, TileResult, translate_slide
from munit_fast.tiles import run as tiles_run
from munit_fast.tiles.plan import Box
from munit_fast.tiles.storage import PixelFile, open_job

SCRIPT = Path(__file__).parents[1] / "helpers" / "crash_slide.py"
STYLE = torch.ones(3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("statistics", "flush"), [("exact", 0), ("exact", 1e9), ("sampled", 0)])
def test_killed_jobs_continue_to_the_same_bytes(statistics: str, flush: float, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), statistics, str(flush)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, computed = map(int, done.stdout.split())
    if flush == 0:  # a tile is noted when the next one begins: at most one a kill is lost
        assert whole <= computed <= whole + 5


@pytest.fixture
def model(small_config: dict[str, Any]) -> mf.MUNIT:
    torch.manual_seed(0)
    return mf.MUNIT(mf.make_config(small_config)).eval()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "in.tif", np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8))
    return tmp_path / "in.tif"


class Stop(Exception):
    pass


def interrupted(model: mf.MUNIT, source: Path, options: TileOptions, after: int = 7) -> Path:
    def stop(done: int, total: int, name: str) -> None:
        if done == after:
            raise Stop

    output = source.with_name("out.tif")
    with pytest.raises(Stop):
        translate_slide(model, source, output, options, style=STYLE, progress=stop)
    assert not output.exists() and source.with_name(".out.tif.tiles").is_dir()
    return output


def finished(model: mf.MUNIT, source: Path, options: TileOptions, style: torch.Tensor = STYLE) -> TileResult:
    return translate_slide(model, source, source.with_name("out.tif"), options, style=style)


@pytest.mark.parametrize("change", ["tile", "style", "weights", "configuration", "input", "statistics"])
def test_other_settings_begin_anew(
    change: str, model: mf.MUNIT, small_config: dict[str, Any], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("munit_fast.tiles.storage.FLUSH_SECONDS", 0)
    options, style = TileOptions(tile=32, statistics="exact"), STYLE
    output = interrupted(model, source, options)
    assert finished(model, source, options).resumed
    interrupted_bytes = output.read_bytes()
    output.unlink()
    interrupted(model, source, options)
    if change == "tile":
        options.tile = 24
    elif change == "style":
        style = 2 * STYLE
    elif change == "weights":
        model.gen_b.mlp.model[0].fc.bias.data += 1
    elif change == "configuration":
        config = {**small_config, "gen": {**small_config["gen"], "activ": "lrelu"}}
        model, weights = mf.MUNIT(mf.make_config(config)).eval(), model.state_dict()
        model.load_state_dict(weights)
    elif change == "input":
        tifffile.imwrite(source, np.zeros((70, 50, 3), np.uint8))
    else:
        options = TileOptions(tile=16, samples=4)
    result = finished(model, source, options, style)
    names = {"tile": "--tile", "weights": "model", "statistics": "--tile_statistics"}
    assert not result.resumed and any(names.get(change, change) in note and "anew" in note for note in result.notes)
    fresh = output.read_bytes()
    output.unlink()
    finished(model, source, options, style)
    assert output.read_bytes() == fresh
    if change not in ("tile", "statistics"):
        assert fresh != interrupted_bytes


def test_a_job_keeps_its_precision(model: mf.MUNIT, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("munit_fast.tiles.storage.FLUSH_SECONDS", 0)
    options = TileOptions(tile=16, samples=4)
    finished(model, source, options)
    source.with_name("out.tif").rename(source.with_name("full.tif"))
    options.amp = "auto"
    for name, first, later in (("bf16.tif", "bf16", "bf16"), ("mixed.tif", "bf16", "off"), ("off.tif", "off", "bf16")):
        monkeypatch.setattr(tiles_run, "resolve", lambda *_, answer=first: answer)
        output = interrupted(model, source, options, after=15)
        monkeypatch.setattr(tiles_run, "resolve", lambda *_, answer=later: answer)
        assert finished(model, source, options).resumed
        output.rename(source.with_name(name))
    full, bf16, mixed, off = (source.with_name(f"{name}.tif").read_bytes() for name in ("full", "bf16", "mixed", "off"))
    assert full == off != bf16 == mixed


def test_a_job_that_cannot_be_read_is_begun_anew(model: mf.MUNIT, source: Path) -> None:
    options = TileOptions(tile=32, statistics="exact")
    output = interrupted(model, source, options)
    folder = source.with_name(".out.tif.tiles")
    (folder / "state.json").write_text("[")
    (folder / "more").mkdir()
    assert not finished(model, source, options).resumed and output.exists() and not folder.exists()


def test_one_process_at_a_time(model: mf.MUNIT, source: Path) -> None:
    pytest.importorskip("fcntl")
    with open_job(source.with_name("out.tif"), {}), pytest.raises(FileWriteError, match="another process"):
        finished(model, source, TileOptions(tile=32))
    finished(model, source, TileOptions(tile=32))


@pytest.mark.parametrize("made_again", [False, True])
def test_the_folder_goes_while_it_is_locked(made_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for the lock must not find its folder removed by the one before."""
    fcntl = pytest.importorskip("fcntl")
    output, flock = tmp_path / "out.tif", fcntl.flock
    with open_job(output, {}):
        assert (tmp_path / ".out.tif.tiles" / "lock").exists()
    assert list(tmp_path.iterdir()) == []

    def late(file: Any, how: int) -> None:  # the other process ends between opening and locking
        shutil.rmtree(tmp_path / ".out.tif.tiles")
        if made_again:  # by a third one
            (tmp_path / ".out.tif.tiles").mkdir()
            (tmp_path / ".out.tif.tiles" / "lock").touch()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileWriteError, match="another process"), open_job(output, {}):
        pass


def test_a_folder_that_was_half_removed_is_not_gone_on_with(
    model: mf.MUNIT, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(model, source, TileOptions(tile=32))
    whole = source.with_name("out.tif").read_bytes()
    source.with_name("out.tif").unlink()

    with monkeypatch.context() as patch:
        unlink = Path.unlink

        def first(path: Path, *more: Any, **named: Any) -> None:
            unlink(path, *more, **named)
            if source.with_name("out.tif").exists() and path.name in (
                "state.json",
                "pixels",
                "image.done",
                "image.numbers",
                "lock",
            ):
                raise Stop

        patch.setattr(Path, "unlink", first)
        patch.setattr(Path, "iterdir", lambda path: iter(path / name for name in sorted(os.listdir(path))))
        with pytest.raises(Stop):
            finished(model, source, TileOptions(tile=32))
    folder = source.with_name(".out.tif.tiles")
    assert len(list(folder.iterdir())) > 2
    (folder / "pixels").unlink(missing_ok=True)
    assert not finished(model, source, TileOptions(tile=32)).resumed
    assert source.with_name("out.tif").read_bytes() == whole


def test_features_are_removed_when_nothing_reads_them(model: mf.MUNIT, source: Path) -> None:
    most = 0
    folder = source.with_name(".out.tif.tiles")

    def look(done: int, total: int, name: str) -> None:
        nonlocal most
        sizes = [path.stat().st_size for path in folder.glob("*.features")]
        most = max(most, sum(sizes))

    options = TileOptions(tile=32, statistics="exact")
    result = translate_slide(model, source, source.with_name("out.tif"), options, style=STYLE, progress=look)
    assert 0 < most == result.disk


def test_a_full_disk(model: mf.MUNIT, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_run.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(FileWriteError, match="are free"):
        finished(model, source, TileOptions(tile=32))
    assert not source.with_name(".out.tif.tiles").exists()


def test_pixel_files_hold_boxes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 9, 7, 3)).astype(np.float32)
    file = PixelFile(tmp_path / "a", values.shape, np.float32)
    for box in (Box(0, 0, 9, 0, 4), Box(0, 0, 9, 4, 7), Box(1, 0, 5, 0, 7), Box(1, 5, 9, 0, 7)):
        file.write(box, values[box.plane, box.top : box.bottom, box.left : box.right])
    assert np.array_equal(file.read(Box(1, 3, 8, 2, 6)), values[1, 3:8, 2:6])
    file.file.truncate(100)
    with pytest.raises(FileWriteError, match="read back"):
        file.read(Box(1, 3, 8, 2, 6))


def test_a_file_that_cannot_be_written(model: mf.MUNIT, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    output, folder = source.with_name("out.tif"), source.with_name(".out.tif.tiles")
    output.write_bytes(b"an earlier one")
    with monkeypatch.context() as patch:
        patch.setattr(tifffile.TiffWriter, "write", full)
        with pytest.raises(FileWriteError, match=r"cannot write .*out\.tif: No space"):
            finished(model, source, TileOptions(tile=32))
    assert output.read_bytes() == b"an earlier one" and not (folder / "output.tif").exists()
    (folder / "output.tif").write_bytes(b"of a killed process")
    assert finished(model, source, TileOptions(tile=32)).resumed
    assert tifffile.imread(output).shape == (70, 50, 3)
    assert sorted(path.name for path in source.parent.iterdir()) == ["in.tif", "out.tif"]
