"""Which files of a folder are translations of one input, and which pictures belong to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from munit_fast.data import ImageError, ImageSet, list_images
from munit_fast.evaluate.pictures import stem_of


def group_translations(folder: Path) -> tuple[dict[str, list[Path]], dict[str, Path]]:
    """The translations of each NAME in the order of their numbers, and the copies of the inputs beside them.

    Raises:
        ImageError: There are none.
    """
    found: dict[str, Path] = {}
    inputs: dict[str, Path] = {}
    numbers: dict[str, list[str]] = {}
    for path in list_images(folder):
        stem = stem_of(path, folder)
        if stem.endswith("_input"):
            inputs[stem.removesuffix("_input")] = path
            continue
        found[stem] = path
        if (match := re.fullmatch(r"(.+)_(\d+)", stem)) is not None:
            numbers.setdefault(match[1], []).append(match[2])
    if not found:
        raise ImageError(f"{folder}: holds copies of inputs but no translations")
    # A number may also belong to the name of an input, as in cat_0001.png.
    styles = {
        name
        for name, all_of_it in numbers.items()
        if name not in found and sorted(all_of_it) == [f"{i:03d}" for i in range(min(len(all_of_it), 1000))]
    }
    groups: dict[str, list[Path]] = {}
    for stem, path in found.items():
        name = stem.rpartition("_")[0]
        groups.setdefault(name if name in styles else stem, []).append(path)
    return {name: sorted(paths) for name, paths in groups.items()}, inputs


def translations_per_input(groups: dict[str, list[Path]], folder: Path) -> int:
    """How many translations each input has. Raises ImageError where the numbers differ, or for a single input."""
    (first, paths), *rest = groups.items()
    for name, others in rest:
        if len(others) != len(paths):
            raise ImageError(
                f"{folder}: {name} has {len(others)} translations and {first} has {len(paths)}; give the same number "
                "for every input"
            )
    if len(groups) < 2:
        raise ImageError(f"{folder}: translations of one input only; at least 2 are needed")
    return len(paths)


def partners_of(folder: Path, names: Sequence[str], option: str) -> list[Path]:
    """The picture of each name in a folder.

    Args:
        folder: where the pictures lie.
        names: relative paths without extension, as `stem_of` gives them.
        option: what gave the folder, for the message.

    Returns:
        Their paths, in the order of the names.

    Raises:
        ImageError: a picture is missing, or the folder cannot be read.
    """
    found = {stem_of(path, folder): path for path in list_images(folder)}
    missing = [name for name in names if name not in found]
    if missing:
        raise ImageError(
            f"{option} {folder}: no picture named {missing[0]} ({len(missing)} of {len(names)} are missing)"
        )
    return [found[name] for name in names]


def size_of(path: Path) -> tuple[int, int]:
    """(height, width) of a picture. Raises ImageError."""
    height, width = ImageSet([path], cache=False).image(0).shape[:2]
    return height, width
