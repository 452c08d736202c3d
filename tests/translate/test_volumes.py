"""Volumes in, volumes out; images of many channels; grids of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

import munit_fast as mf
from munit_fast.data import FileSource
from munit_fast.translate import TranslateOptions, translate_files
from tests.data.readers.test_dicom import dicom

AFFINE = np.diag([-0.7, 0.8, 2.5, 1.0])


def made(small_config: dict[str, Any], **over: Any) -> mf.MUNIT:
    torch.manual_seed(0)
    ranges = {"input_dim_a": 1, "input_dim_b": 1, "range_a": [-1000, 1000], "range_b": [0, 400]}
    return mf.MUNIT(mf.make_config(small_config | ranges | {"new_size": "none"} | over)).eval()


def volume(path: Path, seed: int = 0, shape: tuple[int, ...] = (36, 40, 5)) -> Path:
    voxels = np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def options(**over: Any) -> TranslateOptions:
    return TranslateOptions(**{"num_style": 2, "extension": "nii.gz", "batch_size": 2} | over)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_volume_gives_a_volume_for_each_style(small_config: dict[str, Any], tmp_path: Path, axis: int) -> None:
    model = made(small_config, slice_axis=axis)
    path = volume(tmp_path / "ct.nii.gz")
    found = translate_files(model, path, tmp_path / "out", options())
    assert sorted(p.name for p in found.written) == ["input.nii.gz", "output000.nii.gz", "output001.nii.gz"]
    before = nib.load(path)
    assert np.array_equal(nib.load(tmp_path / "out" / "input.nii.gz").dataobj, before.dataobj)
    style = mf.translate.random_styles(10, 2, model.config.gen.style_dim, 0)
    source = FileSource([path], axis=axis)
    for j in range(2):
        back = nib.load(tmp_path / "out" / f"output{j:03d}.nii.gz")
        assert back.shape == before.shape and np.array_equal(back.affine, before.affine)
        assert back.get_data_dtype() == np.uint16  # the smallest whole numbers that hold 0..400
        for i in (0, len(source) - 1):
            pixels = source.read(i).pixels[:, :, 0].astype(np.float32) / 1000
            y = model.translate(torch.from_numpy(pixels)[None, None], "a2b", style=style[None])[0, j, 0]
            wanted = ((y + 1) * 200).detach().numpy()
            # 5/8 is the most that rounding moves a value: half a step, and what batches change.
            assert np.abs(np.asarray(back.dataobj).take(i, axis) - wanted).max() < 0.625


def test_a_folder_of_volumes_continues(small_config: dict[str, Any], tmp_path: Path) -> None:
    model = made(small_config)
    for i, name in enumerate(("p1.nii.gz", "p2.nii", "p2.nii.gz")):
        volume(tmp_path / "in" / name, i, (36, 40, 3 + i))
    found = translate_files(model, tmp_path / "in", tmp_path / "out", options(output_only=True, extension="nii"))
    names = ["p1_000.nii", "p1_001.nii", "p2_nii_000.nii", "p2_nii_001.nii", "p2_nii__000.nii", "p2_nii__001.nii"]
    assert sorted(p.name for p in found.written) == sorted(names)
    bytes_ = {p.name: p.read_bytes() for p in found.written}
    (tmp_path / "out" / "p2_nii_001.nii").unlink()
    again = translate_files(
        model, tmp_path / "in", tmp_path / "out", options(output_only=True, extension="nii", workers=1)
    )
    assert (again.done_before, again.total) == (8, 12) or again.done_before == 7
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.nii")} == bytes_


def test_resized_slices_say_so(small_config: dict[str, Any], tmp_path: Path) -> None:
    model = made(small_config, new_size=64)
    path = volume(tmp_path / "ct.nii", shape=(32, 32, 3))
    translate_files(model, path, tmp_path / "out", options(num_style=1))
    back = nib.load(tmp_path / "out" / "output000.nii.gz")
    assert back.shape == (64, 64, 3)
    np.testing.assert_allclose(back.header.get_zooms(), (0.35, 0.4, 2.5), rtol=1e-6)


def test_a_series_gives_a_series_for_each_style(small_config: dict[str, Any], tmp_path: Path) -> None:
    model = made(small_config)
    (tmp_path / "in").mkdir()
    for i in range(3):
        stored = np.random.default_rng(i).integers(0, 2000, (36, 40)).astype(np.uint16)
        place = {"SOPInstanceUID": f"1.2.3.1.{i}", "RescaleSlope": "1", "RescaleIntercept": "-1000"}
        (tmp_path / "in" / f"{i}.dcm").write_bytes(dicom(stored, InstanceNumber=i, **place))
    found = translate_files(model, tmp_path / "in", tmp_path / "out", options(extension="dcm", output_only=True))
    assert len(found.written) == 6 and not found.failures
    sets = [[pydicom.dcmread(tmp_path / "out" / f"{i}_{j:03d}.dcm") for i in range(3)] for j in range(2)]
    assert [len({d.SeriesInstanceUID for d in part}) for part in sets] == [1, 1]
    assert sets[0][0].SeriesInstanceUID != sets[1][0].SeriesInstanceUID
    assert [d.InstanceNumber for d in sets[1]] == [0, 1, 2]
    # All slices have the styles of the first.
    style = mf.translate.random_styles(10, 2, model.config.gen.style_dim, 0)
    x = np.random.default_rng(2).integers(0, 2000, (36, 40)).astype(np.float32)
    y = model.translate(torch.from_numpy((x - 1000) / 1000)[None, None], "a2b", style=style[None])[0, 1, 0]
    assert np.abs(sets[1][2].pixel_array - ((y + 1) * 200).detach().numpy()).max() < 0.625
    other = made(small_config)
    with torch.no_grad():
        other.gen_b.dec.model[-1].conv.bias.add_(0.1)
    translate_files(other, tmp_path / "in", tmp_path / "other", options(extension="dcm", output_only=True))
    assert pydicom.dcmread(tmp_path / "other" / "0_000.dcm").SeriesInstanceUID != sets[0][0].SeriesInstanceUID


@pytest.mark.parametrize(("limits", "slope"), [([-1000, 1000], "1"), ("dtype", "0.5")])
def test_all_slices_of_a_series_are_stored_alike(
    small_config: dict[str, Any], tmp_path: Path, limits: Any, slope: str
) -> None:
    model = made(small_config, range_b=limits)
    (tmp_path / "in").mkdir()
    for i, (low, high) in enumerate([(0, 100), (0, 2000), (1500, 2000)]):
        stored = np.random.default_rng(i).integers(low, high, (36, 40)).astype(np.uint16)
        place = {"SOPInstanceUID": f"1.2.3.1.{i}", "RescaleSlope": slope, "RescaleIntercept": "-1000"}
        (tmp_path / "in" / f"{i}.dcm").write_bytes(dicom(stored, InstanceNumber=i, **place))
    translate_files(model, tmp_path / "in", tmp_path / "out", options(extension="dcm"))
    for kind in ("000", "001", "input"):
        series = [pydicom.dcmread(path) for path in (tmp_path / "out").glob(f"*_{kind}.dcm")]
        stored_as = {(d.BitsAllocated, d.PixelRepresentation, d.RescaleSlope, d.RescaleIntercept) for d in series}
        assert len(series) == 3 and len(stored_as) == 1


def test_what_is_refused_or_left_out(small_config: dict[str, Any], tmp_path: Path) -> None:
    model = made(small_config)
    volume(tmp_path / "in" / "a.nii")
    volume(tmp_path / "in" / "b.nii")
    damaged = (tmp_path / "in" / "b.nii").read_bytes()[:-100]
    (tmp_path / "in" / "b.nii").write_bytes(damaged)
    found = translate_files(model, tmp_path / "in", tmp_path / "out", options(output_only=True))
    assert {p.name for p in found.written} == {"a_000.nii.gz", "a_001.nii.gz"}
    name = str(tmp_path / "in" / "b.nii")
    assert len(found.failures) == 1  # for five slices
    assert found.failures[0].startswith(f"{name}: not written, 5 of its 5 slices cannot be read (the file ends 100")
    with pytest.raises(ValueError, match=r"--format dcm writes .*a.nii.* is a NIFTI file; use --format nii.gz,"):
        translate_files(model, tmp_path / "in", tmp_path / "out", options(extension="dcm"))
    Image.new("L", (32, 32)).save(tmp_path / "in" / "c.png")
    with pytest.raises(ValueError, match=r"--format nii.gz writes NIFTI files back .*c.png has none"):
        translate_files(model, tmp_path / "in", tmp_path / "out", options())


def test_a_series_with_a_gap_says_so(small_config: dict[str, Any], tmp_path: Path) -> None:
    model = made(small_config)
    for name in ("ct", "mr"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(3):
            stored = np.random.default_rng(i).integers(0, 400, (36, 40)).astype(np.uint16)
            (tmp_path / "in" / name / f"{i}.dcm").write_bytes(dicom(stored, InstanceNumber=i))
    for damaged in ("ct/1.dcm", "mr/0.dcm", "mr/2.dcm"):
        data = (tmp_path / "in" / damaged).read_bytes()
        (tmp_path / "in" / damaged).write_bytes(data[:-500])
    series = tmp_path / "in" / "ct"
    for _ in range(2):  # of the second run nothing else is left
        found = translate_files(model, tmp_path / "in", tmp_path / "out", options(extension="dcm", output_only=True))
        assert len(found.failures) == 5 and found.failures[0].startswith(f"{series / '1.dcm'}: not written, ")
        assert found.failures[3] == f"{series}: 1.dcm missing from the series that were written, of 3 files"
        assert found.failures[4].endswith("mr: 0.dcm, 2.dcm missing from the series that were written, of 3 files")
    assert sorted(p.name for p in (tmp_path / "out" / "ct").iterdir()) == [
        f"{i}_00{j}.dcm" for i in (0, 2) for j in "01"
    ]
    with pytest.raises(ValueError, match=r"--format nii writes .*0.dcm is a DICOM file; use --format dcm,"):
        translate_files(model, tmp_path / "in", tmp_path / "nii", options(extension="nii"))
    for i in (0, 2):  # a folder of which nothing is written has no series with a gap
        (series / f"{i}.dcm").unlink()
    found = translate_files(model, tmp_path / "in", tmp_path / "out", options(extension="dcm", output_only=True))
    assert len(found.failures) == 4


def test_grids_and_arrays_of_many_channels(small_config: dict[str, Any], tmp_path: Path) -> None:
    model = made(small_config, input_dim_a=4, input_dim_b=5, show_channels_a=[3, 0, 0], range_b="dtype")
    (tmp_path / "in").mkdir()
    for i in range(2):
        array = np.random.default_rng(i).integers(-900, 900, (36, 40, 4)).astype(np.int16)
        np.save(tmp_path / "in" / f"{i}.npy", array)
    grid = tmp_path / "grid.png"
    translate_files(model, tmp_path / "in", tmp_path / "out", options(extension="npy", grid=grid))
    assert np.array_equal(np.load(tmp_path / "out" / "1_input.npy"), array)
    assert np.load(tmp_path / "out" / "1_001.npy").shape == (36, 40, 5)
    shown = np.asarray(Image.open(grid))[-38:-2, 2:42].astype(float)
    assert np.abs(shown[:, :, 0] - (array[:, :, 3] + 1000) / 2000 * 255).max() < 1
    assert np.abs(shown[:, :, 2] - (array[:, :, 0] + 1000) / 2000 * 255).max() < 1
    with pytest.raises(ValueError, match="cannot hold the 5 channels"):
        translate_files(model, tmp_path / "in", tmp_path / "png", options(extension="png", output_only=True))
