"""Regions of the pages of a TIFF file, with memory bounded by what it stores in one piece."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

Array = npt.NDArray[Any]
CACHE_BYTES = 2**28  # of decoded strips and tiles
JPEG = (6, 7, 34892, 33007)  # whose tables may lie apart


class Regions:
    """Pages of one size and type, whose samples follow one another.

    Args:
        path: The file.
        tiff: Opened.
        pages: Of one image.
        key: The page that describes them all.
    """

    def __init__(self, path: Path, tiff: tifffile.TiffFile, pages: Sequence[Any], key: Any) -> None:
        self.path, self.pages, self.key, self._handle = path, pages, key, tiff.filehandle
        self._cache: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._cached = 0

    @property
    def piece(self) -> int:
        """Bytes that have to be decoded at once."""
        if self._mapped:
            return 0
        tall, wide = self._segment_size
        return tall * wide * self.key.shaped[4] * self.key.dtype.itemsize

    def read(self, top: int, bottom: int, left: int, right: int) -> Array:
        """The samples [bottom - top, right - left, C] of a region; raises anything on damaged files."""
        parts = [self._region(i, top, bottom, left, right) for i in range(len(self.pages))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    @property
    def _mapped(self) -> bool:
        return self.key.is_memmappable and not self.key.is_tiled

    @property
    def _segment_size(self) -> tuple[int, int]:
        """Rows and columns of a tile or strip."""
        if self.key.is_tiled:
            return self.key.tile[-2:]
        return min(self.key.rowsperstrip, self.key.imagelength), self.key.imagewidth

    def _region(self, index: int, top: int, bottom: int, left: int, right: int) -> Array:
        """[h, w, samples] of one page."""
        page, key = self.pages[index], self.key
        if self._mapped:
            planes, _, height, width, samples = key.shaped
            mapped = np.memmap(
                self.path, key.dtype.newbyteorder(page.parent.byteorder), "r", page.dataoffsets[0],
                (planes, height, width, samples),
            )  # fmt: skip
            values = np.array(mapped[:, top:bottom, left:right], key.dtype.newbyteorder("="))
            return np.concatenate(list(values), axis=2)
        out: Array | None = None
        for number in self._segments(top, bottom, left, right):
            (plane, _, y, x, _), segment = self._segment(index, number)
            _, height, width, samples = segment.shape
            if out is None:
                shape = (bottom - top, right - left, key.shaped[0] * samples)
                out = np.zeros(shape, segment.dtype)
            rows, columns = slice(max(top, y), min(bottom, y + height)), slice(max(left, x), min(right, x + width))
            if rows.start < rows.stop and columns.start < columns.stop:
                out[
                    rows.start - top : rows.stop - top,
                    columns.start - left : columns.stop - left,
                    plane * samples : (plane + 1) * samples,
                ] = segment[0, rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        assert out is not None
        return out

    def _segments(self, top: int, bottom: int, left: int, right: int) -> Iterator[int]:
        """The numbers of the strips or tiles of all sample planes that a region touches."""
        key = self.key
        planes, _, height, width, _ = key.shaped
        tall, wide = self._segment_size
        across, down = -(-width // wide), -(-height // tall)
        for plane in range(planes):
            for row in range(top // tall, -(-bottom // tall)):
                for column in range(left // wide, -(-right // wide)):
                    yield (plane * down + row) * across + column

    def _segment(self, index: int, number: int) -> tuple[tuple[int, ...], Array]:
        """Place and pixels [1, h, w, samples] of a strip or tile."""
        page, key = self.pages[index], self.key
        found = self._cache.pop((index, number), None)
        options = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in JPEG else {}
        if found is None:
            offset, count = page.dataoffsets[number], page.databytecounts[number]
            data = None
            if count:
                self._handle.seek(offset)
                data = self._handle.read(count)
            found, place, shape = key.decode(data, number, **options)
            if found is None:  # nothing is stored of an empty one
                found = np.full(shape, key.nodata, key.dtype.newbyteorder("="))
            self._cached += found.nbytes
        else:
            _, place, _ = key.decode(None, number, **options)
        self._cache[index, number] = found
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return place, found
