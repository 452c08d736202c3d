"""Make images that look a little like stained tissue on a slide; they are drawn by this code and are no one's data.

    python docs/slides/synthetic.py FOLDER

writes 200 pictures of 128×128 in each of two stains, trainA (pink and violet) and trainB (blue and brown), 8 more in
testA and testB each, and slide.tif, a pyramid of 6144×4096 in the first stain. All is a function of the seed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image

Floats = npt.NDArray[np.float32]
# Glass, the tissue's ground and its nuclei, as RGB in 0..1.
STAINS = {
    "a": ((0.96, 0.95, 0.97), (0.90, 0.62, 0.76), (0.36, 0.20, 0.52)),
    "b": ((0.97, 0.97, 0.96), (0.74, 0.80, 0.88), (0.45, 0.27, 0.14)),
}
CELL = 14  # pixels from nucleus to nucleus


def smooth(seed: int, height: int, width: int, period: int) -> Floats:
    """Noise [height, width] in 0..1 that changes over about `period` pixels."""
    rng = np.random.default_rng(seed)
    grid = rng.random((height // period + 4, width // period + 4), dtype=np.float32)
    large = F.interpolate(torch.from_numpy(grid)[None, None], scale_factor=period, mode="bicubic")[0, 0]
    return large[period : period + height, period : period + width].clamp(0, 1).numpy()


def nuclei(seed: int, density: Floats) -> Floats:
    """How much nucleus every pixel is: one ellipse in most cells of a grid, where the density [H, W] is high."""
    height, width = density.shape
    rows, columns = height // CELL + 3, width // CELL + 3
    rng = np.random.default_rng(seed)
    y, x = (rng.uniform(0.15, 0.85, (rows, columns)).astype(np.float32) for _ in range(2))
    radius = rng.uniform(0.22, 0.48, (rows, columns)).astype(np.float32) * CELL
    angle, flat = rng.uniform(0, np.pi, (rows, columns)), rng.uniform(0.55, 1, (rows, columns))
    chance = rng.random((rows, columns), dtype=np.float32)
    result = np.zeros((height, width), np.float32)
    down, across = np.arange(height)[:, None], np.arange(width)[None]
    for i in (0, 1, 2):
        for j in (0, 1, 2):
            at = (down // CELL + i, across // CELL + j)
            dy, dx = down - (at[0] - 1 + y[at]) * CELL, across - (at[1] - 1 + x[at]) * CELL
            c, s = np.cos(angle[at]), np.sin(angle[at])
            distance = np.hypot(c * dx + s * dy, (c * dy - s * dx) / flat[at]) / radius[at]
            inside = np.clip((1.15 - distance) / 0.3, 0, 1) * (chance[at] < density)
            result = np.maximum(result, inside.astype(np.float32))
    return result


def tissue(seed: int, height: int, width: int, stain: str, *, glass: float = 0.4) -> npt.NDArray[Any]:
    """A picture [height, width, 3] uint8.

    Args:
        seed: Of everything.
        height: Rows.
        width: Columns.
        stain: "a" or "b".
        glass: About this share of a large picture is bare glass.
    """
    shape = (height, width)
    outline = 0.7 * smooth(seed, *shape, 512) + 0.3 * smooth(seed + 1, *shape, 96)
    covered = np.clip((outline - glass * 0.9) / 0.04, 0, 1)[:, :, None]
    density = 0.15 + 0.8 * smooth(seed + 2, *shape, 160) ** 2
    fibres = 0.5 * smooth(seed + 3, *shape, 24) + 0.5 * smooth(seed + 4, *shape, 5)
    depth = 0.55 + 0.9 * smooth(seed + 5, *shape, 700)  # of the stain: uneven over a slide
    white, ground, nucleus = (np.array(colour, np.float32) for colour in STAINS[stain])
    cells = nuclei(seed + 6, density)[:, :, None]
    absorbed = -np.log(ground) * (0.5 + fibres[:, :, None]) * (1 - cells) - np.log(nucleus) * cells
    picture = white * np.exp(-absorbed * covered * depth[:, :, None])
    picture += np.random.default_rng(seed + 7).normal(0, 0.01, (*shape, 1)).astype(np.float32)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def write_slide(path: Path, picture: npt.NDArray[Any]) -> None:
    """Write a pyramid of three levels, in tiles of 256, with 0.5 µm a pixel."""

    def halved(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        return F.avg_pool2d(planes, 2)[0].permute(1, 2, 0).round().byte().numpy()

    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(picture, subifds=2, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
        for _ in range(2):
            picture = halved(picture)
            writer.write(picture, subfiletype=1, **options)


def pictures(stain: str, count: int, first: int) -> Iterator[npt.NDArray[Any]]:
    """Pictures of 128×128, of tissue and of some glass; 20 are cut out of one."""
    for i in range(count):
        if i % 20 == 0:
            whole = tissue(first + i, 640, 640, stain)
            places = np.random.default_rng(first + i).permutation(25)
        row, column = divmod(int(places[i % 20]), 5)
        yield whole[128 * row : 128 * row + 128, 128 * column : 128 * column + 128]


def main(folder: Path) -> None:
    """Write everything."""
    for stain in "ab":
        for split, count, first in (("train", 200, 0), ("test", 8, 10_000)):
            target = folder / f"{split}{stain.upper()}"
            target.mkdir(parents=True, exist_ok=True)
            for i, picture in enumerate(pictures(stain, count, first + (stain == "b") * 1000)):
                Image.fromarray(picture).save(target / f"{i:03d}.png")
    write_slide(folder / "slide.tif", tissue(2024, 6144, 4096, "a"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
