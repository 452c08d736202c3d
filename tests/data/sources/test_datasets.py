"""Data sets of the Hugging Face library."""

from __future__ import annotations

import io
import pickle
import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.source_files import dataset, png, write_folder
from munit_fast.data import ImageError, ImageSource, open_source
from munit_fast.data.sources import DatasetSource, MissingClass

datasets = pytest.importorskip("datasets")

FILES = {f"{i}.png": png(i) for i in range(5)}
LABELS, CLASSES = [0, 1, 0, 1, 1], ["horse", "zebra"]


def names(source: ImageSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever reaches for the network fails."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def labelled() -> Any:
    return dataset(FILES, LABELS, CLASSES)


def test_a_dataset_in_memory(labelled: Any) -> None:
    source = DatasetSource(labelled, "mine")
    assert names(source) == list(FILES) and source.where(3) == "mine, row 3"
    zebras = DatasetSource(labelled, "mine", classes=["zebra"])
    assert names(zebras) == ["1.png", "3.png", "4.png"]
    assert np.array_equal(zebras.read(1).pixels, source.read(3).pixels)
    assert np.array_equal(pickle.loads(pickle.dumps(zebras)).read(1).pixels, source.read(3).pixels)
    shuffled = DatasetSource(labelled.select([4, 2, 0]))
    assert names(shuffled) == ["4.png", "2.png", "0.png"]
    assert np.array_equal(shuffled.read(1).pixels, source.read(2).pixels)


def test_saved_ones_are_found_by_their_folder(tmp_path: Path, labelled: Any) -> None:
    labelled.save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict({"train": labelled, "test": labelled.select([0, 1])})
    both.save_to_disk(tmp_path / "both")
    assert names(open_source(tmp_path / "one")) == list(FILES)
    assert names(open_source(f"hf:{tmp_path}/one?column=image&label=horse")) == ["0.png", "2.png"]
    assert names(open_source(f"hf:{tmp_path}/one?label=horse&label=zebra")) == list(FILES)
    assert len(open_source(f"hf:{tmp_path}/both?split=test")) == 2
    assert len(open_source(f"hf:{tmp_path}/both?split=train", classes=["zebra"])) == 3
    with pytest.raises(ImageError, match=r"splits train, test; say \?split="):
        open_source(tmp_path / "both")
    with pytest.raises(ImageError, match="no split val; there are train, test"):
        open_source(f"hf:{tmp_path}/both?split=val")


def test_a_saved_split_is_not_another_one(tmp_path: Path, labelled: Any) -> None:
    labelled.save_to_disk(tmp_path / "unnamed")
    train = datasets.DatasetDict({"train": labelled})
    train.save_to_disk(tmp_path / "splits")
    datasets.Dataset.from_dict(labelled[:2], features=labelled.features, split="train").save_to_disk(tmp_path / "named")
    assert len(open_source(f"hf:{tmp_path}/named?split=train")) == 2
    for spec, words in (
        ("named?split=test", "no split test; it is train alone"),
        ("unnamed?split=test", "is one data set that does not say its split; leave split=test out"),
        ("splits?split=test", "no split test; there are train"),
        ("splits?config=x", "a folder that save_to_disk wrote has no config; leave config=x out"),
        ("named?revision=x", "a folder that save_to_disk wrote has no revision; leave revision=x out"),
    ):
        with pytest.raises(ImageError, match=re.escape(f"/{spec.partition('?')[0]}: {words}")):
            open_source(f"hf:{tmp_path}/{spec}")


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of a folder lie inside it, also where it is named by "~"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "images" / "train", FILES)
    assert open_source("hf:~/images?split=train").read(0).pixels.shape == (32, 40, 3)


def test_folders_of_images_and_of_parquet(tmp_path: Path, labelled: Any) -> None:
    root = write_folder(tmp_path / "images", {f"{CLASSES[k]}/{i}.png": png(i) for i, k in enumerate(LABELS)})
    source = open_source(f"hf:{root}?split=train")
    assert names(source) == ["horse/0.png", "horse/2.png", "zebra/1.png", "zebra/3.png", "zebra/4.png"]
    assert np.array_equal(source.read(1).pixels, open_source(root).read(1).pixels)
    assert len(open_source(f"hf:{root}", classes=["zebra"])) == 3
    (tmp_path / "parquet").mkdir()
    labelled.to_parquet(tmp_path / "parquet" / "train.parquet")
    assert names(open_source(f"hf:{tmp_path}/parquet?split=train&label=horse")) == ["0.png", "2.png"]


