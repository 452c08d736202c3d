"""Images and series as DICOM files: derived ones, under new identifiers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from munit_fast.data.picture import Array, ImageError
from munit_fast.data.readers.dicom import DicomSlice
from munit_fast.data.volumes.geometry import Matrix, resized

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
# What describes the values, the storage or the signatures of the input.
# fmt: off
_OUTDATED = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTSequence", "VOILUTFunction",
    "IconImageSequence", "PixelAspectRatio", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "DigitalSignaturesSequence", "MACParametersSequence",
    "PlanarConfiguration", "SmallestPixelValueInSeries", "LargestPixelValueInSeries", "RescaleType",
    "DoseGridScaling", "PresentationLUTShape",
)
# fmt: on


def dicom_bytes(slices: Array, headers: Sequence[DicomSlice], label: str, limits: tuple[float, float] | None) -> bytes:
    """The file of frames [S, H, W, C] of one file. Raises ImageError."""
    first = headers[0]
    if [(h.index, h.frames) for h in headers] != [(i, first.frames) for i in range(len(slices))] or len(
        slices
    ) != first.frames:
        raise ImageError(f"{len(slices)} frames for a DICOM file of {first.frames}; write each file's own, all of them")
    dataset = deepcopy(first.dataset)
    for name in _OUTDATED:
        if name in dataset:
            delattr(dataset, name)
    for element in [element.tag for element in dataset if 0x6000 <= element.tag.group < 0x6100]:  # overlays
        del dataset[element]
    _set_pixels(dataset, slices, limits)
    _set_geometry(dataset, slices.shape[1:3], first)
    _set_identity(dataset, first.dataset, label)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def place(header: DicomSlice) -> tuple[float, float]:
    """A slice's place in its series: along the normal of its plane, or where it has none by its number."""
    found = _geometry(header)
    number = float(header.dataset.get("InstanceNumber") or header.index)
    if found is None:
        return 0.0, number
    position, rows, columns, _ = found
    return float(np.dot(np.cross(rows, columns), position)), number


def affine(headers: Sequence[DicomSlice], size: Sequence[int]) -> Matrix:
    """[4, 4]: millimetres to the right, to the front and up, of a voxel (column, row, slice) of slices in their order.

    Args:
        headers: Of the slices.
        size: Their rows and columns, which may have been resized.

    Raises:
        ImageError: They have no positions, differ in direction or spacing, or lie at uneven distances.
    """
    found = [_geometry(header) for header in headers]
    first = found[0]
    if first is None or any(one is None for one in found):
        raise ImageError("DICOM slices without position, orientation or spacing make no NIfTI volume; use .dcm")
    position, along_row, along_column, spacing = first
    places = np.array([one[0] for one in found if one is not None])
    same = all(
        one is not None and all(np.allclose(a, b, atol=1e-4) for a, b in zip(one[1:], first[1:])) for one in found
    )
    normal = np.cross(along_row, along_column)
    step = normal * float(headers[0].dataset.get("SliceThickness") or 1)
    if len(places) > 1:
        step = (places[-1] - places[0]) / (len(places) - 1)
    uneven = np.abs(places - (position + np.arange(len(places))[:, None] * step)).max()
    if not same or uneven > 0.01 * np.linalg.norm(step) or np.linalg.norm(step) == 0:
        raise ImageError("DICOM slices of different directions, spacings or distances make no NIfTI volume; use .dcm")
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = along_row * spacing[1], along_column * spacing[0]
    matrix[:3, 2], matrix[:3, 3] = step, position
    dataset = headers[0].dataset
    old, new = (int(dataset.Columns), int(dataset.Rows), 1), (size[1], size[0], 1)
    placed: Matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix @ resized(old, new)  # DICOM's axes: left, back, up
    return placed


def _geometry(header: DicomSlice) -> tuple[Matrix, Matrix, Matrix, Matrix] | None:
    """Position, directions along a row and along a column, spacing (of rows, of columns) of a frame."""
    values = []
    for name, length in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        value = next((h.get(name) for h in _holders(header.dataset, header.index) if h.get(name)), None)
        if value is None or len(value) != length:
            return None
        values.append(np.array([float(number) for number in value]))
    return values[0], values[1][:3], values[1][3:], values[2]


def _holders(dataset: Any, frame: int | None = None) -> Iterator[Any]:
    """The data set and the items that describe frames: of one of them, or of all."""
    yield dataset
    groups = list(dataset.get(_SHARED) or [])
    frames = list(dataset.get(_PER_FRAME) or [])
    for group in groups + (frames if frame is None else frames[frame : frame + 1]):
        for element in group:
            if element.VR == "SQ":
                yield from element.value


