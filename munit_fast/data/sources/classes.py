"""Folders with one subfolder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from munit_fast.data.sources.base import MissingClass, Pages
from munit_fast.data.sources.folders import FileSource
from munit_fast.data.sources.listing import find_images


def class_source(
    root: str | os.PathLike[str], classes: Sequence[str], pages: Pages = "all", axis: int = 2
) -> FileSource:
    """The images in some subfolders of a folder, at any depth, as torchvision's ImageFolder has them.

    Args:
        root: With a subfolder for each class. Names are relative to it, or to the class where there is one.
        classes: Names of subfolders.
        pages: As in `ImageSource`.
        axis: As in `ImageSource`.

    Raises:
        MissingClass: There is no such subfolder.
        ImageError: A folder cannot be read or has no images.
    """
    root = Path(root)
    missing = [name for name in classes if not (root / name).is_dir()]
    if missing:
        folders = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        raise MissingClass(str(root), missing, folders)
    paths: list[Path] = []
    skipped: Counter[str] = Counter()
    for name in sorted(set(classes)):
        found, left = find_images(root / name)
        paths += found
        skipped += left
    return FileSource(paths, root / classes[0] if len(set(classes)) == 1 else root, pages, skipped, axis)
