"""The pages must hold what they were given, escape it, stand alone, and be well-formed."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor

pytest.importorskip("jinja2")

from munit_fast.evaluate import metrics
from munit_fast.pages import charts, web

VOID = {"meta", "img", "link", "br", "input"}
EVIL = '<script>alert("1")</script>'


class Page(HTMLParser):
    """Every element with its attributes and every text of a page; fails on unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"repeated attribute in {tag}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.texts.append(" ".join(data.split()))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def flat(value: float, side: int = 16) -> Tensor:
    return torch.full((3, side, side), float(value))


def read_picture(uri: str) -> tuple[str, Image.Image]:
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", uri).groups()  # type: ignore[union-attr]
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))


def write_training(folder: Path, **changes: Any) -> Page:
    values: dict[str, Any] = {
        "title": "edges2shoes",
        "images": {},
        "losses": {},
        "status": web.TrainingStatus(50, 200, 4.0, 37.5),
    }
    target = web.write_training_page(folder, **(values | changes))
    assert target == folder / "index.html"
    return Page(target.read_text("utf-8"))


def report(**changes: Any) -> web.DemoReport:
    shown: dict[str, Any] = {
        "drawings": [
            web.DrawingRow(flat(1), torch.stack([flat(-0.5), flat(0.5)]), flat(0), name="cat"),
            web.DrawingRow(flat(1), [flat(-0.2), flat(0.2)], name="dog"),
        ],
    }
    shown |= {name: changes.pop(name) for name in list(changes) if name in ("drawings", "guided", "strips", "lines")}
    values: dict[str, Any] = {
        "title": "A title",
        "summary": "A summary.",
        "showcases": [web.Showcase(**shown)],
        "made": web.HowMade("some_config", "a GPU", 20_000, 41.5, 8.03, {"PyTorch": "2.13.0"}, ["A remark."]),
        "attribution": "Pictures by someone, CC BY-SA 4.0",
    }
    return web.DemoReport(**(values | changes))


def write_demo(folder: Path, **changes: Any) -> Page:
    path = web.write_demo_page(folder / "demo.html", data=report(**changes))
    return Page(path.read_text("utf-8"))


# --- the page of a training


def test_newest_iteration_first_and_only_it_is_open(tmp_path: Path) -> None:
    images = {i: [f"images/gen_a2b_test_{i:08d}.jpg"] for i in (100, 10_000, 2_000)}
    page = write_training(tmp_path, images=images | {7: []})
    expected = [f"images/gen_a2b_test_{i:08d}.jpg" for i in (10_000, 2_000, 100)]
    assert [image["src"] for image in page.all("img")] == expected
    assert [link["href"] for link in page.all("a")] == expected
    assert ["open" in details for details in page.all("details")] == [True, False, False]
    assert page.texts.index("Iteration 10,000") < page.texts.index("Iteration 2,000")


def test_a_stopped_run_says_so(tmp_path: Path) -> None:
    status = web.TrainingStatus(5, 10, 2.0, None, stopped=True)
    page = write_training(tmp_path, status=status)
    assert "Stopped" in page.texts
    assert "Time left" not in page.texts
    assert "Training" in write_training(tmp_path, status=web.TrainingStatus(5, 10)).texts
    assert "Finished" in write_training(tmp_path, status=web.TrainingStatus(10, 10, stopped=True)).texts


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


def test_captions_say_direction_and_set(tmp_path: Path) -> None:
    page = write_training(
        tmp_path,
        images={5: ["images/gen_b2a_test_00000005.jpg", "images/other.jpg"]},
        current=["images/gen_a2b_train_current.jpg"],
    )
    assert [image["alt"] for image in page.all("img")] == [
        "Grid of translations, A → B, training images, the running iteration",
        "Grid of translations, B → A, test images, iteration 5",
        "Grid of translations, other.jpg, iteration 5",
    ]
    assert "B → A, test images" in page.texts


def test_status_in_words(tmp_path: Path) -> None:
    page = write_training(tmp_path, status=web.TrainingStatus(12_500, 1_000_000, 8.1234, 8000.0))
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
    page = write_training(tmp_path, status=web.TrainingStatus(1, 2, None, seconds))
    assert page.texts[page.texts.index("Time left") + 1] == words


