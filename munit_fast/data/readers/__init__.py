"""Readers of image files, one module for each library: `KINDS` says which file each of them reads.

A reader is a module with two functions of an open file:

    pages(file) -> int             how many images the file holds
    read(file, page) -> Picture    one of them

and, where the kind is `sliced`, with the axis of the volume along which it is cut into images as one more argument.
They raise whatever their library raises, or an `ImageError` without the file's name; both become an `ImageError` with
it here. A new reader is a module and a line in `KINDS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePath
from typing import BinaryIO, Protocol, cast

from munit_fast.data.picture import ImageError, Picture, one_line

_HEAD = 132  # bytes that tell the kind of a file: those of DICOM stand at 128
_MAX_PAGES = 2**20  # in a file: each becomes an entry of its source, and a header can name any number


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        module: The reader, in this package.
        suffixes: What the names of its files end in, in lower case.
        begins: What its files begin with; where it is known, content counts for more than the name.
        offset: Where that stands.
        many: Whether a file may hold several images, so that it has to be opened to count them.
        extra: The extra of this package that its library comes with; None: always there.
        sliced: Whether its files hold volumes, which are cut into images along an axis.
    """

    module: str
    suffixes: tuple[str, ...]
    begins: tuple[bytes, ...] = ()
    many: bool = False
    extra: str | None = None
    offset: int = 0
    sliced: bool = False


# The last one takes what no other does: Pillow decides by content.
KINDS = (
    Kind("dicom", (".dcm",), (b"DICM",), many=True, extra="medical", offset=128),
    Kind("nifti", (".nii", ".nii.gz"), many=True, extra="medical", sliced=True),
    Kind("numpy", (".npy", ".npz"), (b"\x93NUMPY",), many=True),
    Kind("tiff", (".tif", ".tiff", ".svs"), (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), many=True),
    Kind("netpbm", (".ppm", ".pgm"), tuple(b"P%d%c" % (kind, gap) for kind in (2, 3, 5, 6) for gap in b"\t\n\r #")),
    Kind("png", (".png", ".apng"), (b"\x89PNG\r\n\x1a\n",), many=True),
    Kind("pillow", (".gif", ".webp"), (b"GIF8", b"RIFF"), many=True),
    Kind("pillow", (".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".pbm"), (b"\xff\xd8\xff", b"BM", b"P1", b"P4")),
)
IMAGE_EXTENSIONS = tuple(suffix for kind in reversed(KINDS) for suffix in kind.suffixes)


class Reader(Protocol):
    """What every module of `KINDS` has."""

    @staticmethod
    def pages(file: BinaryIO, *axis: int) -> int:
        """How many images an open file holds."""

    @staticmethod
    def read(file: BinaryIO, page: int, *axis: int) -> Picture:
        """Image number `page` of an open file."""


def kind_of(name: str, head: bytes = b"") -> Kind:
    """The kind of a file.

    Args:
        name: Of the file; its end counts where the content says nothing.
        head: Its first bytes.
    """
    for kind in KINDS:
        if any(head.startswith(mark, kind.offset) for mark in kind.begins):
            return kind
    lower = re.sub(r"#\d+$", "", PurePath(name).name.lower())  # the name of an image of many ends in its number
    return next((kind for kind in KINDS if lower.endswith(kind.suffixes)), KINDS[-1])


def read_picture(name: str, file: BinaryIO, page: int = 0, axis: int = 2) -> Picture:
    """Read one image of an open file.

    Args:
        name: What messages call the file; its end tells the kind where the content does not.
        file: Seekable, at its beginning.
        page: Which of its images.
        axis: Of a volume: the axis along which it is cut into images, 0 to 2.

    Raises:
        ImageError: Empty, truncated, no image, more than MAX_PIXELS pixels, or there is no such page.
    """
    with naming(name):
        reader, options = _reader(name, file, axis)
        return reader.read(file, page, *options)


def count_pages(name: str, file: BinaryIO, axis: int = 2) -> int:
    """How many images an open file holds, volumes cut along an axis. Raises ImageError where it cannot be read."""
    with naming(name):
        reader, options = _reader(name, file, axis)
        count = reader.pages(file, *options)
        if count > _MAX_PAGES:
            raise ImageError(f"{count} images in one file; use at most {_MAX_PAGES}")
        return count


def _reader(name: str, file: BinaryIO, axis: int) -> tuple[Reader, tuple[int, ...]]:
    head = file.read(_HEAD)
    file.seek(0)
    if not head:
        raise ImageError("the file is empty")
    kind = kind_of(name, head)
    try:
        reader = cast(Reader, import_module(f"munit_fast.data.readers.{kind.module}"))
        return reader, (axis,) if kind.sliced else ()
    except ImportError as error:
        if kind.extra is None:
            raise
        raise ImageError(f"{error.name} is needed to read it: pip install 'munit-fast[{kind.extra}]'") from error


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn whatever is raised inside into an ImageError that begins with a name."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # decoders raise anything on damaged files: OSError, SyntaxError, EOFError
        raise ImageError(f"{name}: not a readable image ({one_line(error)})") from error
