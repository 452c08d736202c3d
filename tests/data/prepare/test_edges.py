"""Edges ↔ pictures from a folder."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from munit_fast.data import DatasetError, ImageError, prepare_edges
from munit_fast.data.prepare import edges
from munit_fast.io.atomic import FileWriteError

pytest.importorskip("skimage")


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def draw(path: Path, i: int, size: tuple[int, int] = (40, 30)) -> None:
    """A picture of a coloured square whose place tells ``i``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (200, 220, 240))
    image.paste((20 * i % 256, 60, 30), (5 + i, 5, 17 + i, 20))
    image.save(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for i in range(10):
        draw(root / ("cats" if i % 2 else "dogs") / f"no {i // 2}.png", i)
    shutil.copy(root / "cats" / "no 1.png", root / "twin.png")
    Image.open(root / "cats" / "no 2.png").save(root / "twin.bmp")  # equal pixels in another format
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff rubbish")
    (root / "empty.png").touch()
    Image.new("RGB", (30, 30), "white").save(root / "white.png")
    return root


@pytest.fixture(scope="module")
def prepared(source: Path) -> tuple[Path, dict[str, Any]]:
    out = source.with_name("edges")
    return out, prepare_edges(source, out, size=24, test_fraction=0.2, sigma=1.0)


def test_the_folder_is_what_the_manifest_says(prepared: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = prepared
    assert set(tree(out)) - {"manifest.json"} == set(manifest["files"])
    assert manifest["counts"] == {"trainA": 4, "trainB": 4, "testA": 2, "testB": 2}
    on_disk = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert on_disk == {key: value for key, value in manifest.items() if key != "reused"}
    assert str(out.parent) not in (out / "manifest.json").read_text(encoding="utf-8")


def test_what_was_left_out_is_counted_with_reasons(prepared: tuple[Path, dict[str, Any]]) -> None:
    manifest = prepared[1]
    assert manifest["skipped"] == {"copy of another": 2, "unreadable": 2, "without edges": 1}
    assert manifest["skipped_files"]["copy of another"] == {"twin.bmp": "cats/no 2.png", "twin.png": "cats/no 1.png"}
    unreadable = manifest["skipped_files"]["unreadable"]
    assert unreadable["empty.png"].endswith("empty") and unreadable["broken.jpg"].startswith("not a")
    assert "white.png" in manifest["skipped_files"]["without edges"]


def test_pairs_share_names_and_training_shares_no_picture(prepared: tuple[Path, dict[str, Any]]) -> None:
    files = prepared[1]["files"]
    used = {
        split: {entry["source"] for name, entry in files.items() if name.startswith(f"{split}/")}
        for split in ("trainA", "trainB", "testA", "testB")
    }
    assert used["testA"] == used["testB"]
    assert len(used["trainA"] | used["trainB"] | used["testA"]) == 10
    for name, entry in files.items():
        if name.startswith("testA/"):
            assert files[name.replace("testA", "testB")] == entry


def test_edges_are_black_on_white_where_the_picture_changes(prepared: tuple[Path, dict[str, Any]]) -> None:
    out = prepared[0]
    for path in (out / "testA").iterdir():
        drawing = np.asarray(Image.open(path))
        picture = np.asarray(Image.open(out / "testB" / path.name)).astype(int)
        assert drawing.shape == (24, 32) and picture.shape == (24, 32, 3)
        assert set(np.unique(drawing)) == {0, 255} and 0.02 < (drawing == 0).mean() < 0.3
        steps = np.abs(np.diff(picture.sum(2), axis=1))[:, :31]
        near = np.maximum(steps, np.roll(steps, 1, axis=1))[8:14, :]
        columns = np.nonzero((drawing[8:14, :31] == 0).all(axis=0))[0]
        assert len(columns) >= 2 and (near[:, columns].max(axis=1) > 50).all()


def test_twice_gives_the_same_bytes(prepared: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path) -> None:
    prepare_edges(source, tmp_path / "again", size=24, test_fraction=0.2, sigma=1.0)
    assert tree(tmp_path / "again") == tree(prepared[0])


def test_another_seed_gives_another_split(prepared: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path) -> None:
    manifest = prepare_edges(source, tmp_path / "again", size=24, test_fraction=0.2, sigma=1.0, seed=1)
    assert manifest["counts"] == prepared[1]["counts"] and manifest["files"] != prepared[1]["files"]


def test_reuse_needs_the_same_parameters_and_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(source, pictures)
    first = prepare_edges(pictures, out, size=24)
    assert first["reused"] is False
    with monkeypatch.context() as patch:
        patch.setattr(edges, "atomic_directory", lambda out: pytest.fail("it was prepared again"))
        assert prepare_edges(pictures, out, size=24) == {**first, "reused": True}
    with pytest.raises(DatasetError, match="other parameters"):
        prepare_edges(pictures, out, size=24, seed=1)
    draw(pictures / "new.png", 14)
    with pytest.raises(DatasetError, match="other parameters"):
        prepare_edges(pictures, out, size=24)


@pytest.mark.parametrize(("count", "fraction", "tests"), [(3, 0.01, 1), (3, 0.99, 1), (8, 0.5, 4)])
def test_every_split_gets_a_picture(tmp_path: Path, count: int, fraction: float, tests: int) -> None:
    for i in range(count):
        draw(tmp_path / "in" / f"{i}.png", i)
    counts = prepare_edges(tmp_path / "in", tmp_path / "out", size=24, test_fraction=fraction)["counts"]
    assert counts["testA"] == tests and min(counts.values()) >= 1
    assert counts["trainA"] + counts["trainB"] + tests == count


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    for i in range(2):
        draw(tmp_path / "in" / f"{i}.png", i)
    with pytest.raises(DatasetError, match=r" 2 .* 3 "):
        prepare_edges(tmp_path / "in", tmp_path / "out", size=24)
    assert os.listdir(tmp_path) == ["in"]
    with pytest.raises(ImageError, match="no such folder"):
        prepare_edges(tmp_path / "nowhere", tmp_path / "out")


def test_what_was_left_out_is_said_where_too_few_are_usable(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(4):
        pixels = np.full((40, 40), 7000, np.uint16)
        pixels[8 + i : 20, 9:20] = 7550
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "x.png").write_bytes(b"")
    draw(tmp_path / "in" / "y.png", 0)
    shutil.copy(tmp_path / "in" / "y.png", tmp_path / "in" / "z.png")
    with pytest.raises(DatasetError) as caught:
        prepare_edges(tmp_path / "in", tmp_path / "out", size=40)
    for words in (
        "only 1 usable picture; at least 3 are needed, one per split; left out: ",
        "4 without edges (0.png: no edges at sigma 2; its values 7000..7550 use little of 0..65535, the range of",
        "1 unreadable (x.png: the file is empty)",
        "1 copy of another (z.png: y.png)",
    ):
        assert words in str(caught.value)


def test_names_are_portable_and_unique(tmp_path: Path) -> None:
    names = ["a b.png", "a_b.png", "A_B.png", "a/b.png", "a/B.png", "ünï.png", "ж.png", "x" * 200 + ".png", "a.b.png"]
    for i, name in enumerate(names):
        draw(tmp_path / "in" / name, i)
    manifest = prepare_edges(tmp_path / "in", tmp_path / "out", size=24)
    stems = {name.split("/")[1].removesuffix(".png") for name in manifest["files"]}
    assert len({stem.lower() for stem in stems}) == len(names)
    for stem in stems:
        assert stem.isascii() and stem.replace("-", "").replace("_", "").isalnum() and len(stem) <= 84


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    for i in range(3):
        image = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
        image.paste((200, 30, 30, 255), (4 + i, 4, 20, 20))
        (tmp_path / "in").mkdir(exist_ok=True)
        image.save(tmp_path / "in" / f"{i}.png")
    prepare_edges(tmp_path / "in", tmp_path / "out", size=30)
    for folder in ("trainB", "testB"):
        (path,) = (tmp_path / "out" / folder).iterdir()
        assert np.asarray(Image.open(path))[0, 0].tolist() == [255, 255, 255]


def test_every_page_is_a_picture_and_upright(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        draw(tmp_path / "page.png", i)
        draw(tmp_path / "next.png", i + 5)
        with Image.open(tmp_path / "page.png") as first, Image.open(tmp_path / "next.png") as second:
            first.save(tmp_path / "in" / f"stack {i}.tif", save_all=True, append_images=[second])
    exif = Image.Exif()
    exif[274] = 6
    draw(tmp_path / "page.png", 12)
    with Image.open(tmp_path / "page.png") as image:
        image.save(tmp_path / "in" / "turned.jpg", exif=exif, quality=95)
    manifest = prepare_edges(tmp_path / "in", tmp_path / "out", size=30, sigma=1.0, test_fraction=0.3)
    names = {name.partition("/")[2] for name in manifest["files"]}
    assert names == {f"stack_{i}{page}.png" for i in range(3) for page in ("_0", "_1")} | {"turned.png"}
    assert {entry["source"] for entry in manifest["files"].values()} >= {"stack 0.tif#1", "turned.jpg"}
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").rglob("*.png")}
    assert sizes.pop("turned.png") == (30, 40) and set(sizes.values()) == {(40, 30)}
    split = {name.partition("/")[2]: name.partition("/")[0][:6] for name in manifest["files"]}
    assert sum(split[f"stack_{i}_0.png"] != split[f"stack_{i}_1.png"] for i in range(3)) <= 2


def test_16_bit_pictures_are_brought_to_8(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        pixels = np.zeros((30, 30), np.uint16)
        pixels[5 + i : 20, 5:20] = 65535
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
        np.save(tmp_path / "in" / f"{i}.npy", (pixels[::-1] / 65535).astype(np.float32))
    counts = prepare_edges(tmp_path / "in", tmp_path / "out", size=30)["counts"]
    assert sum(counts.values()) == 7
    for path in (tmp_path / "out" / "trainB").iterdir():
        assert set(np.unique(np.asarray(Image.open(path)))) == {0, 255}


def test_progress_counts_the_files(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    prepare_edges(source, tmp_path / "out", size=24, progress=lambda *call: calls.append(call))
    assert calls == [(i, 15) for i in range(1, 16)]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_an_interrupted_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(edges, "write_manifest", fail)
    expected = FileWriteError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        prepare_edges(source, tmp_path / "out", size=24)
    assert os.listdir(tmp_path) == []


def test_the_output_stays_out_of_the_source(source: Path) -> None:
    for out in (source, source / "out"):
        with pytest.raises(DatasetError, match=f"^{re.escape(str(out))} .*{re.escape(str(source))}"):
            prepare_edges(source, out)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": 8}, "^size .*16.*4096.*8"),
        ({"test_fraction": 0.0}, r"^test_fraction .*0 .*1.* 0\.0$"),
        ({"test_fraction": 1.0}, "^test_fraction "),
        ({"test_fraction": float("nan")}, "^test_fraction "),
        ({"sigma": 0.0}, "^sigma "),
        ({"sigma": float("nan")}, "^sigma "),
    ],
)
def test_numbers_out_of_range_are_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DatasetError, match=complaint):
        prepare_edges(source, tmp_path / "out", **options)


def test_a_missing_package_is_named_with_its_extra(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(DatasetError, match=r'scikit-image .*pip install "munit-fast\[edges\]"'):
        prepare_edges(source, tmp_path / "out")
