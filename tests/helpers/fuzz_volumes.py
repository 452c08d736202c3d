"""Files of several images for the fuzzer: arrays, NIfTI, DICOM."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from helpers.fuzz_inputs import PIXELS, STEP, Target, check_message, mutate, mutated
from munit_fast.data import FileSource, ImageError, PixelFormat


def array_inputs() -> st.SearchStrategy[bytes]:
    rng = np.random.default_rng(0)
    seeds = []
    for shape in ((9, 8), (9, 8, 4), (5, 9, 8), (2, 9, 8, 4)):
        for dtype in ("u1", ">u2", "<i4", "<f4", "<f8", "?"):
            array, file, archive = rng.integers(0, 2, shape).astype(dtype), io.BytesIO(), io.BytesIO()
            np.save(file, array if dtype != "<f8" else np.asfortranarray(array))
            (np.savez if dtype == "u1" else np.savez_compressed)(archive, a=array, label=np.arange(3), b=array[0])
            seeds += [file.getvalue(), archive.getvalue()]

    def stated(shape: tuple[int, ...], dtype: str, packed: bool) -> bytes:
        file, archive = io.BytesIO(), io.BytesIO()
        np.lib.format.write_array_header_2_0(file, {"descr": dtype, "fortran_order": packed, "shape": shape})
        file.write(bytes(300))
        if not packed:
            return file.getvalue()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
            members.writestr("a.npy", file.getvalue())
        return archive.getvalue()

    sizes = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 7, 256, 2**16, 2**21, 2**40, 2**63]), max_size=5).map(tuple)
    kinds = st.sampled_from(["|u1", "<f4", "|O", "<c8", "|S5", "<f2", "|b1", "<M8[s]"])
    return mutated(seeds) | st.builds(stated, sizes, kinds, st.booleans())


def nifti_inputs() -> st.SearchStrategy[bytes]:
    """Volumes, damaged plainly, or before they are packed, most often in the header."""
    import nibabel as nib

    rng, seeds = np.random.default_rng(0), []
    for shape in ((6, 5), (6, 5, 4), (6, 5, 4, 2), (6, 5, 4, 1, 3)):
        for dtype in ("u1", "<i2", ">i2", "<f4", "<u4"):
            array = rng.integers(0, 99, shape).astype(dtype)
            for kind in (nib.Nifti1Image, nib.Nifti2Image):
                image = kind(array, np.eye(4), dtype=array.dtype)
                image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment"))
                seeds.append(image.to_bytes())

    def packed(data: bytes) -> bytes:
        return gzip.compress(data, 1)

    def header_only(data: bytes, steps: list[tuple[str, float, int, int]]) -> bytes:
        return mutate(data[:352], steps) + data[352:]

    headers = st.builds(header_only, st.sampled_from(seeds), st.lists(STEP, max_size=4))
    plain = mutated(seeds) | headers
    return plain | plain.map(packed) | st.builds(mutate, plain.map(packed), st.lists(STEP, max_size=3))


def dicom_inputs() -> st.SearchStrategy[bytes]:
    import imagecodecs
    import pydicom
    from pydicom.encaps import encapsulate

    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 4096, (2, 9, 8)).astype("<u2"), rng.integers(0, 256, (9, 8, 3), np.uint8)

    def file(pixels: np.ndarray, syntax: str, frames: list[bytes] | None = None, **elements: Any) -> bytes:
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
        data.Rows, data.Columns, data.BitsAllocated = 9, 8, pixels.dtype.itemsize * 8
        data.SamplesPerPixel = 3 if pixels is colour else 1
        data.PhotometricInterpretation = "RGB" if pixels is colour else "MONOCHROME1"
        data.PlanarConfiguration, data.PixelRepresentation, data.BitsStored = 0, 0, 8 if pixels is colour else 12
        data.HighBit, data.NumberOfFrames = data.BitsStored - 1, 1 if pixels is colour else len(pixels)
        data.RescaleSlope, data.RescaleIntercept, data.ImagePositionPatient = "1", "-1024", [0.0, 1, 2]
        group = pydicom.Dataset()
        group.PixelValueTransformationSequence = [pydicom.Dataset()]
        group.PixelValueTransformationSequence[0].RescaleSlope = "2"
        data.SharedFunctionalGroupsSequence = [group]
        for name, value in elements.items():
            setattr(data, name, value)
        data.PixelData = pixels.tobytes() if frames is None else encapsulate(frames)
        data["PixelData"].VR = "OW" if frames is None else "OB"
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = syntax
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, data, enforce_file_format=True)
        return buffer.getvalue()

    seeds = [file(x, syntax) for x in (grey, colour) for syntax in (pydicom.uid.ExplicitVRLittleEndian,)]
    seeds += [file(grey, pydicom.uid.ImplicitVRLittleEndian), file(grey, pydicom.uid.DeflatedExplicitVRLittleEndian)]
    seeds += [file(colour, pydicom.uid.ExplicitVRLittleEndian, PhotometricInterpretation="YBR_FULL")]
    for syntax, encode in (
        (pydicom.uid.JPEGLosslessSV1, lambda x: imagecodecs.jpeg8_encode(x, lossless=True)),
        (pydicom.uid.JPEGExtended12Bit, lambda x: imagecodecs.jpeg8_encode(x, bitspersample=12)),
        (pydicom.uid.JPEGLSLossless, imagecodecs.jpegls_encode),
        (pydicom.uid.JPEG2000Lossless, lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="J2K")),
        (pydicom.uid.HTJ2KLossless, imagecodecs.htj2k_encode),
    ):
        seeds.append(file(grey, syntax, [encode(frame) for frame in grey]))
    seeds.append(file(colour, pydicom.uid.JPEGBaseline8Bit, [imagecodecs.jpeg8_encode(colour)]))
    nested = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff"
    deep = st.integers(1, 3000).map(lambda depth: seeds[0][:400] + b"\x40\x00\x75\x02SQ\0\0" + nested * depth)
    return mutated(seeds) | mutated(seeds) | deep


def stack_target(folder: Path, names: Callable[[bytes], str]) -> Target:
    """Files of several images: the first and the last of them, as they are and within limits."""
    turn = 0

    def run(data: bytes) -> None:
        nonlocal turn
        turn += 1
        path = folder / names(data)
        path.write_bytes(data)
        try:
            source = FileSource([path], axis=turn % 3)
        except ImageError as error:
            check_message(error, never="memory")
            return
        for number, limits in ((0, None), (len(source) - 1, (-1000.0, 3000.0))):
            try:
                picture = source.read(number)
                array = PixelFormat(picture.pixels.shape[2], limits).apply(picture)
            except ImageError as error:
                check_message(error, never="memory")
            else:
                assert array.ndim == 3 and 0 < array.shape[0] * array.shape[1] <= PIXELS
                assert array.dtype in (np.uint8, np.uint16, np.float32)

    return run
