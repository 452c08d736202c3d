"""How line drawings were coloured: distinct hues within one drawing, and areas that were left white.

An area is a connected part of the paper that lines enclose. These are this project's own measures; the colourings that
the designers made are their floor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from munit_fast.evaluate.metrics.base import Batch, Direction, Pictures
from munit_fast.evaluate.metrics.images import to_unit, with_channels
from munit_fast.evaluate.metrics.table import EvaluationRow
from munit_fast.utils.optional import require

INK = 0.5  # luminance in [0, 1] below which a pixel is a line
LEAST_AREA = 0.005  # of the picture; smaller areas are gaps between lines
LARGE_AREA = 0.05
SEVERAL = 3  # areas from which on a drawing should have more than one hue
LEAST_CHROMA = 0.15  # max - min of a mean colour in [0, 1]; less is grey, and has no hue
DISTINCT = 30.0  # degrees between two hues
FILLED = 0.1  # a pixel is coloured where a channel lies this far below white


@dataclass(frozen=True)
class Colouring:
    """What `measure_colouring` finds in one picture.

    Attributes:
        areas: Enclosed areas of the drawing, of at least 0.5 % of the picture.
        distinct_hues: Whether two areas have mean colours whose hues are at least 30° apart.
        fill: Share of coloured pixels in each area above 5 % of the picture.
    """

    areas: int
    distinct_hues: bool
    fill: tuple[float, ...]


def enclosed_areas(drawing: Tensor) -> list[np.ndarray]:
    """The areas that the lines of a drawing enclose, the largest first.

    Args:
        drawing: float [1 or 3, H, W] in [-1, 1], dark lines on white.

    Returns:
        Boolean masks [H, W]: parts of the paper, joined through the sides of pixels, that touch no border of the
        picture and have at least 0.5 % of its pixels.

    Raises:
        ImportError: scipy is missing.
        ValueError: Another shape, or values out of range.
    """
    label = require("scipy.ndimage", "metrics").label
    paper = with_channels(to_unit(drawing[None], "drawing"), 1)[0, 0].numpy() >= INK
    labels, count = label(paper)
    outside = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist())
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [i for i in range(1, count + 1) if i not in outside and sizes[i] >= LEAST_AREA * paper.size]
    return [labels == i for i in sorted(kept, key=lambda i: (-sizes[i], i))]


def measure_colouring(colouring: Tensor, areas: list[np.ndarray]) -> Colouring:
    """Look at a coloured drawing, area by area.

    Args:
        colouring: float [3, H, W] in [-1, 1].
        areas: As `enclosed_areas` finds them in the drawing.

    Raises:
        ValueError: Another shape, or values out of range.
    """
    picture = to_unit(colouring[None], "colouring")[0].numpy()
    colours = [picture[:, area].mean(1) for area in areas]
    hues = np.sort([_hue(colour) for colour in colours if np.ptp(colour) >= LEAST_CHROMA])
    apart = np.abs(hues[:, None] - hues[None]) if len(hues) else np.zeros((0, 0))
    apart = np.minimum(apart, 360 - apart)  # hues lie on a circle
    coloured = (1 - picture).max(0) > FILLED
    large = [area for area in areas if area.sum() > LARGE_AREA * area.size]
    fill = tuple(float(coloured[area].mean()) for area in large)
    return Colouring(len(areas), bool((apart >= DISTINCT).any()), fill)


def _hue(colour: np.ndarray) -> float:
    """The hue of [R, G, B], in degrees."""
    red, green, blue = (float(value) for value in colour)
    return float(np.degrees(np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue)) % 360)


class ColouringMetric:
    """The share of drawings with distinct hues, and how far large areas are filled."""

    def __init__(self) -> None:
        self.hues: defaultdict[str, list[float]] = defaultdict(list)
        self.fill: defaultdict[str, list[float]] = defaultdict(list)

    def update(self, batch: Batch) -> None:
        """Add a batch; without `source`, which has the lines, it adds nothing."""
        if batch.source is None:
            return
        for i, drawing in enumerate(batch.source):
            areas = enclosed_areas(drawing.float())
            self._add("", batch.fake[i], areas)
            if batch.truth is not None:
                self._add("truth", batch.truth[i : i + 1], areas)

    def _add(self, which: str, pictures: Tensor, areas: list[np.ndarray]) -> None:
        found = [measure_colouring(with_channels(picture[None].float(), 3)[0], areas) for picture in pictures]
        if len(areas) >= SEVERAL:
            self.hues[which].append(float(np.mean([one.distinct_hues for one in found])))
        if found[0].fill:
            self.fill[which].append(float(np.mean([one.fill for one in found])))

    def compute(self, direction: Direction, real: Pictures) -> Iterator[EvaluationRow]:
        """The rows of all batches so far; none where no drawing has such areas."""
        del real
        yield from self._row(
            direction,
            "distinct_hues",
            "Distinct hues",
            self.hues,
            f"share of the colourings of {len(self.hues[''])} drawings with three or more enclosed areas in which two "
            "areas have hues at least 30° apart",
        )
        yield from self._row(
            direction,
            "fill",
            "Fill of large areas",
            self.fill,
            f"coloured share of the enclosed areas above 5 % of the picture, in {len(self.fill[''])} drawings",
        )

    def _row(
        self, direction: Direction, key: str, name: str, values: defaultdict[str, list[float]], measured: str
    ) -> Iterator[EvaluationRow]:
        if not values[""]:
            return
        found = torch.tensor(values[""], dtype=torch.float64)
        yield EvaluationRow(
            key=f"{direction.key}.{key}",
            name=name,
            direction=direction.name,
            value=found.mean().item(),
            better="higher",
            measured=measured,
            floor=float(np.mean(values["truth"])) if values["truth"] else None,
            ceiling=0.0,  # an untouched drawing has no colours
            stderr=found.std().item() / len(found) ** 0.5 if len(found) > 1 else None,
        )
