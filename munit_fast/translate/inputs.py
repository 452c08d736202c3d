"""The images to translate: where they are, and each of them as the networks take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from munit_fast.config import Config
from munit_fast.data.configured import pixel_format, with_bands
from munit_fast.data.images import resize_short_side, to_model_range
from munit_fast.data.picture import Array, ImageError
from munit_fast.data.readers import naming
from munit_fast.data.sources import FileSource, ImageSource, open_source


class Image(NamedTuple):
    """An image that was read."""

    place: int  # in its source
    pixels: Tensor  # [C, H, W] float32 in -1..1
    dtype: np.dtype[np.generic]  # of the file's values
    header: Any = None  # that its reader left, of a volume


class Reader:
    """Reads the images of a source for a domain.

    Args:
        source: The images.
        config: Names the channels, the range and the size of the domain.
        domain: "a" or "b".
        native_size: Keep each image's own size.
    """

    def __init__(self, source: ImageSource, config: Config, domain: str, native_size: bool) -> None:
        self.source, self.format = source, pixel_format(config, domain)
        self._short_side = None if native_size else config.short_side(domain)

    def __call__(self, place: int) -> Image:
        """Image number `place`. Raises ImageError with its name."""
        picture = self.source.read(place)
        with naming(self.source.where(place)):
            array: Array = self.format.apply(picture)
            if self._short_side is not None:
                array = resize_short_side(array, self._short_side)
        return Image(place, to_model_range(array), picture.pixels.dtype, picture.header)


def open_inputs(given: Path | ImageSource, output_folder: Path | None, config: Config, domain: str = "") -> ImageSource:
    """The images that a path names.

    Args:
        given: An image, a folder, an archive, or what else `munit_fast.data.open_source` opens; or a source of images.
        output_folder: Images inside it are left out where it lies inside the folder: an earlier run made them.
        config: Which images of files with several, the axis along which volumes are cut, and the bands of a domain.
        domain: "a" or "b"; "": files are not joined, whatever bands the configuration names.

    Raises:
        ValueError: The output folder is the folder of the images: a second run would take the results for images.
        ImageError: There are none.
    """
    if isinstance(given, ImageSource):
        return given
    if output_folder is not None and given.is_dir() and given.resolve() == output_folder.resolve():
        raise ValueError(
            f"--output_folder {output_folder} is the folder of the inputs; choose another, such as "
            f"{output_folder / 'translated'}"
        )
    found = open_source(given, pages=config.pages, axis=config.slice_axis)
    if isinstance(found, FileSource) and not given.is_dir():
        return found  # one file is no scene of several
    if output_folder is not None and isinstance(found, FileSource):
        kept = [i for i in range(len(found)) if not _is_inside(found.path(i), output_folder)]
        if not kept:
            raise ImageError(f"{given}: every image there is inside --output_folder; choose another")
        found = found.chosen(kept) if len(kept) < len(found) else found
    return with_bands(found, config, domain) if domain else found


def files_of(source: ImageSource) -> set[Path]:
    """The files of this machine that a source reads, links followed."""
    if isinstance(source, FileSource):
        return {source.path(i).resolve() for i in range(len(source))}
    return {Path(source.label).resolve()}


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether an image of `source` lies in an output folder inside it: made by an earlier run, then."""
    return folder.resolve() in path.resolve().parents
