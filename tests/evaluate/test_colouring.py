"""Areas of drawings, the hues of their colourings, and what was left white."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor

from munit_fast.evaluate.metrics import Batch
from munit_fast.evaluate.metrics.colouring import ColouringMetric, enclosed_areas, measure_colouring
from munit_fast.evaluate.metrics.evaluation import TO_COLOUR

pytest.importorskip("scipy")
SIDE = 40


def boxes(*corners: tuple[int, int, int], open_at: int | None = None) -> Tensor:
    """A drawing [3, 40, 40] of squares (top, left, inner side); `open_at` has a gap in its upper line."""
    drawing = torch.ones(3, SIDE, SIDE)
    for i, (top, left, side) in enumerate(corners):
        drawing[:, top - 1 : top + side + 1, left - 1 : left + side + 1] = -1
        drawing[:, top : top + side, left : left + side] = 1
        if i == open_at:
            drawing[:, top - 1, left + 1] = 1
    return drawing


def painted(drawing: Tensor, *squares: tuple[int, int, int, tuple[float, float, float]]) -> Tensor:
    """The drawing with squares of RGB in [0, 1]."""
    picture = drawing.clone()
    for top, left, side, colour in squares:
        picture[:, top : top + side, left : left + side] = 2 * torch.tensor(colour)[:, None, None] - 1
    return picture


THREE = ((2, 2, 12), (2, 20, 10), (20, 2, 10))


def hue(degrees: float, saturation: float = 1.0) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(degrees / 360, saturation, 1.0)


def test_enclosed_areas() -> None:
    areas = enclosed_areas(boxes(*THREE))
    assert [int(area.sum()) for area in areas] == [144, 100, 100]
    assert areas[0][2:14, 2:14].all()
    assert len(enclosed_areas(boxes(*THREE, open_at=0))) == 2  # the gap joins it to the outside
    assert enclosed_areas(torch.ones(1, SIDE, SIDE)) == []
    assert (
        len(enclosed_areas(boxes((2, 2, 3)))) == 1 and enclosed_areas(boxes((2, 2, 2))) == []
    )  # 9 and 4 of 1600 pixels
    diagonal = boxes((2, 2, 12))
    diagonal[:, 1, 1] = 1  # paper that meets paper at a corner only
    assert len(enclosed_areas(diagonal)) == 1


@pytest.mark.parametrize(
    ("colours", "distinct"),
    [
        ((hue(0), hue(0), hue(0)), False),
        ((hue(0), hue(29), hue(0)), False),
        ((hue(0), hue(31), hue(0)), True),
        ((hue(350), hue(15), hue(350)), False),  # over the end of the circle
        ((hue(340), hue(15), hue(340)), True),
        ((hue(0), hue(180, 0.1), hue(0)), False),  # grey
        ((hue(0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), False),
    ],
)
def test_distinct_hues(colours: tuple[tuple[float, float, float], ...], distinct: bool) -> None:
    drawing = boxes(*THREE)
    picture = painted(drawing, *((*box, colour) for box, colour in zip(THREE, colours)))
    found = measure_colouring(picture, enclosed_areas(drawing))
    assert found.areas == 3 and found.distinct_hues is distinct


def test_fill_is_of_large_areas_alone() -> None:
    drawing = boxes((2, 2, 12), (2, 20, 8))  # 9 % and 4 % of the picture
    areas = enclosed_areas(drawing)
    half = painted(drawing, (2, 2, 12, hue(40)))
    half[:, 2:8, 2:14] = 1
    assert measure_colouring(half, areas).fill == (0.5,)
    assert measure_colouring(painted(drawing, (2, 2, 12, (0.95, 1.0, 0.95))), areas).fill == (0.0,)  # hardly a colour


def test_rows_are_means_over_drawings_with_areas() -> None:
    three, one = boxes(*THREE), boxes((2, 2, 12))
    true = painted(three, *((*box, hue(120 * i)) for i, box in enumerate(THREE)))
    flat = painted(three, *((*box, hue(50)) for box in THREE))
    metric = ColouringMetric()
    metric.update(Batch(torch.stack([torch.stack([true, flat]), torch.stack([one, one])]), torch.stack([three, one])))
    assert {row.key: row.floor for row in metric.compute(TO_COLOUR, ())} == {
        "lines_to_colour.distinct_hues": None,
        "lines_to_colour.fill": None,
    }
    metric = ColouringMetric()
    fake, source = torch.stack([torch.stack([true, flat]), torch.stack([one, one])]), torch.stack([three, one])
    metric.update(Batch(fake, source, torch.stack([true, true])))
    rows = {row.key: row for row in metric.compute(TO_COLOUR, ())}
    hues, fill = rows["lines_to_colour.distinct_hues"], rows["lines_to_colour.fill"]
    assert (hues.value, hues.floor, hues.stderr) == (0.5, 1.0, None)  # of one drawing, half its translations
    assert fill.value == pytest.approx(0.5) and fill.floor == 1.0 and fill.stderr is not None
    assert hues.progress() == pytest.approx(0.5)


def test_without_lines_or_areas_there_are_no_rows() -> None:
    metric = ColouringMetric()
    metric.update(Batch(torch.zeros(1, 2, 3, SIDE, SIDE)))
    metric.update(Batch(torch.zeros(1, 2, 3, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)))
    assert list(metric.compute(TO_COLOUR, ())) == []
