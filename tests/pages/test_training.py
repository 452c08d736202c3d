"""The page of a training holds what it was given, escapes it and is well-formed."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.markup import EVIL, Page
from munit_fast.pages import training


def write_training(folder: Path, **changes: Any) -> Page:
    values: dict[str, Any] = {
        "title": "edges2shoes",
        "images": {},
        "losses": {},
        "status": training.TrainingStatus(50, 200, 4.0, 37.5),
    }
    target = training.write_training_page(folder, **(values | changes))
    assert target == folder / "index.html"
    return Page(target.read_text("utf-8"))


def test_newest_iteration_first_and_only_it_is_open(tmp_path: Path) -> None:
    images = {i: [f"images/gen_a2b_test_{i:08d}.jpg"] for i in (100, 10_000, 2_000)}
    page = write_training(tmp_path, images=images | {7: []})
    expected = [f"images/gen_a2b_test_{i:08d}.jpg" for i in (10_000, 2_000, 100)]
    assert [image["src"] for image in page.all("img")] == expected
    assert [link["href"] for link in page.all("a")] == expected
    assert ["open" in details for details in page.all("details")] == [True, False, False]
    assert page.texts.index("Iteration 10,000") < page.texts.index("Iteration 2,000")


def test_a_stopped_run_says_so(tmp_path: Path) -> None:
    status = training.TrainingStatus(5, 10, 2.0, None, stopped=True)
    page = write_training(tmp_path, status=status)
    assert "Stopped" in page.texts
    assert "Time left" not in page.texts
    assert "Training" in write_training(tmp_path, status=training.TrainingStatus(5, 10)).texts
    assert "Finished" in write_training(tmp_path, status=training.TrainingStatus(10, 10, stopped=True)).texts


def test_what_the_run_does_stands_at_the_top_and_in_charts(tmp_path: Path) -> None:
    run = {
        "learning_rate": [(1, 1e-4), (2, 5e-5)],
        "iterations_per_second": [(1, 3.0), (2, 4.0)],
        "images_per_second": [(1, 6.0), (2, 8.0)],
        "memory_mb": [(1, 700.0), (2, 812.0)],
        "skipped_steps": [(1, 0.0), (2, 3.0)],
    }
    page = write_training(tmp_path, run=run)
    for name, value in {"Learning rate": "5e-05", "Images a second": "8", "Skipped steps": "3"}.items():
        assert page.texts[page.texts.index(name) + 1] == value
    assert {"The run", "Speed", "Memory"} <= set(page.texts)
    assert "images_per_second" not in page.texts  # the same curve as iterations_per_second, at another scale
    assert "The run" not in write_training(tmp_path, run={}).texts


def test_metrics_and_the_best_checkpoint(tmp_path: Path) -> None:
    best = {"metric": "kid", "value": 21.53, "stderr": 1.25, "iteration": 4000, "checkpoint": "best_00004000.pt"}
    metrics = {"kid": [(4000, 21.53), (5000, 30.0)], "overfitting_a": [(4000, 0.1)]}
    page = write_training(tmp_path, metrics=metrics, metric_errors={"kid": [(4000, 1.0), (5000, 2.0)]}, best=best)
    assert page.texts[page.texts.index("Best kid") + 1] == "21.5"
    assert {"Metrics", "KID × 10³", "Learned by heart", "best_00004000.pt"} <= set(page.texts)
    text = (tmp_path / "index.html").read_text()
    assert "21.5 ± 1.25 after iteration 4,000, kept as" in text
    assert text.count("<circle") == 3 and text.count("<polygon") == 1
    assert "Metrics" not in write_training(tmp_path).texts
    best |= {"checkpoint": None, "stderr": None}
    write_training(tmp_path, metrics=metrics, best=best)
    assert "kept as" not in (tmp_path / "index.html").read_text()
    early = training.TrainingStatus(5, 10, stopped=True, early=True)
    assert "Finished early" in write_training(tmp_path, status=early).texts


def test_captions_say_direction_and_set(tmp_path: Path) -> None:
    page = write_training(
        tmp_path,
        images={5: ["images/gen_b2a_test_00000005.jpg", "images/other.jpg"]},
        current=["images/gen_a2b_train_current.jpg"],
    )
    expected = ["A → B, training .*running", "B → A, test .*iteration 5$", r"other\.jpg, iteration 5$"]
    for image, words in zip(page.all("img"), expected, strict=True):
        assert re.search(words, image["alt"])
    assert "B → A, test images" in page.texts


def test_status_in_words(tmp_path: Path) -> None:
    page = write_training(tmp_path, status=training.TrainingStatus(12_500, 1_000_000, 8.1234, 8000.0))
    assert {"Training", "12,500", "of 1,000,000", "8.12", "2 h 13 min"} <= set(page.texts)
    (progress,) = page.all("progress")
    assert (progress["value"], progress["max"]) == ("12500", "1000000")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.6, "1 min"),
        (90, "1 min 30 s"),
        (200_000, "2 d 7 h"),
        (86_461, "1 d 1 min"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_time_left_in_words(tmp_path: Path, seconds: float | None, words: str) -> None:
    page = write_training(tmp_path, status=training.TrainingStatus(1, 2, None, seconds))
    assert page.texts[page.texts.index("Time left") + 1] == words


def test_page_reloads_only_while_training(tmp_path: Path) -> None:
    def reloads(**changes: Any) -> list[str]:
        metas = write_training(tmp_path, **changes).all("meta")
        return [meta["content"] for meta in metas if meta.get("http-equiv") == "refresh"]

    assert reloads(refresh_seconds=30) == ["30"]
    assert reloads() == []
    assert reloads(refresh_seconds=30, status=training.TrainingStatus(200, 200)) == []
    assert {"Finished"} <= set(write_training(tmp_path, status=training.TrainingStatus(200, 200)).texts)


def test_an_empty_training_says_so(tmp_path: Path) -> None:
    page = write_training(tmp_path)
    assert {"No images yet.", "Nothing logged yet."} <= set(page.texts)
    assert page.all("svg") == []


def test_find_grids_groups_by_iteration(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in (
        "gen_a2b_test_00000010.jpg",
        "gen_b2a_train_00000010.jpg",
        "gen_a2b_test_00000200.jpg",
        "gen_a2b_train_current.jpg",
        "gen_a2b_test_10.jpg",
        "gen_a2b_test_00000010.jpg.tmp",
    ):
        (tmp_path / "images" / name).touch()
    assert training.find_grids(tmp_path) == {
        10: ["images/gen_a2b_test_00000010.jpg", "images/gen_b2a_train_00000010.jpg"],
        200: ["images/gen_a2b_test_00000200.jpg"],
    }
    assert training.find_grids(tmp_path / "absent") == {}


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "images/../../x.jpg", "..\\x.jpg", ""])
def test_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(repr(name))}.*folder"):
        write_training(tmp_path, images={1: [name]})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_page_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training(tmp_path)
    before = (tmp_path / "index.html").read_bytes()
    with pytest.raises(ValueError, match="inside"):
        write_training(tmp_path, current=["/x.jpg"])
    assert (tmp_path / "index.html").read_bytes() == before

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_training(tmp_path, title="another")
    assert (tmp_path / "index.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_nothing_given_is_read_as_markup_in_the_training_page(tmp_path: Path) -> None:
    page = write_training(
        tmp_path,
        title=EVIL,
        images={1: [f'images/"onerror="x {EVIL}.jpg'], 2: ["javascript:alert(1)"]},
        losses={f"loss_{EVIL}": [(1, 2.0)]},
    )
    assert page.all("script") == []
    assert EVIL in page.texts
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not any(image["src"].startswith("javascript:") for image in page.all("img"))


def test_charts_reach_the_page(tmp_path: Path) -> None:
    page = write_training(tmp_path, losses={"loss_gen_total": [(1, 2.0), (10_000, 1.5)]})
    (label,) = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert "gen_total 1.5" in label
    assert len(page.all("polyline")) == 2
    assert {"10k", "gen_total", "1.5"} <= set(page.texts)
