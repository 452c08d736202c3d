"""Names of the files that a translation writes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from munit_fast.translate.options import TranslateOptions
from munit_fast.utils.text import safe_name

_PAGE = re.compile(r"(.+)#(\d+)")  # as `munit_fast.data.sources.Entry.name` has it


def output_names(names: Sequence[str], alone: bool = False) -> list[str]:
    """A name without extension for each image, unique: its path in the source, with "_page2" for x.tif#2.

    What no file name should have is replaced: pictures from elsewhere may be called anything.

    Args:
        names: Of the images, relative, with "/".
        alone: One image was asked for by its file; its name is "".
    """
    if alone and len(names) == 1:
        return [""]
    paths, pages = zip(*map(_split, names))
    plain = [str(Path(*map(safe_name, path.with_suffix("").parts))) + page for path, page in zip(paths, pages)]
    stems = Counter(plain)
    taken = {stem for stem, count in stems.items() if count == 1}
    found = []
    for path, name in zip(paths, plain):
        if stems[name] > 1:  # a.png beside a.jpg
            name += f"_{path.suffix[1:]}"
            while name in taken:
                name += "_"
            taken.add(name)
        found.append(name)
    return found


def file_name(name: str, style: int | None, extension: str) -> str:
    """The file of an image's translation number `style`, or of the copy of its input (None)."""
    if style is None:
        return f"{name}_input.{extension}" if name else f"input.{extension}"
    return f"{name}_{style:03d}.{extension}" if name else f"output{style:03d}.{extension}"


def file_names(names: Iterable[str], styles: Sequence[int | None], extension: str) -> Iterator[str]:
    """The files of all images: each of the names in each of the styles, as `file_name` has them."""
    return (file_name(name, style, extension) for name in names for style in styles)


def image_of(file: str) -> str:
    """The image, by its output name, that a file of `file_name` was made of."""
    return re.sub(r"(_\d{3,}|_input)\.[^/]+$", "", PurePosixPath(file).as_posix())


def protect_inputs(
    inputs: set[Path], names: Sequence[str], folder: Path, options: TranslateOptions, count: int
) -> None:
    """Raise ValueError if a file to write is one of the files to read.

    Args:
        inputs: The files to read, links followed.
        names: Of `output_names`.
        folder: Where the translations go.
        options: How to translate.
        count: Translations of each image.
    """
    resolved, styles = folder.resolve(), [*range(count), None]

    if options.grid is not None:
        grid = options.grid.resolve()
        if grid in inputs or any(grid == resolved / name for name in file_names(names, styles, options.extension)):
            raise ValueError(f"--grid {options.grid} is one of the inputs or outputs; choose another name")
    if not any(resolved in path.parents for path in inputs):
        return
    for name in file_names(names, styles, options.extension):
        if (resolved / name).resolve() in inputs:
            raise ValueError(
                f"--output_folder {resolved}: {name} there is one of the inputs and would be overwritten; choose "
                "another folder"
            )


def _split(name: str) -> tuple[PurePosixPath, str]:
    name = re.sub(r"\.nii\.gz(?=#|$)", ".nii", name, flags=re.IGNORECASE)  # one ending, in two parts
    page = _PAGE.fullmatch(name)
    return (PurePosixPath(page[1]), f"_page{page[2]}") if page else (PurePosixPath(name), "")
