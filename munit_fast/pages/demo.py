"""The self-contained page of a demonstration: pictures, metrics and losses in one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.pages import charts
from munit_fast.pages.charts import Curve
from munit_fast.pages.render import render

MAX_DEMO_BYTES = 6_000_000
JPEG_QUALITY = 90
# A row of pictures wider than this is shown at 1× instead of 2×, so that it fits the page without scrolling.
WIDEST_ROW = 1100


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
    def name(self) -> str:
        """What is measured."""

    @property
    def direction(self) -> str:
        """The direction of the translation, "colour → lines" for example."""

    @property
    def value(self) -> float:
        """The measurement."""

    @property
    def better(self) -> str:
        """Whether "lower" or "higher" is better."""

    @property
    def measured(self) -> str:
        """How it was measured, for readers."""

    @property
    def floor(self) -> float | None:
        """The value that real data reach; None where it has no meaning."""

    @property
    def ceiling(self) -> float | None:
        """The value of the input left untranslated; None where it has no meaning."""

    @property
    def stderr(self) -> float | None:
        """The standard error of the value; None where it is not known."""

    @property
    def baselines(self) -> Mapping[str, float]:
        """Values of simple alternatives, by name."""

    def reading(self) -> str:
        """One sentence about where the value stands."""


@dataclass(frozen=True)
class Showcase:
    """Translations by one model of pictures that it was not trained on. Empty parts are left out of the page."""

    drawings: Sequence[DrawingRow] = ()
    guided: Sequence[GuidedExample] = ()
    strips: Sequence[StyleStrip] = ()
    lines: Sequence[LinesExample] = ()
    title: str = ""  # the model; needed where the page shows two
    note: str = ""  # its origin


@dataclass(frozen=True)
class DemoReport:
    """Everything the demonstration page shows. Empty parts are left out of the page.

    Attributes:
        title: Heading of the page.
        summary: One sentence about what the reader sees.
        showcases: One for each model.
        attribution: Licence and source of the pictures.
        made: How the last showcase's model was trained.
        losses: Its curves by logged name.
        metrics: Its evaluation.
    """

    title: str
    summary: str
    showcases: Sequence[Showcase]
    attribution: str
    made: HowMade | None = None
    losses: Mapping[str, Curve] = field(default_factory=dict)
    metrics: Sequence[MetricRow] = ()


def write_demo_page(path: Path, *, data: DemoReport) -> Path:
    """Write the demonstration as one HTML file with all pictures inside; the file is replaced as a whole.

    Pictures are embedded as PNG or JPEG of quality 90, whichever is smaller.

    Args:
        path: Of the page.
        data: What it shows; images are float [1 or 3, h, w] in [-1, 1], on any device.

    Returns:
        `path`.

    Raises:
        ValueError: Images of another shape or not finite, rows with different numbers of styles, or a page of more
            than 6 MB.
        FileWriteError: The page cannot be written.
    """
    page = render(
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


def _by_direction(rows: Sequence[MetricRow]) -> list[tuple[str, list[MetricRow]]]:
    """Rows of one direction together, in the order in which the directions first appear."""
    groups: dict[str, list[MetricRow]] = {}
    for row in rows:
        groups.setdefault(row.direction, []).append(row)
    return list(groups.items())
