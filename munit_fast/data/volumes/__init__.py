"""Volumes written back: slices with the header that their reader left in `Picture.header`, as NIfTI and DICOM files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from munit_fast.data.picture import Array, ImageError
from munit_fast.io.atomic import atomic_write_bytes

if TYPE_CHECKING:
    from munit_fast.data.readers.dicom import DicomSlice
    from munit_fast.data.readers.nifti import NiftiSlice

VOLUME_EXTENSIONS = (".nii", ".nii.gz", ".dcm")


def volume_format(header: object) -> str | None:
    """The extension in which images with such a header are written back: "nii.gz", "dcm", or None: it is no volume."""
    return {"NiftiSlice": "nii.gz", "DicomSlice": "dcm"}.get(type(header).__name__)


def volumes_of(headers: Sequence[NiftiSlice | DicomSlice], files: Sequence[str]) -> list[list[int]]:
    """Which slices make one volume, in their order there.

    Those of a NIfTI file and those of a DICOM file with several frames, in the order of the file; DICOM files of one
    series and folder along the normal of their planes, or by InstanceNumber where they have no positions.

    Args:
        headers: Of all slices.
        files: Their files, as their source names them.

    Returns:
        Indices of slices for each volume; the volumes in the order of their first slices.
    """
    found: dict[object, list[int]] = {}
    for i, (header, file) in enumerate(zip(headers, files)):
        key: object = file
        if volume_format(header) == "dcm" and header.frames == 1:  # type: ignore[union-attr]
            key = (file.rpartition("/")[0], str(header.dataset.get("SeriesInstanceUID", file)))  # type: ignore[union-attr]
        found.setdefault(key, []).append(i)
    ordered = []
    for indices in found.values():
        if volume_format(headers[indices[0]]) == "dcm":
            from munit_fast.data.volumes.dicom import place

            indices = sorted(indices, key=lambda i: place(headers[i]))  # type: ignore[arg-type]
        else:
            indices = sorted(indices, key=lambda i: headers[i].index)
        ordered.append(indices)
    return ordered


def write_volume(
    path: Path,
    slices: Array,
    headers: Sequence[NiftiSlice | DicomSlice],
    *,
    label: str = "",
    limits: tuple[float, float] | None = None,
    durable: bool = True,
) -> None:
    """Write slices as one volume with the geometry of those that they were made from.

    NIfTI keeps affines, voxel sizes, units and extensions; DICOM keeps the data set, under new identifiers that are a
    function of the old ones and of `label`, as a derived image. Slices that were resized have voxels of another size,
    and the first one's centre moves with it.

    Args:
        path: Ends in .nii, .nii.gz or .dcm. Slices of DICOM files may be written as NIfTI too.
        slices: [S, H, W] or [S, H, W, C], in the values of their domain. All slices of a NIfTI file or of a DICOM file
            with several frames, in their order; any one slice of a series for .dcm; a whole series for .nii.
        headers: `Picture.header` of each.
        label: What tells results of one input apart, such as "munit_fast style 3".
        limits: (low, high) of the values' domain, for .dcm, which holds 8 or 16 bits. Give the same for all slices of
            a series, so that they are stored alike. None: whole numbers of at most 16 bits are stored as all that
            their type holds, others as what `slices` hold.
        durable: As in `munit_fast.io.atomic.atomic_path`.

    Raises:
        ImageError: The slices are not a whole volume, have no such geometry, or the format cannot hold them.
        FileWriteError: The file cannot be written.
    """
    try:
        data = volume_bytes(path.name, slices, headers, label=label, limits=limits)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    atomic_write_bytes(path, data, durable=durable)


def volume_bytes(
    name: str,
    slices: Array,
    headers: Sequence[NiftiSlice | DicomSlice],
    *,
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> bytes:
    """What `write_volume` writes into a file called `name`. Raises ImageError without a name."""
    name = name.lower()
    if not name.endswith(VOLUME_EXTENSIONS):
        raise ImageError(f"volumes are written as {' '.join(VOLUME_EXTENSIONS)}")
    if slices.ndim not in (3, 4) or len(slices) != len(headers) or 0 in slices.shape:
        raise ImageError(f"slices are [S, H, W] or [S, H, W, C] with a header each, not {list(slices.shape)}")
    if slices.ndim == 3:
        slices = slices[..., None]
    if name.endswith(".dcm"):
        if volume_format(headers[0]) != "dcm":
            raise ImageError("a NIfTI file has no DICOM header; use .nii or .nii.gz")
        from munit_fast.data.volumes.dicom import dicom_bytes

        return dicom_bytes(slices, headers, label, limits)  # type: ignore[arg-type]
    from munit_fast.data.volumes.nifti import nifti_bytes

    return nifti_bytes(slices, headers, packed=name.endswith(".gz"))
