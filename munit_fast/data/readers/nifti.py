"""Volumes in NIfTI files, .nii and .nii.gz, through nibabel: each slice along an axis is an image."""

from __future__ import annotations

import gzip
import io
import logging
import math
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.fileslice import fileslice

from munit_fast.data.picture import MAX_PIXELS, ImageError, Picture, check_size, type_limits
from munit_fast.data.readers.streams import KeptBytes, read_exactly
from munit_fast.utils import env

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by the first number of a file
_MAX_HEADER = 2**24  # bytes, with its extensions
_PACKED_FACTOR = 16  # voxels of a .nii.gz, which is unpacked as a whole, in largest images
_COLOURS = ("R", "G", "B", "A")
_QUIET = logging.Logger("nibabel", logging.CRITICAL)  # its own speaks to the terminal, for every slice again
_KEPT = KeptBytes(2)


@dataclass(frozen=True)
class NiftiSlice:
    """What `munit_fast.data.volumes` needs to write a volume back.

    Attributes:
        header: nibabel's header of the volume: affines, voxel sizes, units, extensions.
        axis: The axis along which it was cut.
        index: The number of the slice, over all volumes of the file.
    """

    header: Any = field(repr=False)
    axis: int = 2
    index: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the file's array: [X, Y, Z], [X, Y, Z, T] or, with C values a voxel, [X, Y, Z, T, C]."""
        return _shape(self.header)


def pages(file: BinaryIO, axis: int) -> int:
    """How many slices the volumes of the file have together."""
    shape = _shape(_header(_plain(file)))
    return shape[axis] * math.prod(shape[3:4])


def read(file: BinaryIO, page: int, axis: int) -> Picture:
    """Slice number `page`, all slices of one volume before those of the next.

    [H, W] are the other two axes in their order, neither turned nor mirrored. Values are what the header's slope and
    intercept give, in float32; or the file's own where these change nothing.
    """
    header = _header(_plain(file))
    shape, dtype = _shape(header), header.get_data_dtype()
    colour = dtype.names is not None and set(dtype.names) <= set(_COLOURS)
    if not colour and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        raise ImageError(f"voxels of type {dtype}; use integers or floating point of at most 64 bits")
    height, width = (size for i, size in enumerate(shape[:3]) if i != axis)
    check_size(width, height)
    volume, index = divmod(page, shape[axis])
    if not 0 <= volume < math.prod(shape[3:4]):
        raise ImageError(f"there is no slice {page}")
    place: list[Any] = [slice(None)] * len(shape)
    place[axis] = index
    place[3:4] = [volume] if len(shape) > 3 else []
    values = fileslice(_unpacked(file, header), tuple(place), shape, dtype, int(header.get_data_offset()), order="F")
    alpha = None
    if colour:
        alpha = np.ascontiguousarray(values["A"]) if "A" in values.dtype.names else None
        values = np.stack([values[name] for name in "RGB"], axis=-1)
    limits = type_limits(values.dtype)
    slope, intercept = header.get_slope_inter()
    if not colour and (slope, intercept) not in ((None, None), (1.0, 0.0)):
        values, limits = (values.astype(np.float64) * slope + intercept).astype(np.float32), None
    pixels = np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return Picture(pixels, colour, alpha, limits, NiftiSlice(header, axis, page))


def _plain(file: BinaryIO) -> BinaryIO:
    """The file's bytes from the beginning, unpacked as they are read."""
    file.seek(0)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file


def _header(stream: BinaryIO) -> Any:
    """The header and its extensions, from a stream at its beginning."""
    head = stream.read(544)
    size = next((n for n in (int.from_bytes(head[:4], order) for order in ("little", "big")) if n in _HEADERS), 0)
    if not size or len(head) < size:
        raise ImageError("not a NIfTI file")
    if head[344:347] == b"ni1" or head[4:7] == b"ni2":
        raise ImageError("a header whose voxels are in another file; save it as one .nii or .nii.gz")
    offset = float(_HEADERS[size](head[:size], check=False)["vox_offset"])
    if not 0 <= offset <= _MAX_HEADER:  # not for NaN either
        raise ImageError(f"a header of {offset:g} bytes")
    whole = io.BytesIO(head + stream.read(max(0, int(offset) - len(head))))
    header = _HEADERS[size].from_fileobj(whole, check=False)
    header.check_fix(logger=_QUIET, error_level=40)  # what it mends is no concern of who reads a slice
    return header


def _shape(header: Any) -> tuple[int, ...]:
    """Three to five axes: what the file leaves out is 1, and so is not counted at the end."""
    shape = tuple(int(size) for size in header.get_data_shape())
    shape = shape + (1,) * (3 - len(shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 5 or min(shape) < 1:
        raise ImageError(
            f"voxels of shape {list(shape)}; use three axes, volumes along a fourth, channels along a fifth"
        )
    return shape


def _unpacked(file: BinaryIO, header: Any) -> BinaryIO:
    """A seekable file with the plain bytes; those of the last packed volumes are kept for their other slices."""
    stream = _plain(file)
    count = math.prod(header.get_data_shape())
    size = int(header.get_data_offset()) + count * header.get_data_dtype().itemsize
    if stream is file:
        missing = size - file.seek(0, 2)
        if missing > 0:
            raise ImageError(f"the file ends {missing} bytes too early")
        return file
    limit = _PACKED_FACTOR * env.max_pixels(MAX_PIXELS)
    if count > limit:
        raise ImageError(f"more than {limit} voxels; unpack it with gunzip, or raise MUNIT_FAST_MAX_PIXELS")
    return io.BytesIO(_KEPT.get(file, lambda: read_exactly(stream, size)))
