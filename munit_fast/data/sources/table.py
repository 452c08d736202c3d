"""Which source reads what a user names: `KINDS`. A new kind of source is a module and a line there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from munit_fast.data.picture import ImageError
from munit_fast.data.sources.archives import ArchiveSource
from munit_fast.data.sources.base import ImageSource, Pages
from munit_fast.data.sources.classes import class_source
from munit_fast.data.sources.folders import FileSource, folder_source, open_file
from munit_fast.data.sources.hub import PREFIX, is_saved, open_dataset
from munit_fast.data.sources.names import is_image
from munit_fast.data.sources.tars import TarSource
from munit_fast.data.sources.zips import ZipSource
from munit_fast.utils.text import one_line

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Request:
    """What `open_source` was asked for."""

    spec: str
    pages: Pages
    classes: tuple[str, ...]
    allow_outside: bool
    axis: int


def open_source(
    spec: str | os.PathLike[str],
    *,
    pages: Pages = "all",
    classes: Sequence[str] = (),
    allow_outside: bool = False,
    axis: int = 2,
) -> ImageSource:
    """Open images by what a user names them.

    Args:
        spec: A folder; an image file; FILE.zip or FILE.tar; shards, as `data-{000000..000009}.tar`, `data-*.tar` or
            the folder that holds them; a folder that `datasets` saved; `hf:OWNER/NAME?split=train&column=image`, a
            data set of the Hugging Face Hub or, with a folder in place of OWNER/NAME, of this machine.
        pages: Of files with several images, "all" of them or the "first".
        classes: Only images in these subfolders, of a folder or archive; or with these labels, of a data set.
        allow_outside: Whether a data set may name images outside its folder.
        axis: Of volumes: the axis along which they are cut into images, 0 to 2.

    Raises:
        ImageError: There is nothing of this name, it cannot be read, or it has no images.
        MissingClass: It has none of these classes.
    """
    request = Request(os.fspath(spec), pages, tuple(classes), allow_outside, axis)
    return next(open_kind for takes, open_kind in KINDS if takes(request.spec))(request)


def is_archive(spec: str) -> bool:
    """Whether a name is that of an archive or of shards."""
    return spec.lower().endswith(tuple(_ARCHIVES)) and not os.path.isdir(spec)


def expand(pattern: str) -> list[str]:
    """The shards of "data-{000000..000009}.tar" or "data-*.tar", in order; a name that exists stands for itself."""
    if os.path.exists(pattern):
        return [pattern]
    match = _RANGE.search(pattern)
    if match is not None:
        first, last, digits = int(match[1]), int(match[2]), len(match[1])
        if not 0 <= last - first < _MOST_SHARDS:
            raise ImageError(f"{pattern}: {match[0]} must count upwards, to {_MOST_SHARDS} shards at most")
        names = [f"{pattern[: match.start()]}{i:0{digits}d}{pattern[match.end() :]}" for i in range(first, last + 1)]
        return [shard for name in names for shard in expand(name)]
    folder, name = os.path.split(pattern)
    if "*" not in name:
        return [pattern]
    words = re.compile(".*".join(map(re.escape, name.split("*"))))
    found = sorted(path.name for path in Path(folder).iterdir()) if os.path.isdir(folder or ".") else []
    shards = [os.path.join(folder, name) for name in found if words.fullmatch(name)]
    if not shards:
        raise ImageError(f"{pattern}: there are no such files")
    return shards


def _shards_in(folder: str) -> list[str]:
    """The archives of a folder that holds archives of one kind and nothing else besides small files."""
    if not os.path.isdir(folder):
        return []
    try:
        paths = sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
    except OSError:  # is told by who reads the folder
        return []
    for suffix in (".tar", ".zip"):
        shards = [str(path) for path in paths if path.suffix.lower() == suffix]
        others = [path for path in paths if str(path) not in shards]
        if shards and not any(path.is_dir() or is_image(path.name) or is_archive(str(path)) for path in others):
            return shards
    return []


def _check_not_shards(folder: str) -> None:
    """Raise ImageError where a folder of images would be taken for what few images lie beside its archives."""
    try:
        names = sorted(path.name for path in Path(folder).iterdir() if path.is_file())
    except OSError:  # is told by who reads the folder
        return
    archives = [name for name in names if is_archive(name) and not name.startswith(".")]
    images = [name for name in names if is_image(name) and not name.startswith(".")]
    if archives and 0 < len(images) <= len(archives):
        first = archives[0]
        way = one_line(os.path.join(folder, re.sub(r"\d+(?=\.\w+$)", "*", first)))
        count = f"{len(archives)} archive{'s' * (len(archives) > 1)} and {len(images)} image{'s' * (len(images) > 1)}"
        raise ImageError(
            f"{folder}: holds {count}: give {way}, or move {one_line(images[0])} or {one_line(first)} elsewhere"
        )


def _file(request: Request) -> ImageSource:
    path = Path(request.spec)
    open_file(path).close()
    return FileSource([path], path.parent, request.pages, axis=request.axis)


def _folder(request: Request) -> ImageSource:
    if request.classes:
        return class_source(request.spec, request.classes, request.pages, request.axis)
    _check_not_shards(request.spec)
    return folder_source(request.spec, request.pages, request.axis)


def _archive(request: Request) -> ImageSource:
    shards = _shards_in(request.spec) or expand(request.spec)
    kind = next(kind for suffix, kind in _ARCHIVES.items() if shards[0].lower().endswith(suffix))
    return kind(shards, request.spec, request.pages, request.classes, request.axis)


def _dataset(request: Request) -> ImageSource:
    return open_dataset(request.spec, request.pages, request.classes, request.allow_outside, request.axis)


_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")  # TarSource says why not
_ARCHIVES: dict[str, type[ArchiveSource]] = {".zip": ZipSource, ".tar": TarSource} | dict.fromkeys(
    _COMPRESSED, TarSource
)

# What each kind takes, and what opens it; the first that takes a name has it.
KINDS: tuple[tuple[Callable[[str], bool], Callable[[Request], ImageSource]], ...] = (
    (lambda spec: spec.startswith(PREFIX) or is_saved(spec), _dataset),
    (lambda spec: is_archive(spec) or bool(_shards_in(spec)), _archive),
    (lambda spec: os.path.isfile(spec), _file),
    (lambda spec: True, _folder),
)
