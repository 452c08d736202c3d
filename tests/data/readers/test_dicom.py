"""DICOM images: values, colours and compressed frames against what was saved, and results written back."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array

from munit_fast.data import FileSource, ImageError, Picture
from munit_fast.data.readers import count_pages, dicom_codecs, kind_of, read_picture
from munit_fast.data.volumes import volume_format, volumes_of, write_volume

DIRECTIONS = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]  # sagittal


def values(*shape: int, low: int = 0, high: int = 4096, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def dicom(pixels: np.ndarray, bits: int = 12, syntax: str = uid.ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """A file of frames [H, W], [H, W, 3] or [N, H, W]."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.CTImageStorage, "1.2.3.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.ImageType, dataset.Modality, dataset.SeriesDescription = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT", "Thorax"
    dataset.PatientName, dataset.WindowCenter, dataset.WindowWidth = "A^B", "40", "400"
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored = pixels.dtype.itemsize * 8, bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [0.5, 0.8], DIRECTIONS
    dataset.ImagePositionPatient, dataset.SliceThickness = [-3.0, -20.0, 10.0], "2"
    frames = elements.pop("frames", None)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes() if frames is None else encapsulate(frames)
    if frames is None and len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset["PixelData"].VR = "OW" if frames is None and pixels.dtype.itemsize > 1 else "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    if syntax == uid.ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def read(data: bytes, page: int = 0, name: str = "x.dcm") -> Picture:
    return read_picture(name, io.BytesIO(data), page)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("dtype", "bits", "limits"),
    [
        ("uint8", 8, (0, 255)),
        ("uint16", 12, (0, 4095)),
        ("uint16", 16, (0, 65535)),
        ("int16", 16, None),
        ("int16", 12, None),
        ("uint32", 32, None),
    ],
)
def test_stored_values_are_kept(dtype: str, bits: int, limits: Any, syntax: str) -> None:
    signed = dtype[0] == "i"
    pixels = values(12, 18, low=-(2 ** (bits - 1)) if signed else 0, high=2 ** (bits - signed), dtype="int64")
    picture = read(dicom(pixels.astype(dtype), bits, syntax))
    assert np.array_equal(picture.pixels[:, :, 0], pixels) and picture.limits == limits and not picture.colour


def test_slope_and_intercept_give_hounsfield_units() -> None:
    stored = values(12, 18)
    picture = read(dicom(stored, RescaleSlope="2", RescaleIntercept="-1024"))
    assert picture.pixels.dtype == np.int32 and picture.limits is None
    assert np.array_equal(picture.pixels[:, :, 0], stored.astype(int) * 2 - 1024)
    picture = read(dicom(stored, RescaleSlope="0.25", RescaleIntercept="1"))
    assert picture.pixels.dtype == np.float32 and np.array_equal(picture.pixels[:, :, 0], stored * 0.25 + 1)
    assert read(dicom(stored, RescaleSlope="1", RescaleIntercept="0")).limits == (0, 4095)
    with pytest.raises(ImageError, match="RescaleSlope 0"):
        read(dicom(stored, RescaleSlope="0"))


