"""NIfTI volumes: slices against nibabel's own arrays, and volumes written back."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from munit_fast.data import FileSource, ImageError, ImageSet, Picture, PixelFormat
from munit_fast.data.readers import count_pages, nifti, read_picture
from munit_fast.data.volumes import volume_format, volumes_of, write_volume

AFFINE = np.array([[-0.7, 0.1, 0, 20], [0, 0.8, -0.2, -11], [0.1, 0, 2.5, 7], [0, 0, 0, 1]])


def saved(path: Path, voxels: np.ndarray, kind: Any = nib.Nifti1Image, **header: float) -> Path:
    image = kind(voxels, AFFINE, dtype=voxels.dtype)
    image.header.set_qform(AFFINE, 1)
    image.header.set_sform(AFFINE, 2)
    image.header.set_xyzt_units("mm", "sec")
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def voxels(*shape: int, dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype) * (10 if dtype == "int16" else 1)


def opened(path: Path, axis: int = 2) -> tuple[list[Picture], list[str]]:
    source = FileSource([path], axis=axis)
    return [source.read(i) for i in range(len(source))], [source.entries[i].file for i in range(len(source))]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["int16", ">i2", "uint8", "uint16", "int32", "int64", "float32", "float64"])
def test_slices_are_those_of_nibabel(tmp_path: Path, dtype: str, kind: Any, name: str, axis: int) -> None:
    path = saved(tmp_path / name, voxels(6, 7, 5, dtype=dtype), kind)
    wanted = np.asarray(nib.load(path).dataobj)
    pictures, _ = opened(path, axis)
    assert len(pictures) == wanted.shape[axis]
    for i, picture in enumerate(pictures):
        assert np.array_equal(picture.pixels[:, :, 0], wanted.take(i, axis)) and picture.pixels.dtype == wanted.dtype
    assert (pictures[0].limits is None) == (wanted.dtype in (np.int16, np.int32, np.int64))


def test_files_without_a_name_are_read_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii.gz", voxels(6, 7, 5))
    data, other = path.read_bytes(), saved(tmp_path / "b.nii.gz", voxels(6, 7, 5)[::-1].copy()).read_bytes()
    assert count_pages("a.nii.gz", io.BytesIO(data)) == 5
    for page in range(5):
        one, two = (read_picture("a.nii.gz", io.BytesIO(x), page).pixels for x in (data, other))
        assert np.array_equal(one, two[::-1]) and np.array_equal(one[:, :, 0], voxels(6, 7, 5)[:, :, page])


def test_a_packed_volume_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.nii.gz", voxels(6, 7, 5))
    read, count = nifti.read_exactly, 0

    def counted(*args: Any) -> bytes:
        nonlocal count
        count += 1
        return read(*args)

    monkeypatch.setattr(nifti, "read_exactly", counted)
    opened(path)
    assert count == 1
    saved(path, voxels(6, 7, 5)[::-1].copy())  # another one of the same name
    assert np.array_equal(opened(path)[0][2].pixels[:, :, 0], voxels(6, 7, 5)[::-1, :, 2])


@pytest.mark.parametrize("shape", [(6, 7, 5, 3), (6, 7, 5, 3, 4), (6, 7, 5, 1, 4), (6, 7), (6, 7, 5, 1)])
def test_volumes_in_time_and_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    whole = voxels(*shape)
    path = saved(tmp_path / "a.nii", whole)
    pictures, _ = opened(path)
    full = whole.reshape(*shape, *(1,) * (5 - len(shape)))
    wanted = [full[:, :, z, t] for t in range(full.shape[3]) for z in range(full.shape[2])]
    assert len(pictures) == len(wanted)
    assert all(np.array_equal(p.pixels, w) for p, w in zip(pictures, wanted))
    written(tmp_path, pictures, [p.pixels for p in pictures], whole)


def written(folder: Path, pictures: list[Picture], slices: list[np.ndarray], wanted: np.ndarray) -> Any:
    write_volume(folder / "back.nii.gz", np.stack(slices), [p.header for p in pictures])
    image = nib.load(folder / "back.nii.gz")
    assert image.shape == wanted.shape and np.array_equal(np.asarray(image.dataobj), wanted)
    return image


def test_slope_and_intercept_give_the_values(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii.gz", voxels(6, 7, 5))
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[112:120] = np.array([0.5, -1024], "<f4").tobytes()
    path.write_bytes(gzip.compress(data))
    pictures, _ = opened(path)
    assert pictures[1].pixels.dtype == np.float32 and pictures[1].limits is None
    assert np.array_equal(pictures[1].pixels[:, :, 0], nib.load(path).get_fdata()[:, :, 1])
    image = written(tmp_path, pictures, [p.pixels for p in pictures], nib.load(path).get_fdata())
    assert image.header.get_data_dtype() == np.float32 and image.header.get_slope_inter() in ((None, None), (1, 0))


def test_colours(tmp_path: Path) -> None:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    plain = voxels(6, 7, 5, 3, dtype="uint8")
    path = saved(tmp_path / "a.nii", plain.view(dtype)[..., 0])
    pictures, _ = opened(path)
    assert pictures[3].colour and np.array_equal(pictures[3].pixels, plain[:, :, 3])
    written(tmp_path, pictures, [p.pixels for p in pictures], plain.view(dtype)[..., 0])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_volume_goes_back_with_its_header(tmp_path: Path, kind: Any, axis: int) -> None:
    path = saved(tmp_path / "a.nii.gz", voxels(6, 7, 5), kind, cal_max=99, descrip=b"scan 1")
    before = nib.load(path).header
    before.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    pictures, _ = opened(path, axis)
    assert volume_format(pictures[0].header) == "nii.gz"
    image = written(tmp_path, pictures, [p.pixels[:, :, 0] for p in pictures], voxels(6, 7, 5))
    assert type(image) is kind
    changed = {key for key in before if before[key].tobytes() != image.header[key].tobytes()}
    assert changed <= {"cal_max", "vox_offset", "scl_slope", "scl_inter"} and image.header["cal_max"] == 0
    assert np.array_equal(image.affine, nib.load(path).affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("codes", "factor"), [((1, 2), 2), ((1, 0), 2), ((0, 1), 3), ((0, 0), 2)])
def test_resized_slices_have_voxels_of_another_size(
    tmp_path: Path, codes: tuple[int, int], factor: int, axis: int
) -> None:
    turned = np.diag([0.7, 0.8, 2.5, 1.0])
    turned[:3, 3] = 20, -11, 7
    header = nib.Nifti1Image(voxels(6, 4, 8), turned).header
    header.set_qform(turned, codes[0])
    header.set_sform(turned, codes[1])
    image = nib.Nifti1Image(voxels(6, 4, 8), None, header)
    nib.save(image, tmp_path / "a.nii")
    pictures, _ = opened(tmp_path / "a.nii", axis)
    larger = [p.pixels.repeat(factor, 0).repeat(factor, 1) for p in pictures]
    write_volume(tmp_path / "b.nii", np.stack(larger), [p.header for p in pictures])
    before, back = nib.load(tmp_path / "a.nii"), nib.load(tmp_path / "b.nii")
    scale = np.array([1 if i == axis else factor for i in range(3)])
    assert back.shape == tuple(np.array([6, 4, 8]) * scale)
    np.testing.assert_allclose(back.header.get_zooms(), image.header.get_zooms() / scale, rtol=1e-6)
    assert (int(back.header["qform_code"]), int(back.header["sform_code"])) == codes
    if codes == (0, 0):
        return
    # The corners of the volume stay where they are: half a voxel beyond the centres of the outermost ones.
    for corner in ((0, 0, 0), (1, 1, 1), (1, 0, 1)):
        ends = [nib.affines.apply_affine(x.affine, np.array(corner) * x.shape - 0.5) for x in (before, back)]
        np.testing.assert_allclose(ends[0], ends[1], atol=1e-4)


def test_a_part_of_a_volume_is_not_written(tmp_path: Path) -> None:
    pictures, files = opened(saved(tmp_path / "a.nii", voxels(6, 7, 5)))
    headers = [p.header for p in pictures]
    assert volumes_of(headers[::-1], files) == [[4, 3, 2, 1, 0]]
    with pytest.raises(ImageError, match=r"4 slices of a volume that has 5; pages: all"):
        write_volume(tmp_path / "b.nii", np.zeros((4, 6, 7), np.int16), headers[:4])
    with pytest.raises(ImageError, match="NIfTI file has no DICOM header"):
        write_volume(tmp_path / "b.dcm", np.zeros((5, 6, 7), np.int16), headers)
    assert not list(tmp_path.glob("b*"))


def test_what_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", voxels(6, 7, 5))
    whole = path.read_bytes()
    cases = {
        "ends 1 bytes too early": whole[:-1],
        "not a NIfTI file": b"\0" * 400,
        "in another file": whole[:344] + b"ni1\0" + whole[348:],
        "a header of nan bytes": whole[:108] + np.array(np.nan, "<f4").tobytes() + whole[112:],
        "ends 26": gzip.compress(whole[:-26]),
    }
    for reason, data in cases.items():
        with pytest.raises(ImageError, match=reason):
            read_picture("a.nii", io.BytesIO(data))
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), path)
    with pytest.raises(ImageError, match="voxels of type complex64"):
        opened(path)


def test_a_packed_file_gets_no_memory_for_what_it_states(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", voxels(6, 7, 5))
    data = bytearray(path.read_bytes())
    data[42:50] = np.array([1024, 1024, 32767, 1], "<i2").tobytes()
    with pytest.raises(ImageError, match=r"more than .* voxels; unpack it"):
        read_picture("a.nii.gz", io.BytesIO(gzip.compress(data)))
    data[42:50] = np.array([1024, 1024, 1024, 1], "<i2").tobytes()
    with pytest.raises(ImageError, match="too early"):
        read_picture("a.nii.gz", io.BytesIO(gzip.compress(data)))


def test_volumes_train_with_a_window_along_an_axis(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii.gz", voxels(40, 36, 5) - 100)
    images = ImageSet(FileSource([path], axis=0), PixelFormat(1, (-160.0, 240.0), domain="a"))
    assert len(images) == 40 and images.where(3).endswith("a.nii.gz#3")
    wanted = ((voxels(40, 36, 5)[3].astype(float) - 100 + 160) / 400).clip(0, 1)
    np.testing.assert_allclose(images.image(3)[:, :, 0], wanted, atol=1e-6)
