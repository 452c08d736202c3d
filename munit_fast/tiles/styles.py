"""Style codes of a whole folder, and of an image that is larger than memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from munit_fast.data import ImageSet, open_source, to_model_range
from munit_fast.data.configured import pixel_format
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.tiles import networks
from munit_fast.tiles.padded import PaddedImage
from munit_fast.tiles.plan import Planes, tiles_of
from munit_fast.tiles.slides import open_slide
from munit_fast.tiles.statistics import measure, merge


@torch.no_grad()
def mean_style(model: MUNIT | UNIT, folder: Path, domain: Literal["a", "b"], *, native_size: bool = False) -> Tensor:
    """The average style of the images of a folder: one style for a whole set, as stain transfer uses it.

    Args:
        model: The model, in evaluation mode; its device is used.
        folder: Of images, searched with its subfolders, or an archive of them; or one image.
        domain: "a" or "b": of which they are.
        native_size: Keep each image's own size instead of the configuration's new_size.

    Returns:
        [1, style_dim], the mean of the images' codes, summed in float64; in the dtype and on the device of the model.

    Raises:
        ValueError: The model is UNIT, or the domain unknown.
        ImageError: There is no image, or one cannot be read.
    """
    style_model = _with_styles(model, domain)
    codes = []
    images = ImageSet(
        open_source(folder, pages=model.config.pages, axis=model.config.slice_axis),
        pixel_format(model.config, domain),
        None if native_size else model.config.short_side(domain),
        cache=False,
    )
    for i in range(len(images)):
        image = to_model_range(images.image(i))[None].to(next(model.parameters()))
        codes.append(style_model.encode_style(image, domain).double())
    return torch.cat(codes).mean(0, keepdim=True).to(next(model.parameters()))


@torch.no_grad()
def slide_style(
    model: MUNIT | UNIT,
    path: Path,
    domain: Literal["a", "b"],
    *,
    tile: int = 512,
    level: int = 0,
) -> Tensor:
    """The style of an image of any size, with memory that is bounded by the tile.

    The style encoder has no norms and ends in a mean over all pixels: summed over tiles, the code is that of the whole
    image.

    Args:
        model: The model, in evaluation mode; its device is used.
        path: A TIFF file, or any image that fits into memory.
        domain: "a" or "b": of which it is.
        tile: Side of a tile in pixels.
        level: Of a pyramid; 0 is the largest.

    Returns:
        [1, style_dim] in the dtype and on the device of the model.

    Raises:
        ValueError: The model is UNIT, or the domain unknown.
        ImageError: The image cannot be read.
    """
    style_model: Any = _with_styles(model, domain)
    encoder = getattr(style_model, f"gen_{domain}").enc_style
    channels = getattr(model.config, f"input_dim_{domain}")
    with open_slide(path, level, pixel_format(model.config, domain)) as slide:
        image = PaddedImage(slide, model.config, next(model.parameters()), multiple=1)
        last = networks.style_nodes(
            encoder, networks.Image(channels, Planes.whole(image.height, image.width), image.read)
        )
        reader = networks.Reader()
        boxes = tiles_of(1, last.height, last.width, max(1, tile >> last.level))
        means = np.stack([measure(reader.tile(last, box)) for box in boxes])
    counts = np.array([box.height * box.width for box in boxes])
    mean = torch.from_numpy(merge(counts, means[:, 0], means[:, 1]).mean).to(next(model.parameters()))
    return encoder.model[-1](mean[None, :, None, None]).flatten(1)


def _with_styles(model: MUNIT | UNIT, domain: str) -> MUNIT:
    if domain not in ("a", "b"):
        raise ValueError(f"domain must be 'a' or 'b'; got {domain!r}")
    if not isinstance(model, MUNIT):
        raise ValueError("styles need MUNIT: UNIT has no style codes")
    return model
