"""Two pages to look at: that of a running training, and the self-contained one of a demonstration.

Both are plain HTML with inline style and inline SVG: no script, no network, light and dark, phone to desktop.
Jinja2 escapes every value. The text lies in `templates/`; here values become what a page can show.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import quote

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.pages import charts
from munit_fast.pages.charts import Curve

MAX_DEMO_BYTES = 6_000_000
JPEG_QUALITY = 90
# A row of pictures wider than this is shown at 1× instead of 2×, so that it fits the page without scrolling.
WIDEST_ROW = 1100

_GRID_NAME = re.compile(r"gen_(?P<way>a2b|b2a)_(?P<set>train|test)_(?P<when>\d{8}|current)\.jpg")


@dataclass(frozen=True)
class TrainingStatus:
    """Where a training stands."""

    iteration: int
    max_iter: int
    iterations_per_second: float | None = None
    seconds_left: float | None = None
    stopped: bool = False  # before it was finished: nothing runs any more

    @property
    def finished(self) -> bool:
        return self.iteration >= self.max_iter


@dataclass(frozen=True)
class DrawingRow:
    """One held-out drawing and what was made of it; images are float [1 or 3, h, w] in [-1, 1]."""

    drawing: Tensor
    translations: Sequence[Tensor] | Tensor  # k images, one for each style column
    truth: Tensor | None = None
    name: str = ""


@dataclass(frozen=True)
class GuidedExample:
    """A drawing coloured in the style of a picture: three float [1 or 3, h, w] in [-1, 1]."""

    drawing: Tensor
    style: Tensor
    result: Tensor


@dataclass(frozen=True)
class StyleStrip:
    """One drawing with the style code moved step by step: float [1 or 3, h, w] in [-1, 1]."""

    drawing: Tensor
    frames: Sequence[Tensor] | Tensor


@dataclass(frozen=True)
class LinesExample:
    """A colour picture, the drawing made from it, and its true drawing: float [1 or 3, h, w] in [-1, 1]."""

    picture: Tensor
    produced: Tensor
    truth: Tensor


@dataclass(frozen=True)
class HowMade:
    """What a reader needs to make the same result again."""

    config: str
    hardware: str
    iterations: int
    minutes: float
    iterations_per_second: float
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


class MetricRow(Protocol):
    """What the table shows of a measured quantity; `munit_fast.evaluate.metrics.EvaluationRow` has it all."""

    @property
    def name(self) -> str: ...
    @property
    def direction(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def better(self) -> str: ...
    @property
    def measured(self) -> str: ...
    @property
    def floor(self) -> float | None: ...
    @property
    def ceiling(self) -> float | None: ...
    @property
    def stderr(self) -> float | None: ...
    @property
    def baselines(self) -> Mapping[str, float]: ...
    def reading(self) -> str: ...


@dataclass(frozen=True)
class Showcase:
    """What one model makes of pictures that it never saw. Empty parts are left out of the page."""

    drawings: Sequence[DrawingRow] = ()
    guided: Sequence[GuidedExample] = ()
    strips: Sequence[StyleStrip] = ()
    lines: Sequence[LinesExample] = ()
    title: str = ""  # which model; needed where the page shows two
    note: str = ""  # where it comes from


@dataclass(frozen=True)
class DemoReport:
    """Everything the demonstration page shows. Empty parts are left out of the page.

    metrics, losses, made: of the last showcase's model.
    """

    title: str
    summary: str  # one sentence: what the reader sees
    showcases: Sequence[Showcase]
    attribution: str  # licence and source of the pictures
    made: HowMade | None = None
    losses: Mapping[str, Curve] = field(default_factory=dict)
    metrics: Sequence[MetricRow] = ()


def write_training_page(
    folder: Path,
    *,
    title: str,
    images: Mapping[int, Sequence[str]],
    losses: Mapping[str, Curve],
    status: TrainingStatus,
    current: Sequence[str] = (),
    refresh_seconds: int | None = None,
    run: Mapping[str, Curve] | None = None,
) -> Path:
    """Write `folder/index.html` for a running or finished training; the file is replaced as a whole.

    images: iteration → grid files relative to `folder`, as images/gen_a2b_test_00010000.jpg (`find_grids`
    collects them); the newest iteration stands open on the page, older ones are folded. current: the grids of
    the running iteration. losses: logged name → points; losses that are zero throughout are left out.
    run: the same for what the run itself does (learning_rate, iterations_per_second, memory_mb, …); the newest values
    stand at the top. refresh_seconds: let the browser reload that often until the training is finished.
    Raises ValueError for a file outside `folder`; munit_fast.io.atomic.FileWriteError when it cannot be written.
    """
    groups = [
        {"iteration": iteration, "grids": [_grid(name) for name in images[iteration]]}
        for iteration in sorted(images, reverse=True)
        if images[iteration]
    ]
    page = _render(
        "training.html.j2",
        title=title,
        status=status,
        current=[_grid(name) for name in current],
        groups=groups,
        charts=charts.charts(losses),
        run_charts=charts.charts(run or {}, charts.RUN_GROUPS),
        newest={name: curve[-1][1] for name, curve in (run or {}).items() if curve},
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        refresh=None if status.finished else refresh_seconds,
    )
    target = Path(folder) / "index.html"
    atomic_write_bytes(target, page.encode())
    return target


def find_grids(folder: Path) -> dict[int, list[str]]:
    """The saved grids under `folder`/images by iteration, as `write_training_page` takes them."""
    found: dict[int, list[str]] = {}
    for path in sorted((Path(folder) / "images").glob("gen_*.jpg")):
        match = _GRID_NAME.fullmatch(path.name)
        if match and match["when"] != "current":
            found.setdefault(int(match["when"]), []).append(f"images/{path.name}")
    return found


def write_demo_page(path: Path, *, data: DemoReport) -> Path:
    """Write the demonstration as one HTML file with all pictures inside; the file is replaced as a whole.

    Pictures are embedded as PNG or JPEG of quality 90, whichever is smaller.
    Raises ValueError for images that are not float [1 or 3, h, w] or not finite, for rows with different
    numbers of styles, and when the page would exceed 6 MB; munit_fast.io.atomic.FileWriteError as above.
    """
    page = _render(
        "demo.html.j2",
        data=data,
        charts=charts.charts(data.losses),
        metrics=_by_direction(data.metrics),
        showcases=[_pictures(showcase) for showcase in data.showcases],
    ).encode()
    if len(page) > MAX_DEMO_BYTES:
        raise ValueError(
            f"the page would have {len(page) / 1e6:.1f} MB, more than {MAX_DEMO_BYTES / 1e6:.0f}; "
            "give fewer or smaller pictures"
        )
    atomic_write_bytes(Path(path), page)
    return Path(path)


# Pictures


@dataclass(frozen=True)
class _Picture:
    """An image as the page embeds it, with its size on the page in CSS pixels."""

    uri: str
    width: int
    height: int


def _pictures(data: Showcase) -> dict[str, Any]:
    styles = {len(row.translations) for row in data.drawings}
    if len(styles) > 1:
        raise ValueError(f"the drawings have {sorted(styles)} translations; every row needs the same styles")
    columns = max(styles, default=0)
    truths = any(row.truth is not None for row in data.drawings)
    grid = [
        (
            row.name,
            [_picture(image, columns + 2) for image in (row.drawing, *row.translations)],
            None if row.truth is None else _picture(row.truth, columns + 2),
        )
        for row in data.drawings
    ]
    return {
        "title": data.title,
        "note": data.note,
        "styles": columns,
        "truths": truths,
        "grid": grid,
        "guided": [_trio(example.drawing, example.style, example.result) for example in data.guided],
        "strips": [
            (_picture(strip.drawing, len(strip.frames) + 1), _row(strip.frames, len(strip.frames) + 1))
            for strip in data.strips
        ],
        "lines": [_trio(example.picture, example.produced, example.truth) for example in data.lines],
    }


def _trio(*images: Tensor) -> list[_Picture]:
    # Two examples stand side by side on a wide screen.
    return _row(images, 6)


def _row(images: Iterable[Tensor], columns: int) -> list[_Picture]:
    return [_picture(image, columns) for image in images]


def _picture(image: Tensor, columns: int) -> _Picture:
    """Embed one image, sized for a row of so many columns."""
    pixels = _to_bytes(image)
    height, width = pixels.shape[:2]
    scale = 2 if 2 * width * columns <= WIDEST_ROW else 1
    return _Picture(_data_uri(pixels), scale * width, scale * height)


def _to_bytes(image: Tensor) -> NDArray[np.uint8]:
    """float [1 or 3, h, w] in [-1, 1] → uint8 [h, w, 3]; values outside are clamped."""
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise ValueError(f"a picture is {image.dtype} {list(image.shape)}; give float [1 or 3, h, w] in [-1, 1]")
    if not torch.isfinite(image).all():
        raise ValueError("a picture holds NaN or infinity")
    values = ((image.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(values.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """PNG or JPEG, whichever is smaller: flat drawings compress better as PNG, shaded pictures as JPEG."""
    image, encoded = Image.fromarray(pixels), {}
    options: dict[str, dict[str, Any]] = {
        "png": {"optimize": True},
        # 4:4:4: halved chroma would bleed across the thin dark lines.
        "jpeg": {"quality": JPEG_QUALITY, "subsampling": 0, "optimize": True},
    }
    for kind, option in options.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **option)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"


def _grid(name: str) -> dict[str, str]:
    """Address and caption of a grid file, given relative to the page."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"grid file {name!r}: give a path inside the page's folder, relative to it")
    match = _GRID_NAME.fullmatch(path.name)
    caption = path.name
    if match:
        source, target = match["way"].upper().split("2")
        caption = f"{source} → {target}, {'training' if match['set'] == 'train' else 'test'} images"
    return {"src": quote(str(path)), "caption": caption}


# Text


def _by_direction(rows: Sequence[MetricRow]) -> list[tuple[str, list[MetricRow]]]:
    """Rows of one direction together, in the order in which the directions first appear."""
    groups: dict[str, list[MetricRow]] = {}
    for row in rows:
        groups.setdefault(row.direction, []).append(row)
    return list(groups.items())


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


def _render(template: str, **values: Any) -> str:
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
