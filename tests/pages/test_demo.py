"""The page of a demonstration holds what it was given, escapes it, stands alone and is well-formed."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor

from helpers.markup import EVIL, Page
from munit_fast.evaluate import metrics
from munit_fast.pages import demo


def flat(value: float, side: int = 16) -> Tensor:
    return torch.full((3, side, side), float(value))


def read_picture(uri: str) -> tuple[str, Image.Image]:
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", uri).groups()  # type: ignore[union-attr]
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))


def report(**changes: Any) -> demo.DemoReport:
    shown: dict[str, Any] = {
        "drawings": [
            demo.DrawingRow(flat(1), torch.stack([flat(-0.5), flat(0.5)]), flat(0), name="cat"),
            demo.DrawingRow(flat(1), [flat(-0.2), flat(0.2)], name="dog"),
        ],
    }
    shown |= {name: changes.pop(name) for name in list(changes) if name in ("drawings", "guided", "strips", "lines")}
    values: dict[str, Any] = {
        "title": "A title",
        "summary": "A summary.",
        "showcases": [demo.Showcase(**shown)],
        "made": demo.HowMade("some_config", "a GPU", 20_000, 41.5, 8.03, {"PyTorch": "2.13.0"}, ["A remark."]),
        "attribution": "Pictures by someone, CC BY-SA 4.0",
    }
    return demo.DemoReport(**(values | changes))


def write_demo(folder: Path, **changes: Any) -> Page:
    path = demo.write_demo_page(folder / "demo.html", data=report(**changes))
    return Page(path.read_text("utf-8"))


def full_report() -> dict[str, Any]:
    return {
        "guided": [demo.GuidedExample(flat(0), flat(0.1), flat(0.2))],
        "strips": [demo.StyleStrip(flat(0), torch.zeros(5, 3, 16, 16))],
        "lines": [demo.LinesExample(flat(0), flat(1), flat(1))],
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
    shows = [
        demo.Showcase([demo.DrawingRow(flat(0), [flat(0)])], title=name, note="A note.") for name in ("Box", "Own")
    ]
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
    page = write_demo(tmp_path, drawings=[demo.DrawingRow(flat(0), [flat(0)])])
    assert page.all("svg") == []
    sections = {
        "The style of a picture",
        "Between two styles",
        "The other way: colour to lines",
        "The training",
    }
    assert not sections & set(page.texts)
    assert "True colouring" not in page.texts
    assert any(text.endswith(" 1 style") for text in page.texts)


def test_every_picture_has_words_and_a_size(tmp_path: Path) -> None:
    images = write_demo(tmp_path, **full_report()).all("img")
    assert all(image["alt"] and image["width"] == image["height"] == "32" for image in images)
    assert re.match("cat, .*style 1$", images[1]["alt"])
    assert re.match("cat, .*true", images[3]["alt"])


def test_pictures_keep_their_pixels(tmp_path: Path) -> None:
    ramp = torch.linspace(-1, 1, 16).expand(3, 16, 16).clone()
    ramp[0] = 1
    page = write_demo(
        tmp_path, drawings=[demo.DrawingRow(ramp, [flat(5.0)], torch.linspace(-1, 1, 16).expand(1, 16, 16))]
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
    page = write_demo(tmp_path, drawings=[demo.DrawingRow(lines, [noise])])
    (first, drawing), (second, shaded) = (read_picture(image["src"]) for image in page.all("img"))
    assert (first, second) == ("png", "jpeg")
    assert np.array_equal(np.asarray(drawing), ((lines + 1) * 127.5).byte().permute(1, 2, 0).numpy())
    assert JpegImagePlugin.get_sampling(shaded) == 0  # 4:4:4: full colour resolution


@pytest.mark.parametrize(("side", "styles", "shown"), [(64, 6, 128), (128, 6, 128), (128, 1, 256)])
def test_pictures_are_doubled_where_the_row_fits(tmp_path: Path, side: int, styles: int, shown: int) -> None:
    page = write_demo(tmp_path, drawings=[demo.DrawingRow(flat(0, side), [flat(0, side)] * styles)])
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
    assert texts[start : start + 6] == [
        "Lines → colour",
        "KID × 10³",
        "87.3",
        "10.5",
        "599",
        "–",
    ]
    assert texts[start + 6].startswith("86 %")
    assert re.search("first way.*lower", texts[start + 7])
    assert texts[start + 8] == "L1"  # rows of one direction stand together
    start = texts.index("Line F1")
    assert texts[start + 1 : start + 6] == ["0.5", "± 0.01", "1", "0.25", "all white 0"]


@pytest.mark.parametrize(
    ("drawings", "words"),
    [
        ([demo.DrawingRow(flat(0), [flat(0)]), demo.DrawingRow(flat(0), [flat(0)] * 2)], "same styles"),
        ([demo.DrawingRow(flat(math.nan), [flat(0)])], "NaN"),
        ([demo.DrawingRow(torch.zeros(1, 3, 8, 8), [flat(0)])], "give float"),
        ([demo.DrawingRow(torch.zeros(3, 8, 8, dtype=torch.uint8), [flat(0)])], "uint8"),
    ],
)
def test_demo_refuses_what_it_cannot_show(tmp_path: Path, drawings: list[demo.DrawingRow], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_demo(tmp_path, drawings=drawings)
    assert list(tmp_path.iterdir()) == []


def test_demo_refuses_a_page_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MAX_DEMO_BYTES", 5_000)
    with pytest.raises(ValueError, match="MB, more than"):
        write_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_given_is_read_as_markup_in_the_demo(tmp_path: Path) -> None:
    row = metrics.EvaluationRow("k", EVIL, EVIL, 1.0, "lower", EVIL, baselines={EVIL: 2.0})
    page = write_demo(
        tmp_path,
        title=EVIL,
        summary=EVIL,
        drawings=[demo.DrawingRow(flat(0), [flat(0)], name=f'" onload="x{EVIL}')],
        made=demo.HowMade(EVIL, EVIL, 1, 1.0, 1.0, {EVIL: EVIL}, [EVIL]),
        attribution=EVIL,
        metrics=[row],
        losses={EVIL: [(1, 1.0)]},
    )
    assert page.all("script") == []
    assert page.texts.count(EVIL) >= 9
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
