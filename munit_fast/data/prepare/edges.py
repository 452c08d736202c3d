"""Edges ↔ pictures from any folder: black Canny edges on white are domain A, the pictures domain B.

A picture is used once: its edges or itself for training, or both as a test pair. Which of these is decided by
its pixels, so copies of one picture cannot stand on both sides. Equal inputs give byte-equal folders.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from munit_fast.data.images import resize_short_side
from munit_fast.data.picture import Array, ImageError, Picture
from munit_fast.data.prepare.writing import (
    SPLITS,
    DatasetError,
    prepared_manifest,
    unit_hash,
    write_manifest,
)
from munit_fast.data.sources import FileSource, list_images
from munit_fast.data.values import PixelFormat
from munit_fast.io.atomic import atomic_directory
from munit_fast.utils.optional import require
from munit_fast.utils.text import one_line

_LITTLE = 1 / 16  # of a type's range
REVISION = 1  # raise when the output changes: a folder of another revision is not reused
Progress = Callable[[int, int], None]


def prepare_edges(
    source: Path,
    out: Path,
    *,
    size: int = 256,
    test_fraction: float = 0.1,
    sigma: float = 2.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make trainA and testA (edges, grey), trainB and testB (RGB) from the pictures below ``source``.

    All are PNG. testA and testB share file names; trainA and trainB come from different pictures. Pictures
    are brought to 8 bits and a short side of ``size``; transparent parts become white. Of files with several
    images (pages, frames) each is a picture; those of one file follow each other in the splits, so that at
    most two files stand in two of them. Files that cannot be read and copies of a picture already met are
    left out; ``manifest.json`` counts them and gives the reasons.

    Args:
        source: the folder of pictures, searched recursively.
        out: the folder to create; missing or empty, outside ``source``. A complete data set with the same
            parameters from the same files is reused.
        size: length of the short side in pixels.
        test_fraction: part of the pictures that become test pairs, in 0..1 exclusive; at least one does.
        sigma: width in pixels of the blur before the edges are found; larger keeps fewer edges.
        seed: another seed gives another split.
        progress: called as ``progress(done, total)`` now and then.

    Returns:
        The manifest, with ``"reused"``: whether ``out`` had been prepared before.

    Raises:
        ImageError: ``source`` is missing or holds no images.
        DatasetError: too few usable pictures, ``out`` holds something else, scikit-image is missing.
        FileWriteError: ``out`` cannot be written. Nothing is left behind.
    """
    source, out = Path(source), Path(out)
    _check_arguments(source, out, size, test_fraction, sigma)
    paths = list_images(source)
    parameters = {
        "dataset": "edges",
        "revision": REVISION,
        "size": size,
        "test_fraction": test_fraction,
        "sigma": sigma,
        "seed": seed,
        "source": _fingerprint(source, paths),
    }
    reused = prepared_manifest(out, parameters)
    if reused is not None:
        return reused
    require("skimage.feature", "edges", package="scikit-image", error=DatasetError)
    with atomic_directory(out) as stage:
        writer = PairWriter(stage, size, sigma)
        images = FileSource(paths, source)
        for i in range(len(images)):
            writer.add(images, i)
            (progress or (lambda done, total: None))(i + 1, len(images))
        files = assign_splits(stage, writer.pictures, test_fraction, seed, writer.skipped)
        manifest = {
            "parameters": parameters,
            "versions": {"scikit-image": metadata.version("scikit-image"), "pillow": PIL.__version__},
            "counts": {split: sum(name.startswith(f"{split}/") for name in files) for split in SPLITS},
            "skipped": {reason: len(names) for reason, names in writer.skipped.items()},
            "skipped_files": writer.skipped,
            "files": dict(sorted(files.items())),
        }
        return write_manifest(stage, manifest)


@dataclass(frozen=True)
class _Picture:
    source: str  # relative to the source folder, with "/"
    name: str  # of the files made from it
    digest: str  # of the resized pixels of the first picture of its file: frames of an animation stay together


class PairWriter:
    """Writes the pair of each picture to testA and testB, from where `assign_splits` moves it to its split."""

    def __init__(self, stage: Path, size: int, sigma: float) -> None:
        self._stage, self._size, self._sigma = stage, size, sigma
        self._names: set[str] = set()
        self._first: dict[str, str] = {}  # digest → the picture that had it first
        self._file = ""  # digest of the first readable picture of the file at hand
        self.pictures: list[_Picture] = []
        self.skipped: dict[str, dict[str, str]] = {
            "copy of another": {},
            "unreadable": {},
            "without edges": {},
        }
        for folder in SPLITS:
            (stage / folder).mkdir()

    def add(self, images: FileSource, i: int) -> None:
        """Write the pair of one picture, or record why it has none."""
        relative = _printable(images.name(i))
        if images.entries[i].page == 0:
            self._file = ""
        try:
            picture = images.read(i)
            array = _bytes(resize_short_side(PixelFormat().apply(picture), self._size))
        except ImageError as error:
            self.skipped["unreadable"][relative] = str(error).removeprefix(f"{images.where(i)}: ")
            return
        digest = hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()
        self._file = self._file or digest
        if digest in self._first:
            self.skipped["copy of another"][relative] = self._first[digest]
            return
        self._first[digest] = relative
        edges = _find_edges(array, self._sigma)
        if not edges.any():  # a white page: instance norm has nothing to normalize by
            self.skipped["without edges"][relative] = f"no edges at sigma {self._sigma:g}{_narrow(picture)}"
            return
        name = self._unique(relative)
        drawing = np.where(edges, 0, 255).astype(np.uint8)
        Image.fromarray(drawing).save(self._stage / "testA" / name, format="PNG")
        Image.fromarray(array).save(self._stage / "testB" / name, format="PNG")
        self.pictures.append(_Picture(relative, name, self._file))

    def _unique(self, relative: str) -> str:
        """A short, portable file name: plain letters, digits, '-' and '_'; unique in any case."""
        stem = (
            re.sub(r"[^A-Za-z0-9-]+", "_", re.sub(r"\.[^./]*?(#\d+)?$", r"\1", relative)).strip("_")[-80:] or "picture"
        )
        candidates = chain([stem], (f"{stem}_{number}" for number in count(2)))
        chosen = next(name for name in candidates if name.lower() not in self._names)
        self._names.add(chosen.lower())
        return f"{chosen}.png"


