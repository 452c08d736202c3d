"""Which images there are below a folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from munit_fast.data.picture import ImageError
from munit_fast.data.readers import IMAGE_EXTENSIONS
from munit_fast.data.sources.names import HIDDEN, left_out, skipped_line


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All image files below ``folder``, sorted by their names relative to it.

    Files and folders whose names start with a dot are left out: editors and operating systems keep thumbnails
    and resource forks there. Links are followed; a folder that several links lead to is listed once.

    Raises:
        ImageError: the folder is missing, not a folder, not readable, or holds no image.
    """
    return find_images(folder)[0]


def find_images(folder: str | os.PathLike[str]) -> tuple[list[Path], Counter[str]]:
    """`list_images`, and how many files are left out for which reason."""
    root = Path(folder)
    if not os.path.exists(root):
        raise ImageError(f"{root}: no such folder")
    if not os.path.isdir(root):
        raise ImageError(f"{root}: not a folder; give the folder that holds the images")
    skipped: Counter[str] = Counter()
    names = [os.path.relpath(path, root) for path in _walk(root, skipped)]
    if not names:
        found = f"; {skipped_line(str(root), skipped)}" if skipped else ""
        raise ImageError(f"{root}: no images in this folder; looked for {' '.join(IMAGE_EXTENSIONS)}{found}")
    return [root / name for name in sorted(names)], skipped


def _walk(root: Path, skipped: Counter[str]) -> list[str]:
    """The image files below a folder: first those of the folder itself, then those behind links to folders."""
    found: list[str] = []
    seen: set[str] = set()  # the real folders: a loop of links would be endless, folders linked crosswise nearly so
    trees = [str(root)]
    while trees:
        links: list[str] = []
        for tree in sorted(trees):
            for folder, subfolders, files in os.walk(tree, onerror=_refuse):
                real = os.path.realpath(folder)
                if real in seen:
                    skipped[_why_again(folder, real)] += 1
                    subfolders.clear()
                    continue
                seen.add(real)
                hidden = [name for name in subfolders if name.startswith(".")]
                skipped.update({HIDDEN: len(hidden)} if hidden else {})
                linked = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
                links += [os.path.join(folder, name) for name in linked if name not in hidden]
                subfolders[:] = sorted(set(subfolders) - {*hidden, *linked})
                for name in files:
                    reason = left_out(name)
                    if reason is None:
                        found.append(os.path.join(folder, name))
                    else:
                        skipped[reason] += 1
        trees = links
    return found


def _why_again(folder: str, real: str) -> str:
    above = os.path.realpath(os.path.dirname(folder))
    loop = (above + os.sep).startswith(real if real.endswith(os.sep) else real + os.sep)
    return "in a loop of links" if loop else "in a folder that is linked twice"


def _refuse(error: OSError) -> None:
    raise ImageError(f"{error.filename}: cannot read this folder: {error.strerror}") from error
