"""Templates to HTML: every value is escaped; numbers and durations are formatted by filters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2

from munit_fast.pages import charts


def render(template: str, **values: Any) -> str:
    """A file of `templates/` with these values. Raises jinja2.UndefinedError for one that is missing."""
    # autoescape must be switched on by hand: Jinja2's own rule knows .html but not .html.j2.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, duration=_duration)
    frame = {
        "width": charts.WIDTH,
        "height": charts.HEIGHT,
        "left": charts.LEFT,
        "right": charts.RIGHT,
        "top": charts.TOP,
        "bottom": charts.BOTTOM,
    }
    return environment.get_template(template).render(frame=frame, **values)


def _number(value: float | None) -> str:
    """Three significant digits; a dash for what has no value."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _duration(seconds: float | None) -> str:
    """90 → 1 min 30 s; 8000 → 2 h 13 min."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    left, parts = max(0, round(seconds)), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, left = divmod(left, size)
        if amount:
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2]) or "0 s"