def test_page_reloads_only_while_training(tmp_path: Path) -> None:
    def reloads(**changes: Any) -> list[str]:
        metas = write_training(tmp_path, **changes).all("meta")
        return [meta["content"] for meta in metas if meta.get("http-equiv") == "refresh"]

    assert reloads(refresh_seconds=30) == ["30"]
    assert reloads() == []
    assert reloads(refresh_seconds=30, status=web.TrainingStatus(200, 200)) == []
    assert {"Finished"} <= set(write_training(tmp_path, status=web.TrainingStatus(200, 200)).texts)


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
    assert web.find_grids(tmp_path) == {
        10: ["images/gen_a2b_test_00000010.jpg", "images/gen_b2a_train_00000010.jpg"],
        200: ["images/gen_a2b_test_00000200.jpg"],
    }
    assert web.find_grids(tmp_path / "absent") == {}


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "images/../../x.jpg", "..\\x.jpg", ""])
def test_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="inside the page's folder"):
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


# --- escaping


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


def test_nothing_given_is_read_as_markup_in_the_demo(tmp_path: Path) -> None:
    row = metrics.EvaluationRow("k", EVIL, EVIL, 1.0, "lower", EVIL, baselines={EVIL: 2.0})
    page = write_demo(
        tmp_path,
        title=EVIL,
        summary=EVIL,
        drawings=[web.DrawingRow(flat(0), [flat(0)], name=f'" onload="x{EVIL}')],
        made=web.HowMade(EVIL, EVIL, 1, 1.0, 1.0, {EVIL: EVIL}, [EVIL]),
        attribution=EVIL,
        metrics=[row],
        losses={EVIL: [(1, 1.0)]},
    )
    assert page.all("script") == []
    assert page.texts.count(EVIL) >= 9
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


# --- the demonstration


def full_report() -> dict[str, Any]:
    return {
        "guided": [web.GuidedExample(flat(0), flat(0.1), flat(0.2))],
        "strips": [web.StyleStrip(flat(0), torch.zeros(5, 3, 16, 16))],
        "lines": [web.LinesExample(flat(0), flat(1), flat(1))],
        "losses": {"loss_gen_total": [(1, 2.0), (2, 1.0)]},
        "metrics": [metrics.EvaluationRow("k", "KID", "lines → colour", 87.3, "lower", "some way", 10.5, 599.0)],
    }


def test_demo_shows_every_part_in_one_file(tmp_path: Path) -> None:
    page = write_demo(tmp_path, **full_report())
    # 2 drawings with 2 styles, one of them with a truth; 3 guided, 1 + 5 of the strip, 3 of colour to lines.
    assert len(page.all("img")) == (1 + 2 + 1) + (1 + 2) + 3 + 6 + 3
    headings = ["Drawing", "Style 1", "Style 2", "True colouring"]
    start = page.texts.index("Drawing")
    assert page.texts[start : start + 4] == headings
    assert {
        "A title",
        "A summary.",
        "some_config",
        "a GPU",
        "20,000",
        "41 min 30 s",
        "8.03",
        "2.13.0",
        "A remark.",
        "Pictures by someone, CC BY-SA 4.0",
        "The style of a picture",
        "Between two styles",
    } <= set(page.texts)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.html"]


def test_demo_of_two_models(tmp_path: Path) -> None:
    """Each under its title, and nothing of a training where there was none."""
    shows = [web.Showcase([web.DrawingRow(flat(0), [flat(0)])], title=name, note="A note.") for name in ("Box", "Own")]
    page = write_demo(tmp_path, showcases=shows, made=None)
    titles = [text.strip() for text in page.texts]
    assert titles.index("Box") < titles.index("Own")
    assert titles.count("A note.") == 2
    assert [kind for kind, given in page.elements if given.get("class") == "grid"] == ["table", "table"]
    assert "How it was made" not in titles


def test_demo_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = write_demo(tmp_path, **full_report())
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object"}
        assert "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:")
    text = (tmp_path / "demo.html").read_text("utf-8")
    assert not re.search(r"https?:|url\(|@import", text)


def test_demo_leaves_out_what_it_was_not_given(tmp_path: Path) -> None:
    page = write_demo(tmp_path, drawings=[web.DrawingRow(flat(0), [flat(0)])])
    assert page.all("svg") == []
    sections = {
        "The style of a picture",
        "Between two styles",
        "The other way: colour to lines",
        "The training",
    }
    assert not sections & set(page.texts)
    assert "True colouring" not in page.texts
    assert "Held-out drawings in 1 style" in page.texts


def test_every_picture_has_words_and_a_size(tmp_path: Path) -> None:
    images = write_demo(tmp_path, **full_report()).all("img")
    assert all(image["alt"] and image["width"] == image["height"] == "32" for image in images)
    assert images[1]["alt"] == "cat, coloured in style 1"
    assert images[3]["alt"] == "cat, true colouring"


