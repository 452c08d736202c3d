"""Which image files a folder or a list file names."""

from __future__ import annotations

import os
from pathlib import Path

from munit_fast.data.images import IMAGE_EXTENSIONS, ImageError
from munit_fast.utils.text import printable, read_bounded

MAX_LIST_BYTES = 2**28  # two million lines of 128 characters


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All image files below ``folder``, sorted by their names relative to it.

    Files and folders whose names start with a dot are left out: editors and operating systems keep thumbnails
    and resource forks there. Links to files are followed, links to folders are not.

    Raises:
        ImageError: the folder is missing, not a folder, not readable, or holds no image.
    """
    root = Path(folder)
    _check_folder(root)
    names = [os.path.relpath(path, root) for path in _walk(root) if path.suffix.lower() in IMAGE_EXTENSIONS]
    if not names:
        raise ImageError(f"{root}: no images in this folder; looked for {' '.join(IMAGE_EXTENSIONS)}")
    return [root / name for name in sorted(names)]


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


def _check_folder(root: Path) -> None:
    if not os.path.exists(root):
        raise ImageError(f"{root}: no such folder")
    if not os.path.isdir(root):
        raise ImageError(f"{root}: not a folder; give the folder that holds the images")


def _walk(root: Path) -> list[Path]:
    found = []

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename or root}: cannot read this folder: {error.strerror}") from error

    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return found


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
