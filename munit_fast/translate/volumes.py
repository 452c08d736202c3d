"""Translations of volumes: all slices of a file in the same styles, written back as one volume for each style."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from munit_fast.data.picture import Array, ImageError, type_limits
from munit_fast.data.readers import kind_of
from munit_fast.data.sources import ImageSource
from munit_fast.data.values import PixelFormat
from munit_fast.data.volumes import volume_bytes
from munit_fast.data.writers import result_dtype
from munit_fast.translate.inputs import Image
from munit_fast.utils.text import one_line

VOLUME_FORMATS = {"nii": "nifti", "nii.gz": "nifti", "dcm": "dicom"}  # and the reader of the files that go back there
_EXACT = "npy"  # whose values these formats hold too
_NAMED = 5  # files that a message names


def check_volumes(source: ImageSource, extension: str, channels: int) -> None:
    """Raise ValueError where a format of volumes does not take what is to be translated.

    Args:
        source: The images.
        extension: A key of `VOLUME_FORMATS`.
        channels: Of the results.
    """
    others = {reader: name for name, reader in VOLUME_FORMATS.items()}
    for i, entry in enumerate(source.entries):
        found = kind_of(PurePosixPath(entry.file).name).module
        if found != VOLUME_FORMATS[extension]:
            advice = "has none; use --format tif or npy"
            if found in others:
                advice = f"is a {found.upper()} file; use --format {others[found]}, tif or npy"
            raise ValueError(
                f"--format {extension} writes {VOLUME_FORMATS[extension].upper()} files back with their headers, and "
                f"{source.where(i)} {advice}"
            )
    if extension == "dcm" and channels not in (1, 3):
        raise ValueError(f"--format dcm holds 1 or 3 channels, and the results have {channels}; use tif or npy")


def style_places(source: ImageSource, extension: str) -> list[int]:
    """The image whose styles each image takes: the first of its file; of DICOM files, where they lie side by side.

    A series is a folder of files, and all its slices have the styles of the first.
    """
    first: dict[str, int] = {}
    files = [entry.file.rpartition("/")[0] if extension == "dcm" else entry.file for entry in source.entries]
    return [first.setdefault(file, place) for place, file in enumerate(files)]


def label_of(about: Mapping[str, Any] | None, direction: str) -> str:
    """What tells the results of one model and options apart from those of others, in DICOM files."""
    known = {k: v for k, v in (about or {}).items() if k not in ("source", "software", "device", "amp", "batch_size")}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    return f"munit-fast {direction} {digest[:8]}"


class Stack:
    """The slices of one file, translated, until all are there.

    Args:
        extension: A key of `VOLUME_FORMATS`.
        target: The format of the results.
        source: The format of the input, where it is to be copied; else None.
        label: Of `label_of`.
    """

    def __init__(self, extension: str, target: PixelFormat, source: PixelFormat | None, label: str) -> None:
        self.extension, self.target, self.source, self.label = extension, target, source, label
        self.headers: list[Any] = []
        self._slices: dict[int | None, list[Array]] = {}

    @property
    def nbytes(self) -> int:
        """Of all slices."""
        return sum(array.nbytes for arrays in self._slices.values() for array in arrays)

    def add(self, image: Image, translations: Any) -> None:
        """Add a slice and its translations [S, C', H, W]."""
        self.headers.append(image.header)
        kept = [(j, y, self.target) for j, y in enumerate(translations)]
        for style, pixels, form in kept if self.source is None else [*kept, (None, image.pixels, self.source)]:
            values = form.values(pixels, result_dtype(_EXACT, form, image.dtype))
            self._slices.setdefault(style, []).append(values)

    def jobs(self, write: Callable[[int | None, bytes], Any], name: str) -> list[Callable[[], Any]]:
        """Functions that encode and write the volume of each style, and of the input (None).

        Args:
            write: Takes a style and the bytes of its file.
            name: What messages call the volume.
        """
        return [partial(self._write, write, style, name) for style in self._slices]

    def _write(self, write: Callable[[int | None, bytes], Any], style: int | None, name: str) -> Any:
        return write(style, self._encode(style, name))

    def _encode(self, style: int | None, name: str) -> bytes:
        form = self.source if style is None else self.target
        slices = np.stack(self._slices.pop(style))
        label = f"{self.label} {'input' if style is None else f'style {style:03d}'}"
        limits = (form.limits if form else None) or type_limits(slices.dtype)  # the same for all files of a series
        try:
            return volume_bytes(f"x.{self.extension}", slices, self.headers, label=label, limits=limits)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None


def lost_slices(found: Sequence[object], places: Sequence[int], source: ImageSource) -> str | None:
    """Why a volume is not written: one line, where some of its slices could not be read; else None.

    Args:
        found: Its slices, or the ImageError of each that could not be read.
        places: Of the slices in their source.
        source: The images.
    """
    lost = {place: str(slice_) for place, slice_ in zip(places, found) if not isinstance(slice_, Image)}
    if not lost:
        return None
    name = source.called(source.entries[places[0]].file)
    first, reason = next(iter(lost.items()))
    reason = reason.removeprefix(f"{source.where(first)}: ").removeprefix(f"{name}: ")
    if len(places) == 1:
        return f"{name}: not written, {reason}"
    return f"{name}: not written, {len(lost)} of its {len(places)} slices cannot be read ({reason})"


def gaps(lost: Sequence[int], source: ImageSource) -> list[str]:
    """A line for each folder of DICOM files some of which are not written: its series have gaps.

    Args:
        lost: Places of the images that were not written.
        source: The images.
    """
    files = [PurePosixPath(entry.file) for entry in source.entries]
    whole = {folder: len(set(of_it)) for folder, of_it in _by_folder(files).items()}
    lines = []
    for folder, of_it in _by_folder([files[place] for place in lost]).items():
        names = list(dict.fromkeys(file.name for file in of_it))
        if len(names) < whole[folder]:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            missing = one_line(", ".join(names[:_NAMED])) + more
            where = source.called(str(folder)) if folder.parts else source.label
            lines.append(f"{where}: {missing} missing from the series that were written, of {whole[folder]} files")
    return lines


def _by_folder(files: Sequence[PurePosixPath]) -> dict[PurePosixPath, list[PurePosixPath]]:
    found: dict[PurePosixPath, list[PurePosixPath]] = {}
    for file in files:
        found.setdefault(file.parent, []).append(file)
    return found
