"""Loss curves as line charts in the coordinates of an SVG; `templates/charts.html.j2` draws them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curve = Sequence[tuple[int, float]]  # (iteration, value) in the order of the iterations
Points = NDArray[np.float64]  # [n, 2]

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 428, 12, 200  # the plot's frame inside the viewBox
# More points than this cannot be told apart on so small a chart, and a long training logs 100,000.
MOST_POINTS = 400
LINES_PER_CHART = 4

# Title, logged names, and what a reader should know of them.
GROUPS = (
    ("Totals", r"loss_(gen|dis)_total", "What each optimizer minimises."),
    ("Adversarial", r"loss_(gen_adv|dis)_[ab]", "Discriminators (dis) against generators (gen_adv)."),
    (
        "Images rebuilt",
        r"loss_gen_(cyc)?recon_x_[ab]",
        "Mean absolute error, directly or after a round trip (cycrecon).",
    ),
    ("Codes rebuilt", r"loss_gen_recon_[sc]_[ab]", "Style (s) and content (c) read back from translations."),
    (
        "Gradient penalty",
        r"loss_dis_r1_[ab]",
        "R1, without its weight; the newest one where not every iteration has it.",
    ),
    ("Mode seeking", r"loss_gen_mode_seeking_[ab]", "Difference of two styles, by that of their translations."),
    ("Diversity", r"loss_gen_diversity_[ab]", "Minus the difference of the translations in two styles."),
    ("Augmentation", r"ada_p_[ab]", "The probability of what the discriminators see (ada_target)."),
    ("Other losses", r".*", ""),
)

# The same for what a run does besides its losses: one unit a chart.
RUN_GROUPS = (
    ("Speed", r"iterations_per_second", "Iterations a second, over the last half minute."),
    ("Learning rate", r"learning_rate(_dis)?", ""),
    ("Memory", r"memory_mb", "The most that was held so far, in megabytes."),
    ("Skipped steps", r"skipped_steps", "Steps whose gradient was not finite, so far."),
)

# Of evaluations on test images.
METRIC_GROUPS = (
    ("KID × 10³", r"kid(_[ab]2[ab])?", "Distance of translations from real images. Lower is better."),
    (
        "Learned by heart",
        r"overfitting_[ab]",
        "What the discriminators say of training images minus of held-out ones. 0 is good.",
    ),
    ("L1", r"l1(_[ab]2[ab])?", "Difference to the true translations. Lower is better."),
    ("SSIM", r"ssim(_[ab]2[ab])?", "Similarity to the true translations. Higher is better."),
    ("Line F1", r"line_f1(_[ab]2[ab])?", "Agreement with the true lines. Higher is better."),
    ("Diversity", r"diversity(_[ab]2[ab])?", "Distance among the translations of one image."),
    ("Distance to the truth", r"(best|mean)_distance(_[ab]2[ab])?", "In features. Lower is better."),
    ("Distinct hues", r"distinct_hues(_[ab]2[ab])?", "Share of coloured drawings with two hues. Higher is better."),
    ("Fill", r"fill(_[ab]2[ab])?", "Coloured share of large enclosed areas. Higher is better."),
    ("Coverage", r"coverage(_[ab]2[ab])?", "Share of the known true translations that are met. Higher is better."),
    (
        "Distance to every truth",
        r"missed_distance(_[ab]2[ab])?",
        "From each known true translation to the nearest one made. Lower is better.",
    ),
    ("Other metrics", r".*", ""),
)
_MOST_DOTS = 40  # more would hide the line


@dataclass(frozen=True)
class Line:
    """One curve in the coordinates of the viewBox.

    Attributes:
        label: Its name.
        last: Its last value as text.
        raw: The points of the curve, as SVG writes them.
        smooth: Those of its average.
        band: The outline of one standard error above and below; "": there is none.
        dots: A few measured points.
    """

    label: str
    last: str
    raw: str
    smooth: str
    band: str = ""
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """Up to four curves with their axes; tick positions are viewBox coordinates."""

    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def charts(
    losses: Mapping[str, Curve],
    groups: Sequence[tuple[str, str, str]] = GROUPS,
    errors: Mapping[str, Curve] | None = None,
) -> list[Chart]:
    """Group the curves by what they measure, at most four a chart; all-zero curves are left out.

    Args:
        losses: The curves by name.
        groups: Title, pattern of names and note of each kind of chart.
        errors: Of measurements their standard errors by name, as far as they are known; they are drawn as points.
    """
    rest = {name: curve for name, curve in losses.items() if any(value != 0 for _, value in curve)}
    made = []
    for title, pattern, note in groups:
        names = [name for name in rest if re.fullmatch(pattern, name)]
        group = [(name, np.asarray(rest.pop(name), dtype=np.float64)) for name in names]
        for start in range(0, len(group), LINES_PER_CHART):
            made.append(_chart(title, note, group[start : start + LINES_PER_CHART], errors))
    return made


def _chart(
    title: str, note: str, curves: Sequence[tuple[str, Points]], errors: Mapping[str, Curve] | None = None
) -> Chart:
    finite = [points[np.isfinite(points[:, 1])] for _, points in curves]
    smooth = [moving_average(points) for points in finite]
    known = {name: dict(curve) for name, curve in (errors or {}).items()}
    upper = [
        np.array([(x, y + known.get(name, {}).get(int(x), 0)) for x, y in points], np.float64).reshape(-1, 2)
        for (name, _), points in zip(curves, finite, strict=True)
        if name in known
    ]
    x_ticks, y_ticks, last = _axes([*finite, *upper], smooth)
    low, high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return LEFT + (RIGHT - LEFT) * x / last

    def up(y: float) -> float:
        # What leaves the frame is cut off by the template; the bound only keeps the numbers short.
        return BOTTOM - (BOTTOM - TOP) * (min(y, 9 * high) - low) / (high - low)

    def polyline(points: Points) -> str:
        step = max(1, math.ceil(len(points) / MOST_POINTS))
        # Counted from the end, so that the newest point is always among the kept ones.
        return " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points[::-1][::step][::-1])

    def band(name: str, points: Points) -> str:
        of_name = known.get(name, {})
        both = [(x, y, of_name[int(x)]) for x, y in points if int(x) in of_name]
        above, below = ([(x, y + sign * error) for x, y, error in both] for sign in (1, -1))
        outline = np.asarray([*above, *below[::-1]], dtype=np.float64).reshape(-1, 2)
        return polyline(outline) if len(both) > 1 else ""

    def dots(points: Points) -> tuple[tuple[float, float], ...]:
        few = errors is not None and len(points) <= _MOST_DOTS
        return tuple((across(x), up(y)) for x, y in points) if few else ()

    lines = (
        Line(
            name.removeprefix("loss_"),
            last_value(points),
            polyline(raw),
            polyline(averaged),
            band(name, raw),
            dots(raw),
        )
        for (name, points), raw, averaged in zip(curves, finite, smooth, strict=True)
    )
    return Chart(
        title,
        note,
        tuple(lines),
        tuple((across(tick), short(tick)) for tick in x_ticks),
        tuple((up(tick), short(tick)) for tick in y_ticks),
    )


def _axes(finite: Sequence[Points], smooth: Sequence[Points]) -> tuple[list[float], list[float], float]:
    """Ticks of both axes and the iteration at the right end."""
    points = np.concatenate([*finite, np.zeros((1, 2))])  # the axes begin at zero
    last = max(float(points[:, 0].max()), 1.0)
    # A spike of the first iterations would flatten all the rest, so the top follows the bulk of the points.
    bulk = max(float(np.quantile(curve[:, 1], 0.98)) for curve in (*finite, points) if len(curve))
    settled = max((float(curve[len(curve) // 10 :, 1].max()) for curve in smooth if len(curve)), default=0.0)
    y_ticks = ticks(float(points[:, 1].min()), max(bulk, settled))
    return [tick for tick in ticks(0.0, last) if tick <= last], y_ticks, last


def last_value(points: Points) -> str:
    """The newest value as text, or since when the curve is not finite."""
    broken = points[~np.isfinite(points[:, 1]), 0]
    return f"not finite since {int(broken[0]):,}" if len(broken) else f"{points[-1, 1]:.3g}"


def moving_average(points: Points) -> Points:
    """The values [n, 2] averaged over a centred window of about n / 20 points, cut off at both ends."""
    n = len(points)
    start, stop = np.maximum(np.arange(n) - n // 40, 0), np.minimum(np.arange(n) + n // 40 + 1, n)
    sums = np.concatenate([[0.0], np.cumsum(points[:, 1])])
    return np.stack([points[:, 0], (sums[stop] - sums[start]) / (stop - start)], axis=1)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover a range, in steps of 1, 2 or 5 times a power of ten.

    Args:
        low: the first number is at or below it.
        high: the last number is at or above it.
        most: about as many steps at most.
    """
    high = high if high > low else low + 1
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= most)
    # A hundred-millionth of a step is rounding, not a value beyond the tick.
    first, final = math.floor(low / step + 1e-8), math.ceil(high / step - 1e-8)
    return [round(index * step, 12) for index in range(first, final + 1)]


def short(value: float) -> str:
    """1500 → 1.5k, 0.25 → 0.25: a label that fits beside an axis."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