def test_more_is_brighter_in_monochrome1() -> None:
    stored = values(12, 18)
    one = read(dicom(stored, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(one.pixels[:, :, 0], 4095 - stored) and one.limits == (0, 4095)
    signed = values(12, 18, low=-2048, high=2048, dtype="int16")
    one = read(dicom(signed, PhotometricInterpretation="MONOCHROME1", RescaleSlope="2"))
    assert np.array_equal(one.pixels[:, :, 0], (-1 - signed.astype(int)) * 2)


def test_frames_are_images_with_their_own_rescaling() -> None:
    stored = values(4, 12, 18)
    groups = []
    for frame in range(4):
        groups.append(Dataset())
        groups[-1].PixelValueTransformationSequence = [Dataset()]
        groups[-1].PixelValueTransformationSequence[0].RescaleSlope = str(frame + 1)
        groups[-1].PixelValueTransformationSequence[0].RescaleIntercept = "0"
    data = dicom(stored, PerFrameFunctionalGroupsSequence=groups)
    assert count_pages("x.dcm", io.BytesIO(data)) == 4
    for frame in range(4):
        assert np.array_equal(read(data, frame).pixels[:, :, 0], stored[frame].astype(int) * (frame + 1))
    with pytest.raises(ImageError, match="no frame 4"):
        read(data, 4)


def test_colours_and_palettes() -> None:
    colours = values(12, 18, 3, high=256, dtype="uint8")
    picture = read(dicom(colours, 8))
    assert picture.colour and np.array_equal(picture.pixels, colours) and picture.limits == (0, 255)
    indices, table = values(12, 18, high=256, dtype="uint8"), values(3, 256, high=65536)
    extra: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, lut in zip(("Red", "Green", "Blue"), table):
        extra[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        extra[f"{name}PaletteColorLookupTableData"] = lut.tobytes()
    picture = read(dicom(indices, 8, **extra))
    assert picture.colour and np.array_equal(picture.pixels, table[:, indices].transpose(1, 2, 0))


CODECS: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    "lossless": (uid.JPEGLosslessSV1, lambda x: imagecodecs.jpeg8_encode(x, lossless=True, bitspersample=12)),
    "lossless14": (uid.JPEGLossless, lambda x: imagecodecs.jpeg8_encode(x, lossless=True, bitspersample=12)),
    "jpegls": (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    "jpeg2000": (
        uid.JPEG2000Lossless,
        lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="J2K", reversible=True),
    ),
    "htj2k": (uid.HTJ2KLossless, lambda x: imagecodecs.htj2k_encode(x, reversible=True)),
}


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_frames_without_loss(codec: str) -> None:
    syntax, encode = CODECS[codec]
    stored = values(3, 64, 80)
    data = dicom(stored, syntax=syntax, frames=[encode(frame) for frame in stored])
    for frame in (2, 0):
        assert np.array_equal(read(data, frame).pixels[:, :, 0], stored[frame])
    wrong = dicom(stored, syntax=syntax, frames=[encode(frame[:-1]) for frame in stored])
    with pytest.raises(ImageError, match="not a readable image"):
        read(wrong)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
@pytest.mark.parametrize("codec", CODECS)
def test_cut_frames_are_refused(codec: str, share: float) -> None:
    syntax, encode = CODECS[codec]
    stored = values(1, 64, 80)
    whole = encode(stored[0])
    with pytest.raises(ImageError, match="not a readable image"):
        read(dicom(stored, syntax=syntax, frames=[whole[: int(share * len(whole))]]))


def test_colours_of_a_lossless_jpeg_are_not_converted() -> None:
    colours = values(64, 80, 3, high=256, dtype="uint8")
    frame = imagecodecs.jpeg8_encode(colours, lossless=True, colorspace="RGB", outcolorspace="RGB")
    picture = read(dicom(colours, 8, uid.JPEGLosslessSV1, frames=[frame]))
    assert np.array_equal(picture.pixels, colours)


def test_12_bits_of_lossy_jpeg() -> None:
    smooth = (np.add.outer(np.arange(64), np.arange(80)) * 28).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(smooth, level=100, bitspersample=12)
    picture = read(dicom(smooth, syntax=uid.JPEGExtended12Bit, frames=[frame]))
    assert np.abs(picture.pixels[:, :, 0].astype(int) - smooth).max() <= 2 and picture.limits == (0, 4095)


def test_the_content_tells_a_file_without_an_ending() -> None:
    data = dicom(values(12, 18))
    assert kind_of("IM0001", data[:132]).module == "dicom" and kind_of("x.png", data[:132]).module == "dicom"
    assert np.array_equal(read(data, name="IM0001").pixels[:, :, 0], values(12, 18))
    assert np.array_equal(read(data[132:]).pixels[:, :, 0], values(12, 18))  # as files before 1995, with no preamble


def test_what_is_refused() -> None:
    stored = values(12, 18)
    for reason, data in {
        "through a table": dicom(stored, ModalityLUTSequence=[Dataset()]),
        "PhotometricInterpretation 'CMYK'": dicom(stored, PhotometricInterpretation="CMYK"),
        "deflated data set": dicom(stored, syntax=uid.DeflatedExplicitVRLittleEndian),
        "not a DICOM image": b"\0" * 128 + b"DICM" + b"\0" * 64,
        "more than .* pixels": dicom(stored, Rows=65535, Columns=65535),
    }.items():
        with pytest.raises(ImageError, match=reason):
            read(data)


def series(folder: Path, count: int = 4, **elements: Any) -> list[Picture]:
    """A series whose files are named in no order."""
    for i in range(count):
        place = {"ImagePositionPatient": [-3.0 + 2.0 * i, -20.0, 10.0], "InstanceNumber": i + 1}
        place |= {"SOPInstanceUID": f"1.2.3.1.{i}", "RescaleSlope": "1", "RescaleIntercept": "-1024"}
        data = dicom(values(8, 12) // (i + 1), **(place | elements))
        (folder / f"{(i * 3) % count}.dcm").write_bytes(data)
    source = FileSource(sorted(folder.glob("*.dcm")))
    pictures = [source.read(i) for i in range(len(source))]
    (order,) = volumes_of([p.header for p in pictures], [entry.file for entry in source.entries])
    return [pictures[i] for i in order]


def test_a_series_is_in_the_order_of_its_planes(tmp_path: Path) -> None:
    pictures = series(tmp_path)
    assert volume_format(pictures[0].header) == "dcm"
    places = [float(p.header.dataset.ImagePositionPatient[0]) for p in pictures]
    assert places in (sorted(places), sorted(places)[::-1]) and len(places) == 4


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_a_derived_series_keeps_geometry_and_patient(tmp_path: Path, dtype: str) -> None:
    pictures = series(tmp_path)
    made = []
    for i, picture in enumerate(pictures):
        pixels = picture.pixels[None, :, :, 0].astype(dtype) + (0 if dtype[0] == "i" else np.float32(0.25))
        write_volume(tmp_path / f"out{i}.dcm", pixels, [picture.header], label="style 1", limits=(-1024.0, 3072.0))
        made.append(pydicom.dcmread(tmp_path / f"out{i}.dcm"))
        back = read((tmp_path / f"out{i}.dcm").read_bytes()).pixels[:, :, 0]
        assert np.abs(back - pixels[0].astype(float)).max() <= (0 if dtype[0] == "i" else 4096 / 65535)
        stated = pixel_array(made[-1]) * float(made[-1].RescaleSlope) + float(made[-1].RescaleIntercept)
        np.testing.assert_allclose(stated, back, rtol=1e-6, atol=1e-3)
        old = picture.header.dataset
        for name in ("PatientName", "StudyInstanceUID", "PixelSpacing", "ImagePositionPatient", "SliceThickness"):
            assert made[-1][name].value == old[name].value
        assert made[-1].SOPClassUID == old.SOPClassUID and "WindowCenter" not in made[-1]
        assert made[-1].SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
        assert list(made[-1].ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert made[-1].SeriesDescription == "Thorax style 1"
        assert made[-1].file_meta.MediaStorageSOPInstanceUID == made[-1].SOPInstanceUID
    assert len({d.SOPInstanceUID for d in made}) == 4 and len({d.SeriesInstanceUID for d in made}) == 1
    assert made[0].SeriesInstanceUID != pictures[0].header.dataset.SeriesInstanceUID
    write_volume(tmp_path / "again.dcm", pixels, [picture.header], label="style 2")
    assert pydicom.dcmread(tmp_path / "again.dcm").SeriesInstanceUID != made[0].SeriesInstanceUID


@pytest.mark.parametrize(
    ("dtype", "limits", "stored"),
    [
        ("int16", (-1000.0, 3000.0), "<i2"),
        ("int32", (-1000.0, 3000.0), "<i2"),
        ("int16", (0.0, 3000.0), "<u2"),
        ("int32", (0.0, 60000.0), "<u2"),
        ("int32", (-1000.0, 60000.0), "<u2"),  # with slope and intercept
        ("uint8", (0.0, 200.0), "|u1"),
        ("int16", None, "<i2"),
        ("int32", None, "<i2"),
        ("uint16", None, "<u2"),
        ("uint8", None, "|u1"),
        ("float32", (-1000.0, 3000.0), "<u2"),
    ],
)
def test_slices_of_one_series_are_stored_alike(
    tmp_path: Path, dtype: str, limits: tuple[float, float] | None, stored: str
) -> None:
    """Whatever values each of them has: one of air alone is negative, one of bone is not."""
    picture, found = read(dicom(values(8, 12))), set()
    for low, high in ((-900, -800), (-900, 100), (100, 199), (0, 0)):
        pixels = np.linspace(low, high, 96).clip(0 if dtype[0] == "u" or (limits and limits[0] == 0) else low, None)
        pixels = pixels.reshape(1, 8, 12).astype(dtype)
        write_volume(tmp_path / "a.dcm", pixels, [picture.header], limits=limits)
        made = pydicom.dcmread(tmp_path / "a.dcm")
        found.add((made.BitsAllocated // 8, made.PixelRepresentation, str(made.RescaleSlope), made.RescaleIntercept))
        back = read((tmp_path / "a.dcm").read_bytes()).pixels[:, :, 0]
        assert np.abs(back - pixels[0].astype(float)).max() <= (0 if made.RescaleSlope == 1 else 1)
    kind = np.dtype(stored)
    assert {one[:2] for one in found} == {(kind.itemsize, int(kind.kind == "i"))} and len(found) == 1


def test_values_outside_the_limits_are_kept(tmp_path: Path) -> None:
    picture = read(dicom(values(8, 12)))
    pixels = np.full((1, 8, 12), -5, np.int16)
    write_volume(tmp_path / "a.dcm", pixels, [picture.header], limits=(0.0, 100.0))
    assert (read((tmp_path / "a.dcm").read_bytes()).pixels == -5).all()


def test_the_same_result_is_the_same_file(tmp_path: Path) -> None:
    picture = read(dicom(values(8, 12)))
    for name in "ab":
        write_volume(tmp_path / f"{name}.dcm", picture.pixels[None], [picture.header], label="x")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_resized_pixels_have_another_spacing(tmp_path: Path) -> None:
    picture = read(dicom(values(8, 12)))
    write_volume(tmp_path / "a.dcm", picture.pixels.repeat(2, 0).repeat(4, 1)[None], [picture.header])
    made = pydicom.dcmread(tmp_path / "a.dcm")
    assert [float(x) for x in made.PixelSpacing] == [0.25, 0.2] and (made.Rows, made.Columns) == (16, 48)
    # Rows go along y with 0.8 mm a column, columns along -z with 0.5 mm a row: the corner moves by half a voxel less.
    wanted = [-3, -20 - 0.4 + 0.1, 10 + 0.25 - 0.125]
    np.testing.assert_allclose([float(x) for x in made.ImagePositionPatient], wanted, atol=1e-9)


def test_several_frames_go_back_into_one_file(tmp_path: Path) -> None:
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.8]
    shared.PixelValueTransformationSequence = [Dataset()]
    shared.PixelValueTransformationSequence[0].RescaleSlope = "2"
    shared.PixelValueTransformationSequence[0].RescaleIntercept = "-9"
    for i in range(3):
        frames.append(Dataset())
        frames[-1].PlanePositionSequence = [Dataset()]
        frames[-1].PlanePositionSequence[0].ImagePositionPatient = [0.0, 0.0, float(i)]
        frames[-1].PlaneOrientationSequence = [Dataset()]
        frames[-1].PlaneOrientationSequence[0].ImageOrientationPatient = [1.0, 0, 0, 0, 1, 0]
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
    bare: dict[str, Any] = {"PixelSpacing": None, "ImagePositionPatient": None, "ImageOrientationPatient": None}
    data = dicom(values(3, 8, 12), **groups, **bare)
    pictures = [read(data, i) for i in range(3)]
    stack = np.stack([p.pixels for p in pictures]).astype(np.int16)
    write_volume(tmp_path / "a.dcm", stack, [p.header for p in pictures])
    back = (tmp_path / "a.dcm").read_bytes()
    assert count_pages("a.dcm", io.BytesIO(back)) == 3
    assert all(np.array_equal(read(back, i).pixels, stack[i]) for i in range(3))
    write_volume(tmp_path / "b.dcm", stack.repeat(2, 1).repeat(2, 2), [p.header for p in pictures])
    made = pydicom.dcmread(tmp_path / "b.dcm")
    position = made.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient
    np.testing.assert_allclose([float(x) for x in position], [-0.2, -0.125, 2])
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(x) for x in measures.PixelSpacing] == [0.25, 0.4]
    write_volume(tmp_path / "c.nii", stack, [p.header for p in pictures])
    assert nib.load(tmp_path / "c.nii").shape == (12, 8, 3)
    with pytest.raises(ImageError, match="2 frames for a DICOM file of 3"):
        write_volume(tmp_path / "d.dcm", stack[:2], [p.header for p in pictures[:2]])


def test_colours_are_written_as_a_secondary_capture(tmp_path: Path) -> None:
    picture = read(dicom(values(8, 12)))
    colours = values(1, 8, 12, 3, high=256, dtype="uint8")
    write_volume(tmp_path / "a.dcm", colours, [picture.header])
    assert pydicom.dcmread(tmp_path / "a.dcm").SOPClassUID == uid.SecondaryCaptureImageStorage
    assert np.array_equal(read((tmp_path / "a.dcm").read_bytes()).pixels, colours[0])
    with pytest.raises(ImageError, match="1 or 3 channels, not 4"):
        write_volume(tmp_path / "b.dcm", np.zeros((1, 8, 12, 4), np.uint8), [picture.header])


def test_a_series_becomes_a_nifti_volume_in_place(tmp_path: Path) -> None:
    pictures = series(tmp_path)
    stack = np.stack([p.pixels for p in pictures])
    write_volume(tmp_path / "a.nii.gz", stack, [p.header for p in pictures])
    image = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), stack[..., 0].transpose(2, 1, 0))
    for slice_, row, column in ((0, 0, 0), (3, 7, 11), (2, 5, 1)):
        dataset = pictures[slice_].header.dataset
        place = np.array([float(x) for x in dataset.ImagePositionPatient])
        place += np.array(DIRECTIONS[:3]) * 0.8 * column + np.array(DIRECTIONS[3:]) * 0.5 * row
        found = nib.affines.apply_affine(image.affine, (column, row, slice_))
        np.testing.assert_allclose(found, place * (-1, -1, 1), atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), (0.8, 0.5, 2), rtol=1e-6)
    with pytest.raises(ImageError, match="distances make no NIfTI volume"):
        write_volume(tmp_path / "b.nii", stack[[0, 1, 3]], [pictures[i].header for i in (0, 1, 3)])


@pytest.mark.parametrize("codec", CODECS)
def test_a_small_frame_that_states_many_pixels_is_not_decoded(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    syntax, encode = CODECS[codec]
    frame = bytearray(encode(values(64, 80)))
    high, wide = (64).to_bytes(2, "big"), (80).to_bytes(2, "big")
    for size, stated in ((high + wide, b"\xff\x00\xff\x00"), (b"\0\0" + wide + b"\0\0" + high, b"\0\0\xff\0" * 2)):
        frame = frame.replace(size, stated, 1)
    decoded = []
    monkeypatch.setitem(dicom_codecs.DECODERS, uid.UID(syntax), ("JPEG8", lambda x, **_: decoded.append(x)))
    data = dicom(values(1, 64, 80), syntax=syntax, frames=[bytes(frame)])
    with pytest.raises(ImageError, match=r"a frame of 65280x65280 where the file states 80x64"):
        read(data)
    assert not decoded