def test_pictures_keep_their_pixels(tmp_path: Path) -> None:
    ramp = torch.linspace(-1, 1, 16).expand(3, 16, 16).clone()
    ramp[0] = 1
    page = write_demo(
        tmp_path, drawings=[web.DrawingRow(ramp, [flat(5.0)], torch.linspace(-1, 1, 16).expand(1, 16, 16))]
    )
    drawing, clamped, grey = (read_picture(image["src"])[1].convert("RGB") for image in page.all("img"))
    expected = ((ramp + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(drawing, dtype=float) - expected).max() <= 6  # JPEG may be the smaller one
    assert np.asarray(clamped).min() == 255
    assert np.abs(np.asarray(grey, dtype=float) - np.linspace(0, 255, 16)[None, :, None]).max() <= 6


def test_the_smaller_encoding_is_chosen(tmp_path: Path) -> None:
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    lines = flat(1, 64)
    lines[:, 20:22] = -1
    page = write_demo(tmp_path, drawings=[web.DrawingRow(lines, [noise])])
    (first, drawing), (second, shaded) = (read_picture(image["src"]) for image in page.all("img"))
    assert (first, second) == ("png", "jpeg")
    assert np.array_equal(np.asarray(drawing), ((lines + 1) * 127.5).byte().permute(1, 2, 0).numpy())
    assert JpegImagePlugin.get_sampling(shaded) == 0  # 4:4:4: full colour resolution


@pytest.mark.parametrize(("side", "styles", "shown"), [(64, 6, 128), (128, 6, 128), (128, 1, 256)])
def test_pictures_are_doubled_where_the_row_fits(tmp_path: Path, side: int, styles: int, shown: int) -> None:
    page = write_demo(tmp_path, drawings=[web.DrawingRow(flat(0, side), [flat(0, side)] * styles)])
    assert {image["width"] for image in page.all("img")} == {str(shown)}


def test_metrics_table_shows_value_floor_ceiling_baselines_and_reading(tmp_path: Path) -> None:
    rows = [
        metrics.EvaluationRow("a", "KID × 10³", "lines → colour", 87.34, "lower", "first way", 10.5, 599.0),
        metrics.EvaluationRow(
            "b",
            "Line F1",
            "colour → lines",
            0.5,
            "higher",
            "second way",
            1.0,
            0.25,
            0.01,
            {"copy the input": 0.25, "all white": 0.0},
        ),
        metrics.EvaluationRow("c", "L1", "lines → colour", 0.1, "lower", "third way", 0.0, 0.2),
    ]
    texts = write_demo(tmp_path, metrics=rows).texts
    start = texts.index("Lines → colour")
    assert texts[start : start + 8] == [
        "Lines → colour",
        "KID × 10³",
        "87.3",
        "10.5",
        "599",
        "–",
        "86 % of the way from the untranslated input to real data.",
        "Measured as first way; lower is better.",
    ]
    assert texts[start + 8] == "L1"  # rows of one direction stand together
    start = texts.index("Line F1")
    assert texts[start + 1 : start + 6] == ["0.5", "± 0.01", "1", "0.25", "all white 0"]


@pytest.mark.parametrize(
    ("drawings", "words"),
    [
        ([web.DrawingRow(flat(0), [flat(0)]), web.DrawingRow(flat(0), [flat(0)] * 2)], "same styles"),
        ([web.DrawingRow(flat(math.nan), [flat(0)])], "NaN"),
        ([web.DrawingRow(torch.zeros(1, 3, 8, 8), [flat(0)])], "give float"),
        ([web.DrawingRow(torch.zeros(3, 8, 8, dtype=torch.uint8), [flat(0)])], "uint8"),
    ],
)
def test_demo_refuses_what_it_cannot_show(tmp_path: Path, drawings: list[web.DrawingRow], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_demo(tmp_path, drawings=drawings)
    assert list(tmp_path.iterdir()) == []


def test_demo_refuses_a_page_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_DEMO_BYTES", 5_000)
    with pytest.raises(ValueError, match="fewer or smaller pictures"):
        write_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- charts


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]


def test_curves_are_grouped_and_silent_ones_left_out() -> None:
    names = [
        f"loss_{name}"
        for name in (
            "gen_recon_x_a",
            "gen_recon_x_b",
            "gen_recon_s_a",
            "gen_recon_c_b",
            "gen_adv_a",
            "dis_a",
            "gen_total",
            "dis_total",
            "gen_cycrecon_x_a",
            "gen_vgg_a",
            "gen_recon_kl_a",
        )
    ]
    losses = {name: [(1, 0.5), (2, 0.25)] for name in names} | {"loss_gen_vgg_b": [(1, 0.0), (2, 0.0)]}
    made = charts.charts(losses)
    assert {chart.title: [line.label for line in chart.lines] for chart in made} == {
        "Totals": ["gen_total", "dis_total"],
        "Adversarial": ["gen_adv_a", "dis_a"],
        "Images rebuilt": ["gen_recon_x_a", "gen_recon_x_b", "gen_cycrecon_x_a"],
        "Codes rebuilt": ["gen_recon_s_a", "gen_recon_c_b"],
        "Other losses": ["gen_vgg_a", "gen_recon_kl_a"],
    }
    assert made[0].lines[0].last == "0.25"


def test_more_than_four_curves_take_a_second_chart() -> None:
    made = charts.charts({f"x{i}": [(1, 1.0)] for i in range(6)})
    assert [len(chart.lines) for chart in made] == [4, 2]


def test_points_stand_where_the_axes_say() -> None:
    (chart,) = charts.charts({"x": [(0, 0.0), (50, 1.0), (100, 4.0)]})
    assert [label for _, label in chart.x_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [label for _, label in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    (x0, _), *_, (x1, _) = chart.x_ticks
    (y0, _), *_, (y1, _) = chart.y_ticks
    assert (x0, x1, y0, y1) == (charts.LEFT, charts.RIGHT, charts.BOTTOM, charts.TOP)
    expected = [(x0, y0), ((x0 + x1) / 2, y0 + (y1 - y0) / 4), (x1, y1)]
    np.testing.assert_allclose(points(chart.lines[0].raw), expected)


def test_axes_begin_at_zero_and_end_at_the_last_iteration() -> None:
    (chart,) = charts.charts({"x": [(5, 10.0), (95, 11.0)]})
    assert chart.y_ticks[0] == (charts.BOTTOM, "0")
    assert [label for _, label in chart.x_ticks] == ["0", "20", "40", "60", "80"]
    assert points(chart.lines[0].raw)[-1][0] == charts.RIGHT


def test_a_first_spike_does_not_flatten_the_rest() -> None:
    curve = [(i, 100.0 if i < 5 else 1.0) for i in range(1000)]
    (chart,) = charts.charts({"x": curve})
    assert float(chart.y_ticks[-1][1]) <= 2
    heights = [y for _, y in points(chart.lines[0].raw)]
    assert heights[0] < charts.TOP  # it leaves the frame instead of being drawn as its top


def test_long_curves_are_thinned_but_keep_the_newest_point() -> None:
    (chart,) = charts.charts({"x": [(i, 1.0 + i) for i in range(1, 100_002)]})
    line = points(chart.lines[0].raw)
    assert len(line) <= charts.MOST_POINTS
    assert line[-1][0] == charts.RIGHT
    assert [x for x, _ in line] == sorted(x for x, _ in line)


def test_moving_average_is_centred_and_short_at_the_ends() -> None:
    curve = np.stack([np.arange(80.0), np.random.default_rng(0).normal(size=80)], axis=1)
    averaged = charts.moving_average(curve)
    for i in (0, 1, 2, 40, 78, 79):
        assert averaged[i, 1] == pytest.approx(curve[max(0, i - 2) : i + 3, 1].mean())
    short = curve[:10]
    np.testing.assert_allclose(charts.moving_average(short), short)  # too few points to smooth


def test_a_loss_that_is_no_number_is_named() -> None:
    curves = {"x": [(1, 1.0), (1200, math.nan), (1300, math.inf), (1400, -math.inf)], "y": [(1, math.nan)]}
    (chart,) = charts.charts(curves)
    assert [line.last for line in chart.lines] == ["not finite since 1,200", "not finite since 1"]
    assert len(points(chart.lines[0].raw)) == 1
    assert chart.lines[1].raw == ""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.97, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 4, [-4, -2, 0, 2, 4]),
        (0, 30_000, [0, 10_000, 20_000, 30_000]),
        (0, 2e-6, [0, 5e-7, 1e-6, 1.5e-6, 2e-6]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_negative_losses_stand_inside_the_frame() -> None:
    (chart,) = charts.charts({"x": [(1, -2.0), (2, -3.0), (3, -1.0)]})
    assert all(charts.TOP <= y <= charts.BOTTOM for _, y in points(chart.lines[0].raw))
    assert chart.y_ticks[0] == (charts.BOTTOM, "-3")


def test_charts_reach_the_page(tmp_path: Path) -> None:
    page = write_training(tmp_path, losses={"loss_gen_total": [(1, 2.0), (10_000, 1.5)]})
    (label,) = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert "gen_total 1.5" in label
    assert len(page.all("polyline")) == 2
    assert {"10k", "gen_total", "1.5"} <= set(page.texts)
