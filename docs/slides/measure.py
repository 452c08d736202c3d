"""Measure how far from exact the ways to get the statistics of a slide are, and draw docs/slides/seams.webp.

    python docs/slides/synthetic.py FOLDER
    munit-fast train --config docs/slides/stains.yaml --output_path FOLDER   # with data_root: FOLDER
    python docs/slides/measure.py FOLDER/slide.tif docs/slides/stains.yaml CHECKPOINT

prints a table: the mean and the largest difference, in steps of 8 bits, over every ninth tile of 3072×2048 pixels.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from munit_fast import MUNIT, load_config
from munit_fast.tiles import mean_style, networks
from munit_fast.tiles.passes import schedules, statistics
from munit_fast.tiles.plan import Box, Planes, tiles_of, windows_of
from munit_fast.tiles.statistics import Moments
from munit_fast.tiles.storage import open_job

TILE = 256
STRIP = Box(0, 1024, 1280, 512, 1536)  # of the picture: four tiles beside each other


class Measured:
    """The translation of an image [1, 3, H, W] with one style, as a graph."""

    def __init__(self, model: MUNIT, style: Tensor) -> None:
        self.model, self.style = model, style

    def graph(self, image: Tensor, planes: Planes, moments: dict[str, Moments]) -> networks.Node:
        """The translated image."""
        source = networks.Image(3, planes, lambda box: image[:, :, box.top : box.bottom, box.left : box.right])
        code = networks.encoder_nodes(self.model.gen_a.enc_content, source, moments)
        adain = self.model.gen_b.adain_params(self.style[:, :, None, None])
        return networks.decoder_nodes(self.model.gen_b.dec, code, moments, adain)

    def moments(self, image: Tensor, planes: Planes) -> dict[str, Moments]:
        """The statistics of an image, or of windows of it."""
        moments: dict[str, Moments] = {}
        last = self.graph(image, planes, moments)
        schedule = schedules(last, len(planes.offsets), 4, with_image=False)[0]
        with tempfile.TemporaryDirectory() as folder, open_job(Path(folder, "x"), {}) as job:
            device = torch.device("cpu")
            statistics(schedule, planes, TILE, moments, job, np.dtype(np.float32), device, lambda *_: None)
        return moments

    def tiles(self, image: Tensor, moments: dict[str, Moments], boxes: list[Box]) -> list[Tensor]:
        """Translated tiles."""
        last = self.graph(image, Planes.whole(*image.shape[2:]), moments)
        return [networks.Reader().tile(last, box)[0] for box in boxes]


@torch.no_grad()
def main(slide: Path, config: Path, checkpoint: Path) -> None:
    """Measure, print, draw."""
    model = MUNIT(load_config(config)).load(checkpoint).eval()
    pixels = tifffile.imread(slide, level=0)[:3072, :2048]
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
    height, width = image.shape[2:]
    measured = Measured(model, mean_style(model, slide.parent / "testB", "b"))
    boxes = tiles_of(1, height, width, TILE)[::9]
    strip = [Box(0, STRIP.top, STRIP.bottom, x, x + TILE) for x in range(STRIP.left, STRIP.right, TILE)]
    every = [*boxes, *strip]
    exact = measured.tiles(image, measured.moments(image, Planes.whole(height, width)), every)

    def show(name: str, share: float, found: list[Tensor]) -> None:
        difference = torch.stack([(a - b).abs() for a, b in zip(exact[: len(boxes)], found, strict=False)]) * 127.5
        print(f"| {name} | {share:.0%} | {difference.mean():.2f} | {difference.max():.1f} |", flush=True)

    alone = [
        model.translate(image[:, :, b.top : b.bottom, b.left : b.right], style=measured.style)[0, 0] for b in every
    ]
    show("each tile by itself", 1, alone)
    sampled: list[Tensor] = []
    for count in (4, 8, 16, 32, 64):
        planes = windows_of(height, width, TILE, count, 4)
        share = len(planes.offsets) * TILE**2 / (height * width)
        found = measured.tiles(image, measured.moments(image, planes), every)
        show(f"{len(planes.offsets)} windows", share, found)
        if count == 16:
            sampled = found
    for factor in (2, 4):
        small = F.avg_pool2d(image, factor)
        found = measured.tiles(image, measured.moments(small, Planes.whole(*small.shape[2:])), every)
        show(f"the image reduced {factor} times", 1 / factor**2, found)
    rows = [image[0, :, STRIP.top : STRIP.bottom, STRIP.left : STRIP.right]]
    rows += [torch.cat(found[len(boxes) :], 2) for found in (alone, sampled, exact)]
    picture = torch.cat(rows, 1).add(1).mul(127.5).clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(Path(__file__).parent / "seams.webp", quality=88)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