def _set_pixels(dataset: Any, slices: Array, limits: tuple[float, float] | None) -> None:
    channels = slices.shape[3]
    if channels not in (1, 3):
        raise ImageError(f"DICOM images have 1 or 3 channels, not {channels}; use .nii.gz or .npy")
    stored, slope, intercept = _stored(slices, limits)
    if channels == 3 and (stored.dtype.kind == "i" or (slope, intercept) != ("1", "0")):
        raise ImageError("DICOM colours are whole numbers of 8 or 16 bits from 0; use .nii.gz or .npy")
    dataset.Rows, dataset.Columns = slices.shape[1:3]
    dataset.SamplesPerPixel = channels
    dataset.PhotometricInterpretation = "RGB" if channels == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(stored.dtype.kind == "i")
    if channels == 3:
        dataset.PlanarConfiguration = 0
        several = len(slices) > 1
        dataset.SOPClassUID = (
            MultiFrameTrueColorSecondaryCaptureImageStorage if several else SecondaryCaptureImageStorage
        )
    for group in (*(dataset.get(_SHARED) or ()), *(dataset.get(_PER_FRAME) or ())):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if name in group:
                delattr(group, name)
    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in dataset:
            delattr(dataset, name)
    if channels == 1:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        for group in (dataset.get(_SHARED) or [])[:1]:
            item = Dataset()
            item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "US"
            group.PixelValueTransformationSequence = [item]
    dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    dataset["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"


def _stored(values: Array, limits: tuple[float, float] | None) -> tuple[Array, str, str]:
    """Values as 8 or 16 bits little endian, with the slope and intercept that give them back.

    The type is that of all values between the limits, or of all that `values.dtype` holds, so that the slices of a
    series agree; values outside the limits widen it.
    """
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu":
        least, most = limits or (low, high)
        if limits is None and values.dtype.itemsize <= 2:
            least, most = np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
        kinds = ["<u2", "<i2"] if limits or values.dtype.kind == "u" else ["<i2", "<u2"]
        for kind in ["u1", *kinds] if values.dtype.itemsize == 1 else kinds:
            if np.iinfo(kind).min <= min(low, least) and max(high, most) <= np.iinfo(kind).max:
                return np.ascontiguousarray(values, kind), "1", "0"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("NaN or infinite values")
    low, high = limits or (low, high)
    # Numbers in the file have 16 letters: what is read back uses these.
    intercept = format_number_as_ds(low)
    slope = format_number_as_ds(max((high - low) / 65535, np.finfo(np.float32).tiny))
    steps = (values.astype(np.float64) - float(intercept)) / float(slope)
    return steps.round().clip(0, 65535).astype("<u2"), slope, intercept


def _set_geometry(dataset: Any, size: Sequence[int], header: DicomSlice) -> None:
    """Spacings and positions of planes whose pixels were resized."""
    old = (int(header.dataset.Rows), int(header.dataset.Columns))
    if tuple(size) == old:
        return
    ratio = np.array(old, np.float64) / np.array(size)
    for frame in range(header.frames):
        found = _geometry(DicomSlice(header.dataset, frame, header.frames))
        if found is None:
            continue
        position, along_row, along_column, spacing = found
        shift = (ratio - 1) / 2 * spacing
        moved = position + along_row * shift[1] + along_column * shift[0]
        for holder in _holders(dataset, frame):
            if holder.get("ImagePositionPatient"):
                holder.ImagePositionPatient = [format_number_as_ds(float(x)) for x in moved]
    for holder in _holders(dataset):
        for name in _SPACINGS:
            if holder.get(name):
                numbers = np.array([float(x) for x in holder.get(name)]) * ratio
                setattr(holder, name, [format_number_as_ds(float(x)) for x in numbers])


def _set_identity(dataset: Any, source: Any, label: str) -> None:
    instance, series = str(source.get("SOPInstanceUID", "")), str(source.get("SeriesInstanceUID", ""))
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.get("SOPClassUID", ""), instance
    dataset.SourceImageSequence = [reference]
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[instance, "instance", label])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[series, "series", label])
    if "SOPClassUID" not in dataset:
        dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.ImageType = ["DERIVED", "SECONDARY", *list(source.get("ImageType") or [])[2:]]
    dataset.DerivationDescription = f"Translated by munit_fast, no measurement. {label}".strip()[:1024]
    dataset.SeriesDescription = f"{source.get('SeriesDescription') or ''} {label}".strip()[:64]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
