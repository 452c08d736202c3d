"""Folders of images, and lists of files."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from munit_fast.data.picture import ImageError, one_line
from munit_fast.data.sources.base import ImageSource, Pages
from munit_fast.data.sources.listing import find_images


class FileSource(ImageSource):
    """Image files of this machine.

    Args:
        paths: The files. One that is named several times is as many images.
        root: The folder that names are relative to; None: the one that all share.
        pages: As in `ImageSource`.
        skipped: As in `ImageSource`.
        axis: As in `ImageSource`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        root: str | os.PathLike[str] | None = None,
        pages: Pages = "all",
        skipped: Counter[str] | None = None,
        axis: int = 2,
    ) -> None:
        files = [Path(path) for path in paths]
        base = os.path.abspath(root) if root is not None else _shared_folder(files)
        names = [Path(os.path.relpath(os.path.abspath(path), base)).as_posix() for path in files]
        self._paths: dict[str, Path] = dict(zip(names, files))
        super().__init__(str(root) if root is not None else base, names, pages, skipped, axis)

    def path(self, i: int) -> Path:
        """The file of image `i`."""
        return self._paths[self.entries[i].file]

    def where(self, i: int) -> str:
        """What messages call image `i`."""
        page = self.entries[i].name.removeprefix(self.entries[i].file)
        return f"{self.path(i)}{page}"

    def version(self, i: int) -> str:
        """Size and times of the file: the second one is the system's own and cannot be set by who unpacks archives."""
        try:
            found = self.path(i).stat()
        except (OSError, ValueError):
            return ""
        return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"

    def open(self, file: str) -> BinaryIO:
        """Open one of the files. Raises ImageError."""
        return open_file(self._paths[file])


def open_file(path: Path) -> BinaryIO:
    """Open a plain file that is not empty. Raises ImageError with its name."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise ImageError(f"{path}: not a plain file")
        if status.st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        return path.open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        raise ImageError(f"{path}: {one_line(error)}") from error


def folder_source(folder: str | os.PathLike[str], pages: Pages = "all", axis: int = 2) -> FileSource:
    """All image files below a folder, and how many others there are. Raises ImageError as `list_images`."""
    paths, skipped = find_images(folder)
    return FileSource(paths, folder, pages, skipped, axis)


def _shared_folder(paths: Sequence[Path]) -> str:
    if not paths:
        raise ValueError("an image set needs at least one path")
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
