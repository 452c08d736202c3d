"""What KID and diversity could a colouring reach? Reference points for the model's card, none of them a model.

    python docs/pretrained/reference_points.py datasets/openmoji-64 [--json FILE]

Held-out line drawings with every enclosed region filled evenly, in colours of the training pictures; the same with
soft edges; the true pictures with their faults put in one at a time.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torch.nn import functional as F

from munit_fast.data import decode_image, list_images, to_model_range
from munit_fast.evaluate.metrics import FeatureExtractor, diversity, kid
from munit_fast.io.atomic import atomic_write_bytes

STYLES = 6
MANY = 200  # colours, to draw one for each region from
PAPER, INK = 250, 5  # a colour whose levels are all above is the paper's, all below the ink's
RARE = 2000  # pixels of all training pictures: anti-aliasing makes many colours of few pixels


def load(folder: Path) -> Tensor:
    """The pictures of a folder: [N, 3, H, W] in [0, 1]."""
    return torch.stack([to_model_range(decode_image(path, 3)) for path in list_images(folder)]) / 2 + 0.5


def palette(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The even colours [K, 3] of pictures and how many pixels each has [K]."""
    levels = (pictures * 255).round().permute(0, 2, 3, 1).reshape(-1, 3)
    colours, counts = levels.unique(dim=0, return_counts=True)
    kept = (counts > RARE) & (colours.amin(1) <= PAPER) & (colours.amax(1) >= INK)
    return colours[kept] / 255, counts[kept].float()


def regions(lines: Tensor) -> Tensor:
    """Which enclosed region of a drawing [3, H, W] each pixel is in: int64 [H, W]; 0 is ink and what is outside."""
    free = lines.mean(0) > 0.6
    h, w = free.shape
    label = torch.arange(1, h * w + 1).view(h, w) * free
    while True:  # every pixel takes the greatest label among its four neighbours
        p = F.pad(label, (1, 1, 1, 1))
        spread = torch.stack([label, p[2:, 1:-1], p[:-2, 1:-1], p[1:-1, 2:], p[1:-1, :-2]]).amax(0) * free
        if spread.equal(label):
            break
        label = spread
    outside = torch.cat([label[0], label[-1], label[:, 0], label[:, -1]]).unique()
    return label * ~torch.isin(label, outside)


def fill(lines: Tensor, colours: Tensor, per_region: bool, generator: torch.Generator, blur: float = 0) -> Tensor:
    """A drawing whose regions are filled with colours drawn from [K, 3]: one for all of them, or one for each."""
    label, paint = regions(lines), torch.ones_like(lines)
    index = int(torch.randint(len(colours), (), generator=generator))
    for region in label.unique()[1:]:
        if per_region:
            index = int(torch.randint(len(colours), (), generator=generator))
        mine = (label == region).float()[None, None]
        reach = F.max_pool2d(mine, 5, 1, 2)[0, 0].bool()  # under the line's soft edge
        at = reach & ((label == region) | (label == 0) & (lines.mean(0) <= 0.6))
        paint[:, at] = colours[index][:, None]
    return (soften(paint[None], blur)[0] if blur else paint) * lines


def soften(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, 3, H, W] by `sigma` pixels."""
    at = torch.arange(-8, 9.0)
    weight = torch.exp(-((at / sigma) ** 2) / 2)
    weight = (weight / weight.sum()).repeat(3, 1)
    padded = F.pad(pictures, (8, 8, 8, 8), mode="replicate")
    return F.conv2d(F.conv2d(padded, weight[:, None, :, None], groups=3), weight[:, None, None, :], groups=3)


def measure(folder: Path) -> dict[str, dict[str, float | None]]:
    """KID × 10³ to trainB and diversity, None where there is one style, of each reference point.

    Raises ImageError where pictures are missing.
    """
    extract, generator = FeatureExtractor(), torch.Generator().manual_seed(0)
    train, lines, true = (load(folder / name) for name in ("trainB", "testA", "testB"))
    colours, counts = palette(train)

    def pooled(pictures: Tensor) -> Tensor:
        return torch.cat([extract(part * 2 - 1).pooled for part in pictures.split(64)])

    if not len(colours):
        raise SystemExit(f"{folder / 'trainB'}: no even colour but black and white covers more than {RARE} pixels")
    real = pooled(train)

    def pick(count: int) -> Tensor:
        return colours[torch.multinomial(counts, count, replacement=True, generator=generator)]

    def points(styles: Tensor, spread: bool = True) -> dict[str, float | None]:
        """Of [styles, N, 3, H, W]: KID as the evaluation has it, each style by itself; diversity over the styles."""
        apart = [diversity(extract(x * 2 - 1).embedding[None]).item() for x in styles.transpose(0, 1)] if spread else []
        return {
            "kid_e3": round(1e3 * mean(kid(pooled(x), real) for x in styles), 1),
            "diversity": round(mean(apart), 3) if spread else None,
        }

    def filled(few: int, blur: float = 0) -> Tensor:
        """Every drawing STYLES times, each in so many colours of its own."""
        styles = ([fill(x, pick(few), few > 1, generator, blur) for x in lines] for _ in range(STYLES))
        return torch.stack([torch.stack(style) for style in styles])

    return {
        "the true pictures": points(true[None], spread=False),
        "the true pictures, blurred by one pixel": points(soften(true, 1)[None], spread=False),
        "the true pictures, only their colours blurred by one pixel": points(
            (soften(true, 1) * lines)[None], spread=False
        ),
        "the true pictures, red, green and blue permuted in the five other ways": points(
            torch.stack([true[:, list(order)] for order in list(permutations(range(3)))[1:]])
        ),
        "every enclosed region filled evenly with one colour a picture": points(filled(1)),
        "two colours a picture": points(filled(2)),
        "a colour for each region": points(filled(MANY)),
        "two colours a picture, their edges blurred by two pixels": points(filled(2, blur=2)),
        "the line drawings, not coloured": points(lines[None], spread=False),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of `munit-fast prepare openmoji`")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    found = measure(options.folder)
    for name, values in found.items():
        print(f"{name:62} KID {values['kid_e3']:6} diversity {values['diversity']}")
    if options.json:
        atomic_write_bytes(options.json, (json.dumps(found, indent=1) + "\n").encode())
