"""Folders with links, class folders, and what is left out of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.source_files import png, write_folder
from munit_fast.data import ImageError, ImageSource, list_images, open_source
from munit_fast.data.sources import FileSource, MissingClass
from munit_fast.data.sources.names import is_image, plain, skipped_line, without_shared_folder


def names(source: ImageSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk", {"x/0.png": png(0), "x/deep/1.png": png(1)})
    root = write_folder(tmp_path / "set", {"2.png": png(2)})
    (root / "linked").symlink_to(tmp_path / "disk")
    (root / "3.png").symlink_to(tmp_path / "disk" / "x" / "0.png")
    (tmp_path / "alias").symlink_to(root)
    for folder in (root, tmp_path / "alias"):
        source = open_source(folder)
        assert names(source) == ["2.png", "3.png", "linked/x/0.png", "linked/x/deep/1.png"]
        assert not source.skipped and source.read(3).pixels.shape == (32, 40, 3)
        assert source.where(2) == f"{folder}/linked/x/0.png"


def test_loops_of_links_are_cut_and_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"a/0.png": png(0), "b/1.png": png(1)})
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "self").symlink_to(".")
    (root / "b" / "broken").symlink_to("nowhere")
    source = open_source(root)
    assert names(source) == ["a/0.png", "b/1.png"]
    assert source.skipped == {"in a loop of links": 2, "not an image (no extension)": 1}


def test_a_folder_linked_twice_is_listed_once(tmp_path: Path) -> None:
    """Folders that link to each other crosswise would have n! ways otherwise."""
    root = tmp_path / "set"
    for i in range(9):
        write_folder(root / f"d{i}", {f"{i}.png": b"x"})
    for i in range(9):
        for j in range(9):
            if i != j:
                (root / f"d{i}" / f"to{j}").symlink_to(root / f"d{j}")
    (root / "a").symlink_to(root / "d0")  # before the real one in order
    source = open_source(root)
    assert names(source) == [f"d{i}/{i}.png" for i in range(9)]
    assert source.skipped == {"in a folder that is linked twice": 73}


def test_skipped_files_are_counted_by_reason(tmp_path: Path) -> None:
    others = ["a.txt", "b.json", "c.json", "d", ".hidden.png", ".git/x.png", "e.TXT", "sub/f.txt"]
    root = write_folder(tmp_path / "trainA", {"0.png": png(0), **dict.fromkeys(others, b"x")})
    source = open_source(root)
    assert source.skipped.total() == 8  # a hidden folder is one
    [line] = source.notes()
    assert line == (f"8 files skipped in {root}: 6 not an image (.txt, .json, no extension), 2 hidden")
    assert skipped_line("x", open_source(root / "..").skipped).startswith("8 files skipped in x: ")
    (root / "0.png").unlink()
    with pytest.raises(ImageError, match=r"no images.*8 files skipped"):
        list_images(root)


def test_a_strange_extension_does_not_speak_to_the_terminal(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"0.png": png(0), "a.\x1b[31mlong extension here": b"x"})
    [line] = open_source(root).notes()
    assert line.isprintable() and len(line) < 200 + len(str(root))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b.png", "a/b.png"), ("/a//./b.png", "a/b.png"), ("../b.png", "_/b.png"), ("a\\..\\b.png", "a/_/b.png")],
)
def test_plain_names(name: str, expected: str) -> None:
    assert plain(name) == expected


def test_shared_folders_of_names() -> None:
    assert without_shared_folder(["a/b/x", "a/b/c/y", "a/b/z"]) == ["x", "c/y", "z"]
    assert without_shared_folder(["a/x", "ab/y"]) == ["a/x", "ab/y"]
    assert without_shared_folder(["a/b"]) == ["b"] and without_shared_folder([]) == []
    assert is_image("X.PNG") and not is_image("png")


def test_one_file_is_a_source(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {"0.png": png(0), "1.png": png(1)}) / "1.png"
    source = open_source(path)
    assert isinstance(source, FileSource) and names(source) == ["1.png"] and source.path(0) == path
    with pytest.raises(ImageError, match=r"^nowhere: no such folder"):
        open_source("nowhere")


def test_a_file_that_is_named_twice_is_two_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a.png": png(0), "b.png": png(1)})
    Image.new("L", (8, 8)).save(root / "c.tif", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    listed = [root / name for name in ("b.png", "a.png", "b.png", "c.tif", "b.png", "c.tif")]
    source = FileSource(listed, root)
    pages = ["c.tif#0", "c.tif#1"]
    assert names(source) == ["b.png", "a.png", "b.png", *pages, "b.png", *pages]
    assert np.array_equal(source.read(5).pixels, source.read(0).pixels) and source.read(7).pixels.max() == 9


def test_chosen_images(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {f"{i}.png": png(i) for i in range(4)}))
    some = source.chosen([3, 1])
    assert names(some) == ["3.png", "1.png"] and len(source) == 4 and some.where(0).endswith("3.png")


# -- classes


def test_class_folders(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(i) for name in ("horse", "pony", "zebra") for i in range(2)}
    root = write_folder(tmp_path / "set", files | {"horse/readme.txt": b"x"})
    one = open_source(root, classes=["horse"])
    assert names(one) == ["0.png", "1.png"] and one.skipped == {"not an image (.txt)": 1}
    several = open_source(root, classes=["zebra", "horse", "zebra"])
    assert names(several) == ["horse/0.png", "horse/1.png", "zebra/0.png", "zebra/1.png"]
    with pytest.raises(MissingClass, match=r"no class donkey; there are horse, pony, zebra"):
        open_source(root, classes=["horse", "donkey"])
    (root / "empty").mkdir()
    with pytest.raises(ImageError, match=f"{root}{os.sep}empty: no images"):
        open_source(root, classes=["empty"])
