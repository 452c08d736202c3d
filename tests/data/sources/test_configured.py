"""Sources that configurations name: the same batches from each, resumed exactly."""

from __future__ import annotations

import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.runs import checkpoints, equal, events, run
from helpers.source_files import KINDS, dataset, png, write_folder, write_tar, write_zip, written
from munit_fast import make_config
from munit_fast.config import Config, ConfigError, parse_config
from munit_fast.data import ImageError, ImageSet, UnpairedBatches, open_source
from munit_fast.data.configured import has_images, open_source_of, open_sources
from munit_fast.evaluate import open_test_set
from munit_fast.io.checkpoints import load_file
from munit_fast.train import setup

FILES = {"a": {f"{i}.png": png(i) for i in range(6)}, "b": {f"{i}.png": png(i + 50, 36, 44) for i in range(5)}}
CROP = {"crop_image_height": 32, "crop_image_width": 32, "dis": {"num_scales": 1, "n_layer": 2}}


def config(**values: Any) -> Config:
    return make_config(CROP | values)


def images(cfg: Config, split: str, domain: str) -> list[str]:
    source = open_source_of(cfg, split, domain)
    return [source.name(i) for i in range(len(source))]


# -- the same batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_same_batches_from_every_kind(tmp_path: Path, kind: str, workers: int) -> None:
    def batches(kind: str, **options: int) -> Any:
        place = tmp_path / kind
        place.mkdir(exist_ok=True)
        sets = [ImageSet(open_source(written(kind, place / d, FILES[d])), 3, 36, cache=False) for d in "ab"]
        return UnpairedBatches(*sets, (32, 32), (32, 32), 2, seed=3, **options)

    wanted = list(islice(batches("folder"), 7))
    found = list(islice(batches(kind, num_workers=workers), 7))
    late = list(islice(batches(kind, num_workers=workers, start_iteration=4), 3))
    assert all(torch.equal(x, y) for p, q in zip(found, wanted) for x, y in zip(p, q))
    assert all(torch.equal(x, y) for p, q in zip(late, wanted[4:]) for x, y in zip(p, q))


