"""Volumes as NIfTI files."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np

from munit_fast.data.picture import Array, ImageError
from munit_fast.data.readers.nifti import NiftiSlice
from munit_fast.data.volumes.geometry import resized

_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def nifti_bytes(slices: Array, headers: Sequence[Any], packed: bool) -> bytes:
    """The file of slices [S, H, W, C] whose headers are `NiftiSlice` or `DicomSlice`. Raises ImageError."""
    if isinstance(headers[0], NiftiSlice):
        voxels, header = _of_nifti(slices, headers)
    else:
        from munit_fast.data.volumes.dicom import affine

        voxels = slices.transpose(2, 1, 0, 3)[:, :, :, None]  # columns, rows, slices
        header = nib.Nifti1Header()
        header.set_sform(affine(headers, slices.shape[1:3]), "scanner")
        header.set_qform(header.get_sform(), "scanner")
        header.set_xyzt_units("mm")
    given = tuple(header.get_data_shape()) if isinstance(headers[0], NiftiSlice) else ()
    voxels, intent = _channels(voxels)
    if voxels.ndim == 4:
        kept = given[3:] if math.prod(given[3:]) == voxels.shape[3] else voxels.shape[3:]
        voxels = voxels.reshape(*voxels.shape[: min(3, len(given) or 3)], *kept)  # no axis more or less than before
    header.set_intent(intent)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    for key in ("cal_min", "cal_max"):  # a window of the input's values
        header[key] = 0
    image = (nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image)(voxels, None, header)
    data: bytes = image.to_bytes()
    return gzip.compress(data, 6, mtime=0) if packed else data


def _of_nifti(slices: Array, headers: Sequence[NiftiSlice]) -> tuple[Array, Any]:
    """Voxels [X, Y, Z, T, C] and their header."""
    axis, shape = headers[0].axis, headers[0].shape
    volumes = math.prod(shape[3:4])
    if [header.index for header in headers] != list(range(shape[axis] * volumes)):
        raise ImageError(
            f"{len(slices)} slices of a volume that has {shape[axis] * volumes}; pages: all takes them all"
        )
    voxels = slices.reshape(volumes, shape[axis], *slices.shape[1:])
    voxels = np.moveaxis(np.moveaxis(voxels, 0, 3), 0, axis)
    header = headers[0].header.copy()
    if voxels.shape[:3] != shape[:3]:
        step = resized(shape[:3], voxels.shape[:3])
        forms = (header.get_qform(coded=True), header.get_sform(coded=True))
        header["pixdim"][1:4] *= np.diag(step)[:3]
        for (affine, code), place in zip(forms, (header.set_qform, header.set_sform)):
            if affine is not None:
                place(affine @ step, int(code))
    return voxels, header


def _channels(voxels: Array) -> tuple[Array, str]:
    """Voxels [X, Y, Z, T, C] → [X, Y, Z, T] where C is one or makes a colour, and the code of what they are."""
    if voxels.shape[4] == 1:
        return voxels[..., 0], "none"
    if voxels.shape[4] == 3 and voxels.dtype == np.uint8:
        return np.ascontiguousarray(voxels).view(_RGB)[..., 0], "none"
    return voxels, "vector"
