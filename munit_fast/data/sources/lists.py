"""Text files that list images."""

from __future__ import annotations

import os
from pathlib import Path

from munit_fast.data.picture import ImageError
from munit_fast.utils.text import printable, read_bounded

MAX_LIST_BYTES = 2**28  # two million lines of 128 characters


def read_list(
    list_file: str | os.PathLike[str], root: str | os.PathLike[str], allow_outside: bool = False
) -> list[Path]:
    """The images that a text file names, one path relative to ``root`` per line, in its order.

    Blank lines are ignored. Every file must lie inside ``root``, after "..", absolute paths and links are followed: a
    list that came with a data set from elsewhere could name any file of this machine.

    Args:
        list_file: the list, UTF-8.
        root: the folder of the images.
        allow_outside: accept files outside ``root``.

    Raises:
        ImageError: the list or a file on it is missing, a path leads out of ``root``, or the list is empty.
            The message names the line.
    """
    source, root = Path(list_file), Path(root)
    try:
        text = read_bounded(source, MAX_LIST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = (
            "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        )
        raise ImageError(f"{source}: cannot read the list of images: {reason}") from error
    bases = (os.path.abspath(root), None if allow_outside else os.path.realpath(root))
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    paths = [_listed(root, bases, name, f"{source}, line {number}") for number, name in lines if name]
    if not paths:
        raise ImageError(f"{source}: the list names no image; give one path relative to {root} per line")
    return paths


def _listed(root: Path, bases: tuple[str, str | None], name: str, where: str) -> Path:
    """The file that a line names. bases: the absolute root; and with its links followed, where files must be inside."""
    base, confined = bases
    shown = printable(name)
    full = os.path.normpath(os.path.join(base, name))
    try:
        found = os.path.isfile(full)
        real = os.path.realpath(full)
    except (OSError, ValueError):  # a name with a NUL byte; a loop of links
        found, real = False, full
    if confined is not None and not _is_inside(full, base):
        raise ImageError(f"{where}: {shown} leads out of {root}; use paths inside it, or --allow_outside")
    if not found:
        raise ImageError(f"{where}: no file {shown} in {root}")
    if confined is not None and not _is_inside(real, confined):
        raise ImageError(f"{where}: {shown} is a link out of {root}; copy the file, or use --allow_outside")
    return root / os.path.relpath(full, base) if _is_inside(full, base) else Path(full)


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)
