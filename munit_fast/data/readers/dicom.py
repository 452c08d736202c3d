"""DICOM images, .dcm, through pydicom: each frame is an image, in the values of its modality (CT: Hounsfield units)."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from munit_fast.data.picture import Array, ImageError, Picture, check_size, type_limits
from munit_fast.data.readers import dicom_codecs

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # all of them become RGB
_PALETTE = "PALETTE COLOR"

dicom_codecs.register()


@dataclass(frozen=True)
class DicomSlice:
    """What `munit_fast.data.volumes` needs to write an image or volume back.

    Attributes:
        dataset: pydicom's data set of the file, without its pixels.
        index: The number of the frame.
        frames: How many the file has.
    """

    dataset: Any = field(repr=False)
    index: int = 0
    frames: int = 1


def pages(file: BinaryIO) -> int:
    """How many frames the file has."""
    return _frames(_dataset(file))


def read(file: BinaryIO, page: int) -> Picture:
    """Frame number `page`.

    Grey values are rescaled by the slope and intercept of the file, to whole numbers where these are whole; MONOCHROME1
    is inverted, so that more is brighter. The window of the file is not applied. Colours are RGB.
    """
    dataset = _dataset(file)
    frames = _frames(dataset)
    if not 0 <= page < frames:
        raise ImageError(f"there is no frame {page}")
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if rows is None or columns is None:
        raise ImageError(f"{_kind(dataset)}, without an image")
    check_size(int(columns), int(rows))
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    if photometric not in (*_GREY, *_COLOUR, _PALETTE):
        raise ImageError(
            f"PhotometricInterpretation {photometric[:20]!r}; use {', '.join((*_GREY, *_COLOUR, _PALETTE))}"
        )
    if "ModalityLUTSequence" in dataset:
        raise ImageError("its values go through a table (Modality LUT Sequence), not through a slope and an intercept")
    values = pixel_array(cast(BinaryIO, _Bytes(file)), index=page)
    header = DicomSlice(dataset, page, frames)
    if photometric == _PALETTE:
        values = apply_color_lut(values, dataset)[:, :, :3]
    if photometric not in _GREY:
        top = 2 ** int(dataset.BitsStored) - 1 if photometric != _PALETTE else np.iinfo(values.dtype).max
        return Picture(_native(values), colour=True, limits=(0.0, float(top)) if top < 2**16 else None, header=header)
    if values.ndim != 2:
        raise ImageError(f"grey frames of shape {list(values.shape)}")
    return _grey(values, dataset, photometric, header)


def _grey(values: Array, dataset: Any, photometric: str, header: DicomSlice) -> Picture:
    limits = type_limits(values.dtype)
    if values.dtype.kind in "iu":
        bits = int(dataset.BitsStored)
        low, high = (0, 2**bits - 1) if values.dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        limits = (0.0, float(high)) if low == 0 and bits <= 16 else None
        if photometric == "MONOCHROME1":
            values = (low + high - values.astype(np.int64)).clip(low, high).astype(values.dtype)
    elif photometric == "MONOCHROME1":
        raise ImageError("floating-point values of MONOCHROME1 have no white to be inverted at")
    slope, intercept = rescale(dataset, header.index)
    if (slope, intercept) != (1.0, 0.0):
        limits = None
        scaled = values.astype(np.float64) * slope + intercept
        whole = slope.is_integer() and intercept.is_integer() and values.dtype.kind in "iu"
        fits = whole and abs(scaled).max() < 2**31
        values = scaled.astype(np.int32 if fits else np.float32)
    return Picture(_native(values)[:, :, None], limits=limits, header=header)


def rescale(dataset: Any, frame: int) -> tuple[float, float]:
    """Slope and intercept of a frame: of the file, or of the frame's own group or the shared one. Raises ImageError."""
    holder = dataset
    for name, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        groups = dataset.get(name)
        if groups and place < len(groups) and groups[place].get("PixelValueTransformationSequence"):
            holder = groups[place].PixelValueTransformationSequence[0]
    found = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
    slope, intercept = (float(standard if x is None else x) for x, standard in zip(found, (1, 0)))
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ImageError(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} give no values")
    return slope, intercept


def _dataset(file: BinaryIO) -> Any:
    """Everything before the pixels."""
    stream = cast(BinaryIO, _Bytes(file))
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)  # force: older files begin without "DICM"
    dataset.buffer = None  # the header outlives the file
    return dataset


def _frames(dataset: Any) -> int:
    return max(1, int(dataset.get("NumberOfFrames") or 1))


def _kind(dataset: Any) -> str:
    found = dataset.get("SOPClassUID")
    return "not a DICOM image" if found is None else f"a DICOM file of the kind {getattr(found, 'name', found)}"


def _native(values: Array) -> Array:
    return np.array(values, dtype=values.dtype.newbyteorder("="), order="C")


class _Bytes:
    """The file for pydicom, which would take memory for any length that a damaged file states."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self.seek, self.tell = file.seek, file.tell
        file.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:  # so it reads what is packed as a whole
            raise ImageError("a deflated data set may unpack to any size; save it in another transfer syntax")
        return self._file.read(min(size, max(0, self._size - self._file.tell())))