def assign_splits(
    stage: Path,
    pictures: list[_Picture],
    test_fraction: float,
    seed: int,
    skipped: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, str]]:
    """Move the pairs to their splits, in the order of their hashes.

    Args:
        stage: the folder of the data set that is being written.
        pictures: its pairs, at least 3.
        test_fraction: of the pictures, for the test split; each split gets at least one.
        seed: of the hashes.
        skipped: by the reason, the pictures left out and why; for the message.

    Returns:
        The manifest's entries by file name.

    Raises:
        DatasetError: there are too few pictures.
    """
    if len(pictures) < 3:
        usable = f"only {len(pictures)} usable picture{'' if len(pictures) == 1 else 's'}"
        raise DatasetError(f"{usable}; at least 3 are needed, one per split{_left_out(skipped)}")
    tests = min(max(1, round(test_fraction * len(pictures))), len(pictures) - 2)
    edges = (len(pictures) - tests) // 2
    files: dict[str, dict[str, str]] = {}
    for i, picture in enumerate(sorted(pictures, key=lambda p: unit_hash(f"{seed} {p.digest}"))):
        split = "test" if i < tests else "trainA" if i < tests + edges else "trainB"
        files |= {name: {"source": picture.source} for name in _move_pair(stage, picture.name, split)}
    return files


def _left_out(skipped: Mapping[str, Mapping[str, str]]) -> str:
    """ "; left out: 3 without edges (a.png: no edges at sigma 2), 1 unreadable (b.png: the file is empty)"."""
    counts = (
        f"{len(names)} {reason} ({one_line(f'{name}: {why}')})"
        for reason, names in skipped.items()
        for name, why in list(names.items())[:1]
    )
    line = ", ".join(counts)
    return f"; left out: {line}" if line else ""


def _move_pair(stage: Path, name: str, split: str) -> list[str]:
    """Keep a pair for the test, or one of its sides for training; the files that remain."""
    if split == "test":
        return [f"testA/{name}", f"testB/{name}"]
    kept, dropped = ("testA", "testB") if split == "trainA" else ("testB", "testA")
    (stage / kept / name).rename(stage / split / name)
    (stage / dropped / name).unlink()
    return [f"{split}/{name}"]


def _find_edges(array: Array, sigma: float) -> Array:
    """[H, W, 3] uint8 → [H, W] bool."""
    from skimage.feature import canny

    grey = np.asarray(Image.fromarray(array).convert("L"))
    edges: Array = canny(grey.astype(np.float64) / 255, sigma=sigma)
    return edges


def _narrow(picture: Picture) -> str:
    """What to say of values that fill little of the range of their type, as 12 bits in 16 do; most are then black."""
    if picture.pixels.dtype.itemsize == 1 or picture.limits is None:
        return ""
    low, high = (float(edge) for edge in (picture.pixels.min(), picture.pixels.max()))
    black, white = picture.limits
    if high - low >= _LITTLE * (white - black):
        return ""
    return (
        f"; its values {low:g}..{high:g} use little of {black:g}..{white:g}, the range of {picture.pixels.dtype}: "
        "stretch them first"
    )


def _bytes(array: Array) -> Array:
    """Any image array as uint8."""
    white = {"u1": 255, "u2": 65535}.get(array.dtype.str[1:], 1)
    return array if white == 255 else np.rint(array.astype(np.float64) * (255 / white)).astype(np.uint8)


def _check_arguments(source: Path, out: Path, size: int, test_fraction: float, sigma: float) -> None:
    if not 16 <= size <= 4096:
        raise DatasetError(f"size must lie in 16..4096, not {size}")
    if not 0 < test_fraction < 1:
        raise DatasetError(f"test_fraction must lie between 0 and 1, not {test_fraction}")
    if not 0 < sigma < size:
        raise DatasetError(f"sigma must lie between 0 and size, not {sigma}")
    if out.resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"{out} lies inside the source folder {source}; choose an output folder outside it")


def _fingerprint(source: Path, paths: list[Path]) -> str:
    """Names and sizes of the source files: tells whether a prepared folder is still that of this source."""
    total = hashlib.sha256()
    for path in paths:
        try:
            length = path.stat().st_size
        except OSError:
            length = -1
        total.update(f"{_relative(path, source)}\0{length}\n".encode())
    return total.hexdigest()


def _relative(path: Path, source: Path) -> str:
    # Names that are not UTF-8 reach Python as lone surrogates, which neither a hash nor a JSON file takes.
    return _printable(path.relative_to(source).as_posix())


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
