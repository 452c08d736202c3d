"""Images whose bands are files of their own, as satellites deliver them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

import numpy as np

from munit_fast.data.picture import Array, ImageError, Picture
from munit_fast.data.readers import naming
from munit_fast.data.sources.base import Entry, ImageSource


class BandSource(ImageSource):
    """The files of another source, those of one scene joined into one image.

    A file belongs to a band whose name stands in its own, apart from other letters and digits: scene1/B02.tif and
    scene1/B03.tif make one image of two bands, and so do scene1_B02_10m.tif and scene1_B03_10m.tif. Upper and lower
    case are different. A scene whose files a list names several times is as many images.

    Args:
        source: Of files with one band each.
        bands: The names, in the order of the channels.

    Raises:
        ValueError: There are no names, or one twice.
        ImageError: No scene has all bands, one has two files of a band, or a list repeats some of its files only.
    """

    def __init__(self, source: ImageSource, bands: Sequence[str]) -> None:
        if not bands or len(set(bands)) < len(bands) or not all(bands):
            raise ValueError(f"bands are different names, not {list(bands)}")
        self.source, self.bands = source, list(bands)
        self.skipped, found = Counter(source.skipped), _scenes(source, self.bands)
        self.members: dict[str, list[int]] = {}
        self.entries: list[Entry] = []
        for scene in sorted(found):
            missing = [band for band in self.bands if band not in found[scene]]
            if missing:
                self.skipped[f"of a scene without {' '.join(missing)}"] += sum(map(len, found[scene].values()))
                continue
            times = {band: len(found[scene][band]) for band in self.bands}
            if len(set(times.values())) > 1:
                counts = ", ".join(f"{band} {count}" for band, count in times.items())
                raise ImageError(
                    f"{source.label}/{scene}: name the file of each band equally often, not {counts} times"
                )
            self.members[scene] = [found[scene][band][0] for band in self.bands]
            self.entries += [Entry(scene)] * times[self.bands[0]]
        if not self.members:
            raise ImageError(f"{source.label}: no scene has files of all bands: {' '.join(self.bands)}")
        self.skipped["of no band"] += len(source) - sum(
            len(same) for scene in found.values() for same in scene.values()
        )
        self.skipped = +self.skipped
        self.label, self.axis = source.label, source.axis

    def where(self, i: int) -> str:
        """What messages call image `i`: the pattern of its files."""
        return f"{self.label}/{self.name(i)}"

    def version(self, i: int) -> str:
        """What changes when one of the files of image `i` does."""
        return " ".join(map(self.source.version, self.members[self.name(i)]))

    def open(self, file: str) -> BinaryIO:
        """Open the first file of a scene. Raises ImageError."""
        return self.source.open(self.source.entries[self.members[file][0]].file)

    def read(self, i: int) -> Picture:
        """Image `i`: [H, W, bands].

        Raises:
            ImageError: A file cannot be read, has several bands, or differs from the first in size or type.
        """
        members = self.members[self.name(i)]
        pictures = [self.source.read(member) for member in members]
        planes: list[Array] = []
        for member, picture in zip(members, pictures):
            first, where = pictures[0], self.source.where(member)
            with naming(where):
                if picture.pixels.shape[2] != 1 or picture.alpha is not None:
                    channels = picture.pixels.shape[2] + (picture.alpha is not None)
                    raise ImageError(f"{channels} channels in the file of one band")
                for what, found, wanted in (
                    ("size", _size(picture), _size(first)),
                    ("type", str(picture.pixels.dtype), str(first.pixels.dtype)),
                    ("range", str(picture.limits), str(first.limits)),
                ):
                    if found != wanted:
                        raise ImageError(f"{what} {found}, but {wanted} in {self.source.where(members[0])}")
            planes.append(picture.pixels)
        return Picture(np.concatenate(planes, axis=2), limits=pictures[0].limits, header=pictures[0].header)


def _scenes(source: ImageSource, bands: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """The images of each band of each scene, several where a list repeats a file.

    A scene is called by its files' name with "bands" for the band.
    """
    either = "|".join(re.escape(band) for band in sorted(bands, key=len, reverse=True))
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{either})(?![A-Za-z0-9])")
    found: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for i in range(len(source)):
        path = PurePosixPath(source.name(i))
        place = next(iter(reversed(list(pattern.finditer(path.name)))), None)
        if place is None:
            continue
        stem, rest = path.name[: place.start()], path.name[place.end() :].partition(".")[0]
        scene = str(path.with_name(f"{stem}bands{rest}"))
        same = found[scene].setdefault(place[0], [])
        if same and source.entries[i] != source.entries[same[0]]:
            raise ImageError(f"{source.where(i)} and {source.where(same[0])} are both {place[0]}")
        same.append(i)
    return found


def _size(picture: Picture) -> str:
    return f"{picture.pixels.shape[1]}x{picture.pixels.shape[0]}"