def test_runs_go_on_exactly_and_replace_bad_images(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an archive, as from the folder it was made of, in the middle of which the run even moves."""
    (picture_folders / "trainA" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    archived = tmp_path / "archived"
    archived.mkdir()
    for folder in sorted(picture_folders.iterdir()):
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        write = write_zip if folder.name.endswith("A") else write_tar
        write(archived / f"{folder.name}.{'zip' if folder.name.endswith('A') else 'tar'}", files)
    values = small_config | {"max_iter": 6, "num_workers": 1, "image_display_iter": 100, "image_save_iter": 100}
    run(values, picture_folders, tmp_path / "folder")
    run(values | {"max_iter": 3}, archived, tmp_path / "archive")
    run(values, archived, tmp_path / "archive", resume=True)
    told = [e["message"] for e in events(tmp_path / "archive") if e["kind"] == "data"]
    assert told and all("trainA.zip/2.png" in message and "another image" in message for message in told)
    name = "resume_00000006.pt"
    states = [load_file(checkpoints(tmp_path / place) / name) for place in ("folder", "archive")]
    assert equal(*states)
    assert states[0]["notes"]["images"] == states[1]["notes"]["images"]


# -- what data_root may be


def test_archives_in_data_root(tmp_path: Path) -> None:
    write_zip(tmp_path / "trainA.zip", FILES["a"])
    written("shards", tmp_path / "trainB", FILES["b"])
    write_tar(tmp_path / "testA.tar", FILES["a"])
    cfg = config(data_root=str(tmp_path))
    assert images(cfg, "train", "a") == sorted(FILES["a"]) and images(cfg, "train", "b") == sorted(FILES["b"])
    assert has_images(cfg, "test", "a") and not has_images(cfg, "test", "b")
    sources = open_sources(cfg)
    assert sources.test_b is None and sources.test_a is not None and len(sources.test_a) == 6
    assert [note for note in sources.notes if "5 not an image (.cls)" in note]
    write_folder(tmp_path / "trainA", {"other.png": png(0)})
    assert images(cfg, "train", "a") == ["other.png"]  # the folder counts


def test_a_folder_of_one_set_goes_before_data_root(tmp_path: Path) -> None:
    for name in ("trainA", "trainB", "testA", "testB"):
        write_folder(tmp_path / "root" / name, FILES["a"])
    held = write_folder(tmp_path / "valA", {"held.png": png(0), "other.png": png(1)})
    cfg = config(data_root=str(tmp_path / "root"), data_folder_test_a=str(held))
    assert images(cfg, "test", "a") == ["held.png", "other.png"]
    assert images(cfg, "test", "b") == images(cfg, "train", "a") == sorted(FILES["a"])
    (tmp_path / "list.txt").write_text("other.png\n")
    listed = cfg.model_copy(update={"data_list_test_a": str(tmp_path / "list.txt")})
    assert images(listed, "test", "a") == ["other.png"]
    gone = config(data_root=str(tmp_path / "root"), data_folder_test_b=str(tmp_path / "gone"))
    with pytest.raises(ImageError, match="gone"):
        open_sources(gone)
    alone = config(data_root=str(tmp_path / "root"), data_list_train_b=str(tmp_path / "list.txt"))
    with pytest.raises(ConfigError, match=r"data_list_train_b: .*data_folder_train_b"):
        open_sources(alone)


def test_an_archive_as_data_root(tmp_path: Path) -> None:
    files = {f"set/{name}/{file}": data for name in ("trainA", "trainB", "testB") for file, data in FILES["a"].items()}
    for path in (write_zip(tmp_path / "set.zip", files), write_tar(tmp_path / "set.tar", files)):
        cfg = config(data_root=str(path))
        assert images(cfg, "train", "b") == sorted(FILES["a"])
        assert has_images(cfg, "test", "b") and not has_images(cfg, "test", "a")
        with pytest.raises(ImageError, match=r"no class testA; there are testB, trainA, trainB"):
            open_source_of(cfg, "test", "a")


@pytest.mark.parametrize("layout", ["", "train/"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_class_folders(tmp_path: Path, layout: str, kind: str) -> None:
    files = {f"{layout}{name}/{i}.png": png(i) for name in ("horse", "pony", "zebra") for i in range(2)}
    tests = {f"val/{name}/{i}.png": png(i) for name in ("horse", "zebra") for i in range(1)} if layout else {}
    root = written(kind, tmp_path / "set", files | tests | {"notes.txt": b"x"})
    cfg = config(data_root=root, data_class_a=["horse", "pony"], data_class_b="zebra")
    assert images(cfg, "train", "a") == ["horse/0.png", "horse/1.png", "pony/0.png", "pony/1.png"]
    assert images(cfg, "train", "b") == ["0.png", "1.png"]
    assert has_images(cfg, "test", "b") is bool(layout) and not has_images(cfg, "test", "a")
    with pytest.raises(ImageError, match=r"no test images of horse, pony"):
        open_source_of(cfg, "test", "a")
    missing = config(data_root=root, data_class_a="horse", data_class_b="donkey")
    with pytest.raises(ImageError, match="donkey"):
        open_source_of(missing, "train", "b")


def test_a_labelled_data_set_as_data_root(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = dataset(FILES["a"], [0, 1, 0, 1, 1, 0], ["horse", "zebra"])
    datasets.DatasetDict({"train": whole, "test": whole.select([0, 1])}).save_to_disk(tmp_path / "both")
    whole.save_to_disk(tmp_path / "one")
    for root in (tmp_path / "both", tmp_path / "one", f"hf:{tmp_path / 'both'}"):
        cfg = config(data_root=str(root), data_class_a="horse", data_class_b="zebra")
        assert images(cfg, "train", "a") == ["0.png", "2.png", "5.png"]
        assert images(cfg, "train", "b") == ["1.png", "3.png", "4.png"]
        assert has_images(cfg, "test", "a") is ("both" in str(root))
    assert images(
        config(data_root=str(tmp_path / "both"), data_class_a="horse", data_class_b="zebra"), "test", "b"
    ) == ["1.png"]
    with pytest.raises(ConfigError, match="data_class_a and data_class_b"):
        open_source_of(config(data_root=str(tmp_path / "one")), "train", "a")


def test_keys_of_classes() -> None:
    for values, words in (
        ({"data_root": "x", "data_class_a": "horse"}, "without data_class_b"),
        ({"data_class_a": "horse", "data_class_b": "zebra"}, "set data_root"),
        ({"data_root": "x", "data_class_a": "a", "data_class_b": ["b", "a"]}, "a is in data_class_a too"),
        ({"data_root": "x", "data_class_a": [], "data_class_b": "a"}, "data_class_a: use the name"),
        ({"data_root": "x", "data_class_a": {"b": 1}, "data_class_b": "a"}, "data_class_a: use the name"),
    ):
        with pytest.raises(ConfigError, match=words):
            config(**values)
    for names in ("no", "[no, x]"):
        with pytest.raises(ConfigError, match='data_class_a: quote the name, as "no"'):
            parse_config(f"data_root: x\ndata_class_a: {names}\ndata_class_b: y")
    assert parse_config('data_root: x\ndata_class_a: "no"\ndata_class_b: [y]').data_classes("a") == ("no",)
    assert config(data_root="x", data_class_a=3, data_class_b=["1", 2]).data_classes("b") == ("1", "2")


def test_lists_are_of_folders(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FILES["a"])
    (tmp_path / "list.txt").write_text("0.png\n")
    cfg = config(data_folder_train_a=str(path), data_list_train_a=str(tmp_path / "list.txt"))
    with pytest.raises(ImageError, match=r"data_list_train_a: .*a\.zip"):
        open_source_of(cfg, "train", "a")
    assert images(config(data_folder_train_a=str(path)), "train", "a") == sorted(FILES["a"])


# -- what is said once


def test_a_size_that_is_chosen_is_said(tmp_path: Path) -> None:
    for domain in "AB":
        write_folder(tmp_path / f"train{domain}", FILES["a"])
    root = str(tmp_path)
    [note] = open_sources(config(data_root=root)).notes
    assert note.startswith("new_size is not given: the short side is resized to 32,") and "new_size: none" in note
    [note] = open_sources(config(data_root=root, new_size_a=40)).notes
    assert note.startswith("new_size_b is not given") and "domain B" in note
    for values in ({"new_size": 32}, {"new_size": "none"}, {"new_size_a": 32, "new_size_b": "none"}):
        assert not open_sources(config(data_root=root, **values)).notes


def test_training_says_what_it_skips(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    from rich.console import Console

    (picture_folders / "trainB" / "notes.txt").write_text("x")
    console = Console(record=True, file=(tmp_path / "log").open("w"), width=60)
    run(small_config | {"max_iter": 1}, picture_folders, tmp_path, console)
    text = console.export_text()
    assert text.count("1 file skipped in") == 1 and "trainB: 1 not an image (.txt)" in text


def test_no_rescaling(small_config: dict[str, Any], tmp_path: Path) -> None:
    """Images of several sizes, each larger than the crop; one that is smaller is named."""
    sizes = [(32, 40), (50, 33), (64, 64), (32, 32)]
    for name in ("trainA", "trainB", "testA", "testB"):
        write_folder(tmp_path / "data" / name, {f"{i}.png": png(i, *size) for i, size in enumerate(sizes)})
    assert run(small_config | {"new_size": "none", "max_iter": 3}, tmp_path / "data", tmp_path).iterations == 3
    (tmp_path / "data" / "trainA" / "4.png").write_bytes(png(4, 31, 64))
    with pytest.raises(
        ImageError, match=r"4\.png: 64x31 pixels .*smaller than the crop of 32x32; lower .*, or set new_size"
    ):
        run(small_config | {"new_size": "none", "max_iter": 3}, tmp_path / "data", tmp_path / "again")


# -- pairs


def test_pairs_across_kinds(tmp_path: Path) -> None:
    for name in ("trainA", "trainB"):
        write_folder(tmp_path / name, FILES["a"])
    write_zip(tmp_path / "testA.zip", {f"testA/{i}.png": png(i) for i in range(4)} | {"testA/x.png": png(9)})
    write_tar(tmp_path / "testB.tar", {f"{i}.png": png(i) for i in (3, 1, 2)})
    tests = open_test_set(config(data_root=str(tmp_path)))
    assert tests.paired and len(tests.pictures["a"]) == len(tests.pictures["b"]) == 3
    assert all(torch.equal(tests.pictures["a"][i], tests.pictures["b"][i]) for i in range(3))
    assert tests.notes == ["2 test pictures without a partner of the same name are left out"]


def test_a_data_set_that_moves_into_an_archive_is_the_same(tmp_path: Path) -> None:
    folder = ImageSet(open_source(write_folder(tmp_path / "x", FILES["a"])), cache=False)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in reversed(FILES["a"].items()):
            archive.writestr(f"deep/down/{name}", data)
    assert setup._image_notes(folder) == setup._image_notes(ImageSet(open_source(path), cache=False))
