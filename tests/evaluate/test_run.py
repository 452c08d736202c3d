"""Evaluating checkpoints and folders of translations, and the metrics of other libraries."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from helpers.paired_set import OPTIONS, Oracle, rows, settings, tiny_features
from helpers.source_files import write_tar, write_zip
from munit_fast import MUNIT, UNIT
from munit_fast.config import make_config
from munit_fast.data import ImageError, PixelFormat, open_source
from munit_fast.data.writers import encode_image
from munit_fast.evaluate import (
    EvaluateOptions,
    as_json,
    evaluate_folders,
    evaluate_model,
    metrics,
    open_test_set,
    show,
)
from munit_fast.evaluate.folders import group_translations
from munit_fast.evaluate.pictures import stem_of
from munit_fast.translate import TranslateOptions, random_styles, translate_files

pytest.importorskip("skimage")


def test_rows_of_a_paired_set(small_config: dict[str, Any], drawings: Path) -> None:
    cfg = settings(small_config, drawings)
    found = evaluate_model(MUNIT(cfg).eval(), open_test_set(cfg), EvaluateOptions(**OPTIONS))
    set_rows = {"kid_e3", "diversity", "best_distance", "mean_distance", "l1", "ssim"}
    assert set(rows(found)) == {f"a_to_b.{key}" for key in (*set_rows, "coverage", "missed_distance")} | {
        f"b_to_a.{key}"
        for key in (*set_rows, "line_f1")  # only A holds drawings
    }
    assert (found.test_images, found.samples_per_input, found.train_images) == (5, 2, 5)
    for row in found.entries:
        assert math.isfinite(row.value)
        assert row.ceiling is not None
    read = json.loads(as_json(found))
    assert [metrics.EvaluationRow(**row) for row in read["entries"]] == list(found.entries)
    console = Console(record=True, width=160, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show(found, console)
    text = console.export_text()
    assert text.index("A → B") < text.index("Coverage by 2 ↑") < text.index("B → A") < text.index("Line F1 ↑")
    assert re.search(r"\b5 test .*\b2 styles", text)


def test_the_truth_reaches_the_floor_and_the_input_the_ceiling(small_config: dict[str, Any], drawings: Path) -> None:
    cfg = settings(small_config, drawings)
    tests = open_test_set(cfg)
    a, b = ([tests.pictures[d][i] for i in range(5)] for d in "ab")
    oracle = Oracle(cfg, {"a2b": b, "b2a": a})
    truth = rows(evaluate_model(oracle, tests, EvaluateOptions(**OPTIONS)))
    styles = torch.stack([random_styles(3, 2, cfg.gen.style_dim, i) for i in range(5)])  # those of `translate`
    assert all(torch.equal(drawn, styles) for drawn in oracle.styles) and len(oracle.styles) == 2
    for key in ("l1", "ssim", "best_distance", "mean_distance", "kid_e3"):
        row = truth[f"a_to_b.{key}"]
        assert row.value == pytest.approx(row.floor, abs=1e-6), key
    copies = rows(evaluate_model(Oracle(cfg, {"a2b": a, "b2a": b}), tests, EvaluateOptions(**OPTIONS)))
    for key, row in copies.items():
        assert row.value == pytest.approx(row.ceiling, abs=1e-6), key


def test_a_checkpoint_and_its_translated_files_measure_alike(
    small_config: dict[str, Any], drawings: Path, tmp_path: Path
) -> None:
    cfg = settings(small_config, drawings)
    model = MUNIT(cfg).eval()
    ours = rows(evaluate_model(model, open_test_set(cfg), EvaluateOptions(directions=("a2b",), **OPTIONS)))
    translate_files(model, drawings / "testA", tmp_path / "out", TranslateOptions(num_style=2, seed=3))
    found = evaluate_folders(
        tmp_path / "out", EvaluateOptions(**OPTIONS), truth=drawings / "testB", train=drawings / "trainB"
    )
    assert (found.test_images, found.samples_per_input) == (5, 2)
    for key, row in rows(found).items():
        twin = ours[key.replace("translated", "a_to_b")]
        assert row.value == pytest.approx(twin.value, rel=0.02, abs=0.01), key  # files hold 8 bits
        assert row.ceiling == pytest.approx(twin.ceiling, rel=0.02, abs=0.01), key  # from NAME_input.png


def test_of_many_channels_the_shown_ones_are_measured(small_config: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, channels in (("trainA", 5), ("testA", 5), ("trainB", 2), ("testB", 2)):
        (tmp_path / name).mkdir()
        for i in range(3):
            np.save(tmp_path / name / f"{i}.npy", random.integers(0, 256, (32, 32, channels), np.uint8))
    cfg = settings(small_config | {"input_dim_a": 5, "input_dim_b": 2, "show_channels_a": [4, 0, 2]}, tmp_path)
    tests = open_test_set(cfg)
    whole = {d: [tests.pictures[d][i] for i in range(3)] for d in "ab"}
    assert whole["a"][0].shape[0] == 5 and whole["b"][0].shape[0] == 2
    torch.manual_seed(0)
    answers = {"b2a": [image.clone() for image in whole["a"]], "a2b": [torch.randn_like(i) for i in whole["b"]]}
    for image in answers["b2a"]:
        image[[1, 3]] = 0  # which are not measured
    found = evaluate_model(Oracle(cfg, answers), tests, EvaluateOptions(**OPTIONS))
    assert rows(found)["b_to_a.l1"].value == 0 < rows(found)["a_to_b.l1"].value
    notes = found.about["notes"]
    assert any("domain A: channels 4, 0, 2 of 5 measured" in note and "show_channels_a" in note for note in notes)
    assert any("domain B: channel 0 of 2 measured" in note for note in notes)


def test_folders_of_another_program(drawings: Path, tmp_path: Path) -> None:
    options = EvaluateOptions(**OPTIONS)
    alone = evaluate_folders(drawings / "testA", options, truth=drawings / "testB", source=drawings / "testA")
    assert {"translated.l1", "translated.kid_e3"} <= set(rows(alone))
    assert rows(alone)["translated.kid_e3"].floor is None  # without training pictures
    assert rows(alone)["translated.l1"].value == rows(alone)["translated.l1"].ceiling
    unpaired = evaluate_folders(drawings / "testA", options, train=drawings / "trainB", size=16)
    assert set(rows(unpaired)) == {"translated.kid_e3"}
    count = len(list((drawings / "trainB").iterdir()))
    assert f"{count} real training" in rows(unpaired)["translated.kid_e3"].measured
    assert unpaired.train_images == count and "no --truth" in unpaired.about["notes"][0]
    with pytest.raises(ValueError, match=r"--truth .*--train"):
        evaluate_folders(drawings / "testA", options)
    (drawings / "testB" / "4.png").rename(drawings / "testB" / "other.png")
    with pytest.raises(ImageError, match=r" 4 .*1 of 5"):
        evaluate_folders(drawings / "testA", options, truth=drawings / "testB")
    Image.new("RGB", (40, 32)).save(drawings / "testB" / "4.png")
    with pytest.raises(ImageError, match=r"40x32 .*32x32.*--size"):
        evaluate_folders(drawings / "testA", options, truth=drawings / "testB")
    Image.new("RGB", (32, 32)).save(drawings / "testA" / "5_001.png")
    Image.new("RGB", (32, 32)).save(drawings / "testA" / "5_000.png")
    with pytest.raises(ImageError, match=r"5 has 2 .* 0 has 1"):
        evaluate_folders(drawings / "testA", options, truth=drawings / "testB")


@pytest.mark.parametrize("form", ["tif", "jpg"])
def test_folders_in_the_values_of_a_configuration(small_config: dict[str, Any], tmp_path: Path, form: str) -> None:
    """Half the range of domain B everywhere, and the files of translations hold it as they are written."""
    for name in ("made", "true"):
        (tmp_path / name).mkdir()
    middle = encode_image(torch.zeros(1, 16, 16), form, PixelFormat(1, (-1000, 1000)), np.int16, file="x")
    for i in range(2):
        np.save(tmp_path / "true" / f"{i}.npy", np.zeros((16, 16), np.int16))
        (tmp_path / "made" / f"{i}.{form}").write_bytes(middle)
    cfg = make_config(small_config | {"data_root": "x", "input_dim_b": 1, "range_b": [-1000, 1000], "range_a": [0, 9]})
    options, places = EvaluateOptions(**OPTIONS), (tmp_path / "made", {"truth": tmp_path / "true"})
    found = evaluate_folders(places[0], options, **places[1], config=cfg)
    assert rows(found)["translated.l1"].value < 0.01
    with pytest.raises(ImageError, match=r"set range_b in a --config: \[low, high\]"):
        evaluate_folders(places[0], options, **places[1])
    turned = EvaluateOptions(**OPTIONS, directions=("b2a",))
    assert rows(evaluate_folders(places[0], turned, **places[1], config=cfg))["translated.l1"].value == pytest.approx(
        0 if form == "tif" else 0.5, abs=0.01
    )


def test_archives_measure_as_their_folders_do(drawings: Path, tmp_path: Path) -> None:
    options, found = EvaluateOptions(**OPTIONS), []
    files = {
        name: {p.name: p.read_bytes() for p in (drawings / name).iterdir()} for name in ("testA", "testB", "trainB")
    }
    packed = {
        "translated": write_zip(tmp_path / "a.zip", files["testA"]),
        "truth": write_tar(tmp_path / "b.tar", {f"truth/{name}": data for name, data in files["testB"].items()}),
        "train": write_zip(tmp_path / "t.zip", files["trainB"]),
    }
    plain = {key: drawings / name for key, name in zip(packed, files)}
    for places in (packed, plain):
        translated = places.pop("translated")
        found.append(rows(evaluate_folders(translated, options, **places)))
    assert {key: row.value for key, row in found[0].items()} == {key: row.value for key, row in found[1].items()}
    assert "translated.l1" in found[0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a_000 a_001 b_000 b_001", {"a": 2, "b": 2}),
        ("a_000 b_000", {"a": 1, "b": 1}),
        ("x/a_000 x/a_001 x/b_000 x/b_001", {"x/a": 2, "x/b": 2}),
        ("cat_0001 cat_0002 cat_0003 cat_0004", dict.fromkeys(["cat_0001", "cat_0002", "cat_0003", "cat_0004"], 1)),
        ("cat_0001_000 cat_0001_001 cat_0002_000 cat_0002_001", {"cat_0001": 2, "cat_0002": 2}),
        ("a_001 a_002", {"a_001": 1, "a_002": 1}),
        ("a_000 a_002", {"a_000": 1, "a_002": 1}),
        ("a_000 a_001 a_0002", {"a_000": 1, "a_001": 1, "a_0002": 1}),
        ("a a_000 a_001", {"a": 1, "a_000": 1, "a_001": 1}),
    ],
)
def test_which_files_are_translations_of_one_input(tmp_path: Path, names: str, expected: dict[str, int]) -> None:
    for name in names.split():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    groups, inputs = group_translations(open_source(tmp_path))
    assert {name: len(paths) for name, paths in groups.items()} == expected and not inputs
    assert all(found == sorted(found) for found in groups.values())


def test_unpaired_test_sets_and_unit(small_config: dict[str, Any], drawings: Path) -> None:
    cfg = settings(small_config, drawings)
    (drawings / "testB" / "4.png").rename(drawings / "testB" / "other.png")
    [note] = open_test_set(cfg).notes
    assert re.match(r"2 .*left out", note)
    for path in sorted((drawings / "testB").iterdir()):
        path.rename(path.with_name(f"b{path.name}"))
    tests = open_test_set(cfg)
    assert not tests.paired
    found = evaluate_model(UNIT(cfg).eval(), tests, EvaluateOptions(**OPTIONS))
    assert set(rows(found)) == {"a_to_b.kid_e3", "b_to_a.kid_e3"}  # no pairs, one output
    assert "no pairs" in found.about["notes"][0]
    first = min((drawings / "testB").iterdir())
    first.rename(first.with_name("0.png"))
    tests = open_test_set(cfg)  # a pair by chance
    assert not tests.paired and len(tests.pictures["a"]) == 5 and "0 is the only name" in tests.notes[0]
    for path in sorted((drawings / "testB").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ImageError, match=r"^1 .*at least 2"):
        evaluate_model(UNIT(cfg).eval(), open_test_set(cfg), EvaluateOptions(**OPTIONS))


def test_diversity_stands_beside_that_of_true_answers(small_config: dict[str, Any], drawings: Path) -> None:
    cfg = settings(small_config, drawings)
    found = rows(evaluate_model(MUNIT(cfg).eval(), open_test_set(cfg), EvaluateOptions(**OPTIONS)))
    expected = []
    for i in (0, 3):
        pixels = [np.array(Image.open(p)) for p in (drawings / "colourings" / str(i)).iterdir()]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected.append(metrics.diversity(tiny_features(images).embedding[None]).item())
    name = "an input's own true answers"
    assert found["a_to_b.diversity"].baselines[name] == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert name not in found["b_to_a.diversity"].baselines


@pytest.mark.parametrize(("domain", "expected"), [("testA", True), ("testB", False)])
def test_drawings_are_recognised(drawings: Path, domain: str, expected: bool) -> None:
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(p).convert("RGB"))) for p in sorted((drawings / domain).iterdir())]
    )
    assert metrics.is_drawing(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1) is expected


def test_every_page_of_a_file_is_a_test_picture(tmp_path: Path) -> None:
    for split in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / split).mkdir()
        pages = [Image.new("L", (32, 32), 40 * i + 20) for i in range(3)]
        pages[0].save(tmp_path / split / "stack.tif", save_all=True, append_images=pages[1:])
    values = {"data_root": str(tmp_path), "input_dim_a": 1, "input_dim_b": 1, "new_size": 32}
    sizes = {"crop_image_height": 32, "crop_image_width": 32, "dis": {"n_layer": 2, "num_scales": 1}}
    for pages, count in (("all", 3), ("first", 1)):
        tests = open_test_set(make_config({**values, **sizes, "pages": pages}))
        assert tests.paired and len(tests.pictures["a"]) == count and len(tests.train["b"]) == count
        for i in range(count):
            assert torch.equal(tests.pictures["a"][i], tests.pictures["b"][i])
    assert [stem_of(name) for name in ("a/b.png", "a/b.tif#2", "c#d.png", "e")] == ["a/b", "a/b#2", "c#d", "e"]
