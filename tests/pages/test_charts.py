"""Curves stand where the axes say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from munit_fast.pages import charts


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


def test_measurements_are_points_with_a_band_of_their_error() -> None:
    curves = {"kid_a2b": [(0, 2.0), (50, 4.0), (100, 3.0)], "kid_b2a": [(50, 1.0)], "l1_a2b": [(50, 0.5), (100, 0.25)]}
    kid, l1 = charts.charts(curves, charts.METRIC_GROUPS, {"kid_a2b": [(0, 1.0), (100, 0.5)], "kid_b2a": [(50, 1.0)]})
    assert (kid.title, [line.label for line in kid.lines], l1.title) == ("KID × 10³", ["kid_a2b", "kid_b2a"], "L1")
    unit = (charts.BOTTOM - charts.TOP) / 4

    def at(x: float, y: float) -> tuple[float, float]:
        return charts.LEFT + (charts.RIGHT - charts.LEFT) * x / 100, charts.BOTTOM - unit * y

    outline = [at(0, 3), at(100, 3.5), at(100, 2.5), at(0, 1)]  # what has no error is left out
    np.testing.assert_allclose(points(kid.lines[0].band), outline, atol=0.06)
    np.testing.assert_allclose(kid.lines[0].dots, [at(0, 2), at(50, 4), at(100, 3)])
    np.testing.assert_allclose(kid.lines[1].dots, [at(50, 1)])
    assert not kid.lines[1].band and not l1.lines[0].band
    (plain,) = charts.charts({"x": [(0, 0.0), (50, 1.0)]})
    assert not plain.lines[0].band and not plain.lines[0].dots
    (many,) = charts.charts({"kid": [(i, 1.0) for i in range(100)]}, charts.METRIC_GROUPS, {})
    assert not many.lines[0].dots


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
