"""Which image files a folder or a list file names."""

from __future__ import annotations

import os
from pathlib import Path

from munit_fast.data.images import IMAGE_EXTENSIONS, ImageError


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


def read_list(list_file: str | os.PathLike[str], root: str | os.PathLike[str]) -> list[Path]:
    """The images that a text file names, one path relative to ``root`` per line, in its order.

    Blank lines are ignored. An absolute path must lie inside ``root``.

    Raises:
        ImageError: the list or a file on it is missing, a path leads out of ``root``, or the list is empty.
            The message names the line.
    """
    source, root = Path(list_file), Path(root)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ImageError(f"{source}: cannot read the list of images: {reason}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    paths = [_inside(root, name, f"{source}, line {number}") for number, name in lines if name]
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


def _inside(root: Path, name: str, where: str) -> Path:
    base = os.path.abspath(root)
    full = os.path.normpath(os.path.join(base, name))
    if os.path.commonpath([base, full]) != base:
        raise ImageError(f"{where}: {name} leads out of {root}; use paths inside it")
    if not os.path.isfile(full):
        raise ImageError(f"{where}: no file {name} in {root}")
    return root / os.path.relpath(full, base)