def test_rows_are_named_by_number_where_paths_do_not_tell_them_apart() -> None:
    twice = datasets.concatenate_datasets([dataset({"0.png": png(i)}) for i in range(11)])
    source = DatasetSource(twice)
    assert names(source) == [f"{i:02}.png" for i in range(11)]
    nameless = datasets.Dataset.from_dict(
        {"image": [{"path": None, "bytes": png(i)} for i in range(3)]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    source = DatasetSource(nameless, "x")
    assert names(source) == ["0", "1", "2"] and source.read(2).pixels.shape == (32, 40, 3)


def test_pages_of_rows_without_a_name() -> None:
    tiff = io.BytesIO()
    Image.new("L", (8, 8)).save(tiff, "TIFF", save_all=True, append_images=[Image.new("L", (8, 8), 7)])
    rows = [{"path": None, "bytes": png(0)}, {"path": None, "bytes": tiff.getvalue()}, None]
    nameless = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    source = DatasetSource(nameless, "x")
    assert names(source) == ["0", "1#0", "1#1", "2"] and source.read(2).pixels.max() == 7
    assert names(DatasetSource(nameless.select([2, 1, 0]), "x")) == ["0", "1#0", "1#1", "2"]


def test_columns(labelled: Any) -> None:
    two = labelled.add_column("other", labelled.with_format("arrow")[:].column("image").to_pylist())
    two = two.cast_column("other", datasets.Image())
    with pytest.raises(ImageError, match=r"several \(image, other\); say \?column=NAME"):
        DatasetSource(two)
    assert len(DatasetSource(two, column="other")) == 5
    with pytest.raises(ImageError, match="no column x; there are image, label"):
        DatasetSource(labelled, column="x")
    with pytest.raises(ImageError, match="column label does not hold images"):
        DatasetSource(labelled, column="label")
    with pytest.raises(ImageError, match="none, of label"):
        DatasetSource(labelled.remove_columns(["image"]))
    raw = datasets.Dataset.from_dict({"image": [png(i) for i in range(2)]})
    assert DatasetSource(raw, column="image").read(1).pixels.shape == (32, 40, 3)


def test_classes(labelled: Any) -> None:
    with pytest.raises(MissingClass, match="no class donkey; there are horse, zebra"):
        DatasetSource(labelled, classes=["donkey"])
    with pytest.raises(MissingClass):
        DatasetSource(labelled.select([0, 2]), classes=["zebra"])  # a class of the type, though of no row
    words = labelled.cast_column("label", datasets.Value("int64")).add_column("kind", list("ababb"))
    assert names(DatasetSource(words, classes=["b"], label_column="kind")) == ["1.png", "3.png", "4.png"]
    assert names(DatasetSource(words, classes=["0"])) == ["0.png", "2.png"]
    with pytest.raises(ImageError, match="no column nothing"):
        DatasetSource(words, classes=["b"], label_column="nothing")


def test_files_outside_the_data_set_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(0))
    paths = [str(tmp_path / "secret.png"), str(tmp_path / "in" / "1.png"), str(tmp_path / "in" / ".." / "secret.png")]
    write_folder(tmp_path / "in", {"1.png": png(1)})
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    rows = [
        {"path": path, "bytes": None} for path in [*paths, str(tmp_path / "in" / "link.png"), "hf://x/y.png", "\0.png"]
    ]
    table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    source = DatasetSource(table, "x", roots=[tmp_path / "in"])
    assert source.read(1).pixels.shape == (32, 40, 3)
    for i in (0, 2, 3):
        with pytest.raises(ImageError, match="lies outside the data set; use --allow_outside"):
            source.read(i)
    for i in (4, 5):
        with pytest.raises(ImageError, match=f"x, row {i}"):
            source.read(i)
    assert DatasetSource(table, "x").read(0).pixels.shape == (32, 40, 3)


def test_rows_without_an_image_are_bad_images() -> None:
    rows = [None, {"path": None, "bytes": b""}, {"path": "x.png", "bytes": png(0)[:99]}]
    table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    source = DatasetSource(table, "x")
    for i in range(3):
        with pytest.raises(ImageError, match=rf"^x, row {i}"):
            source.read(i)


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="not be resumed exactly"):
        DatasetSource(dataset(FILES).to_iterable_dataset())
    for spec, words in {
        "hf:owner/name?streaming=true": "not be resumed exactly",
        "hf:owner/name?colum=x": "colum is no key .*column",
        "hf:owner/name?split=a&split=b": "split is given twice",
        "hf:owner/name?split=": "split is no key with a value",
        "hf:./nowhere": "no such folder",
        f"hf:{tmp_path}/nowhere": "no such folder",
        "hf:a/b/c": "no such folder, and no OWNER/NAME",
    }.items():
        with pytest.raises(ImageError, match=words):
            open_source(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"empty: cannot be opened"):
        open_source(f"hf:{tmp_path}/empty")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImageError, match=r'pip install "munit-fast\[hub\]"'):
        open_source("hf:owner/name")
