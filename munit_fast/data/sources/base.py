"""Image sources: where images are, whatever holds them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import PurePosixPath
from typing import BinaryIO, Literal, NamedTuple, TypeVar

from munit_fast.data.picture import ImageError, Picture
from munit_fast.data.readers import count_pages, kind_of, read_picture
from munit_fast.data.sources.names import skipped_line
from munit_fast.utils.text import one_line

Pages = Literal["all", "first"]
HEAD = 132  # bytes that tell the kind of a file
_Source = TypeVar("_Source", bound="ImageSource")


class MissingClass(ImageError):
    """A source has no images of the classes asked for. The message names those that it has."""

    def __init__(self, label: str, classes: Iterable[str] = (), known: Iterable[str] = ()) -> None:
        names = sorted(known)
        there = one_line(", ".join(names[:20])) + (", …" if len(names) > 20 else "") if names else "none"
        super().__init__(f"{label}: no class {' or '.join(classes)}; there are {there}" if classes else label)


class Entry(NamedTuple):
    """One image of a source."""

    file: str  # as `ImageSource.open` takes it
    page: int = 0
    pages: int = 1  # of the file

    @property
    def name(self) -> str:
        """The file's name, with "#2" for the third image of several."""
        return self.file if self.pages == 1 else f"{self.file}#{self.page}"


class ImageSource:
    """Images by number: how many there are, their names, and each of them as a `Picture`.

    A kind of source says in `open` how its files are read; everything else is here. It can be pickled to the processes
    of a loader.

    Args:
        label: What messages call the source: its folder, archive or name.
        files: The names of its files, relative to it, with "/", in their order. One that stands there several times
            is as many images.
        pages: Of files with several images, "all" of them or the "first".
        skipped: How many files were left out, by the reason.
        axis: Of volumes: the axis along which they are cut into images, 0 to 2.

    Raises:
        ImageError: There are no files.
    """

    def __init__(
        self,
        label: str,
        files: Sequence[str],
        pages: Pages = "all",
        skipped: Counter[str] | None = None,
        axis: int = 2,
    ) -> None:
        if not files:
            raise ImageError(f"{label}: no images there")
        self.label, self.skipped, self.axis = label, skipped or Counter(), axis
        self.entries = [Entry(file) for file in files] if pages == "first" else self._entries(files)

    def open(self, file: str) -> BinaryIO:
        """Open one of the files, seekable.

        Raises:
            ImageError: It is missing, empty, or no plain file.
        """
        raise NotImplementedError

    def head(self, file: str) -> bytes:
        """The first bytes of one of the files, which tell its kind: all files are asked for them. Raises ImageError."""
        with self.open(file) as opened:
            return opened.read(HEAD)

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, i: int) -> str:
        """The name of image `i`, relative, with "/". Only images that a list repeats share one."""
        return self.entries[i].name

    def where(self, i: int) -> str:
        """What messages call image `i`."""
        return self.called(self.entries[i].name)

    def called(self, name: str) -> str:
        """What messages call an image or file of this name: one line that a terminal does not obey."""
        return f"{self.label}/{one_line(name)}"

    def version(self, i: int) -> str:
        """What changes when the file of image `i` does, to notice that; here a digest of its bytes."""
        try:
            with self.open(self.entries[i].file) as file:
                digest = hashlib.sha256()
                while block := file.read(2**20):
                    digest.update(block)
                return digest.hexdigest()
        except (ImageError, OSError):
            return ""

    def read(self, i: int) -> Picture:
        """Image `i`.

        Raises:
            ImageError: It cannot be read; the message begins with `where(i)`.
        """
        with self.open(self.entries[i].file) as file:
            return read_picture(self.where(i), file, self.entries[i].page, self.axis)

    def chosen(self: _Source, numbers: Iterable[int]) -> _Source:
        """The same source with these images only, in this order."""
        other = copy(self)
        other.entries = [self.entries[i] for i in numbers]
        return other

    def notes(self) -> list[str]:
        """What its user should be told once: files that were left out, files with several images."""
        lines = [skipped_line(self.label, self.skipped)] if self.skipped else []
        several = {
            entry.file: entry.pages
            for entry in self.entries
            if entry.pages > 1 and kind_of(PurePosixPath(entry.file).name).extra != "medical"  # made to be cut
        }
        if several:
            first, count = next(iter(several.items()))
            files = "1 file holds" if len(several) == 1 else f"{len(several)} files hold"
            lines.append(
                f"{self.label}: {files} several images ({one_line(first)}: {count}), each of which is used; "
                "pages: first takes the first of each file"
            )
        return lines

    def _entries(self, files: Sequence[str]) -> list[Entry]:
        """One entry for each image of each file; a file that cannot be opened is one, and its failure comes later."""
        with ThreadPoolExecutor(8) as pool:
            counts = dict(zip(dict.fromkeys(files), pool.map(self._count, dict.fromkeys(files))))
        return [Entry(file, page, counts[file]) for file in files for page in range(counts[file])]

    def _count(self, file: str) -> int:
        try:
            # By its content, as it is read: a name may have the wrong end, or none.
            if not kind_of(PurePosixPath(file).name, self.head(file)).many:
                return 1
            with self.open(file) as opened:
                return max(1, count_pages(file, opened, self.axis))
        except (ImageError, OSError):
            return 1
