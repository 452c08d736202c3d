"""Which files of a folder are translations of one input, and which pictures belong to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from munit_fast.data import ImageError, ImageSource
from munit_fast.data.sources import open_source
from munit_fast.evaluate.pictures import stem_of


def group_translations(source: ImageSource) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The translations of each NAME in the order of their numbers, and the copies of the inputs beside them.

    Raises:
        ImageError: There are none.
    """
    found: dict[str, int] = {}
    inputs: dict[str, int] = {}
    numbers: dict[str, list[str]] = {}
    for i in range(len(source)):
        stem = stem_of(source.name(i))
        if stem.endswith("_input"):
            inputs[stem.removesuffix("_input")] = i
            continue
        found[stem] = i
        if (match := re.fullmatch(r"(.+)_(\d+)", stem)) is not None:
            numbers.setdefault(match[1], []).append(match[2])
    if not found:
        raise ImageError(f"{source.label}: holds copies of inputs but no translations")
    # A number may also belong to the name of an input, as in cat_0001.png.
    styles = {
        name
        for name, all_of_it in numbers.items()
        if name not in found and sorted(all_of_it) == [f"{i:03d}" for i in range(min(len(all_of_it), 1000))]
    }
    groups: dict[str, list[int]] = {}
    for stem, i in found.items():
        name = stem.rpartition("_")[0]
        groups.setdefault(name if name in styles else stem, []).append(i)
    return {name: sorted(found, key=source.name) for name, found in groups.items()}, inputs


def translations_per_input(groups: dict[str, list[int]], label: str) -> int:
    """How many translations each input has. Raises ImageError where the numbers differ, or for a single input."""
    (first, found), *rest = groups.items()
    for name, others in rest:
        if len(others) != len(found):
            raise ImageError(
                f"{label}: {name} has {len(others)} translations and {first} has {len(found)}; give the same number "
                "for every input"
            )
    if len(groups) < 2:
        raise ImageError(f"{label}: translations of one input only; at least 2 are needed")
    return len(found)


def partners_of(place: Path, names: Sequence[str], option: str) -> ImageSource:
    """The picture of each name in a folder or archive.

    Args:
        place: where the pictures lie.
        names: names without extension, as `stem_of` gives them.
        option: what gave the place, for the message.

    Returns:
        The pictures, in the order of the names.

    Raises:
        ImageError: a picture is missing, or the place cannot be read.
    """
    source = open_source(place, pages="first")
    found = {stem_of(source.name(i)): i for i in range(len(source))}
    missing = [name for name in names if name not in found]
    if missing:
        raise ImageError(
            f"{option} {place}: no picture named {missing[0]} ({len(missing)} of {len(names)} are missing)"
        )
    return source.chosen(found[name] for name in names)


def size_of(source: ImageSource, i: int) -> tuple[int, int]:
    """(height, width) of a picture. Raises ImageError."""
    height, width = source.read(i).pixels.shape[:2]
    return height, width
