"""Images whose bands are files of their own."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from munit_fast.config import ConfigError, make_config
from munit_fast.data import FileSource, ImageError, ImageSet, PixelFormat, list_images
from munit_fast.data.configured import open_sources
from munit_fast.data.sources import BandSource

BANDS = ["B02", "B03", "B08", "B8A"]


def band(path: Path, seed: int = 0, size: tuple[int, int] = (20, 24), dtype: str = "uint16") -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 200, size).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def source(folder: Path, bands: list[str] = BANDS) -> BandSource:
    return BandSource(FileSource(list_images(folder), folder), bands)


@pytest.mark.parametrize("name", ["s{i}/{b}.tif", "S2_{i}_{b}_10m.tif", "s{i}/T32UQD_{b}.png", "s{i}/{b}.r.{i}.png"])
def test_the_files_of_a_scene_are_one_image(tmp_path: Path, name: str) -> None:
    planes = {(i, b): band(tmp_path / name.format(i=i, b=b), 10 * i + k) for i in range(3) for k, b in enumerate(BANDS)}
    images = source(tmp_path)
    assert len(images) == 3 and not images.skipped
    for i in range(3):
        assert np.array_equal(images.read(i).pixels, np.stack([planes[i, b] for b in BANDS], axis=2))
        assert "bands" in images.name(i) and images.where(i).startswith(str(tmp_path))
    turned = source(tmp_path, BANDS[::-1])
    assert np.array_equal(turned.read(1).pixels, images.read(1).pixels[:, :, ::-1])
    assert np.array_equal(pickle.loads(pickle.dumps(images)).read(2).pixels, images.read(2).pixels)
    array = ImageSet(images, PixelFormat(4)).image(0)
    assert array.shape == (20, 24, 4) and array.dtype == np.uint16


def test_a_band_is_a_word_of_the_name(tmp_path: Path) -> None:
    for b in BANDS:
        band(tmp_path / f"B02_{b}.tif")
    band(tmp_path / "XB02.tif")
    band(tmp_path / "B020.tif")
    images = source(tmp_path)
    assert len(images) == 1 and images.name(0) == "B02_bands" and images.skipped == Counter({"of no band": 2})


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for b in BANDS:
        band(tmp_path / "whole" / f"{b}.tif")
        band(tmp_path / "whole" / "other" / f"{b[1:]}.tif")
    for b in BANDS[:2]:
        band(tmp_path / "part" / f"{b}.tif")
    images = source(tmp_path)
    assert images.skipped == Counter({"of a scene without B08 B8A": 2, "of no band": 4})
    with pytest.raises(ImageError, match="no scene has files of all bands: B02 B12"):
        source(tmp_path, ["B02", "B12"])


def test_scenes_whose_files_are_named_twice_are_two_images(tmp_path: Path) -> None:
    files = [tmp_path / f"{scene}_{b}.tif" for scene in "st" for b in BANDS[:2]]
    for seed, path in enumerate(files):
        band(path, seed)
    twice = BandSource(FileSource([*files, *files[:2]], tmp_path), BANDS[:2])
    assert [twice.name(i) for i in range(3)] == ["s_bands", "s_bands", "t_bands"] and not twice.skipped
    assert np.array_equal(twice.read(1).pixels, twice.read(0).pixels)
    with pytest.raises(ImageError, match=r"t_bands: name the file of each band equally often, not B02 1, B03 2 times"):
        BandSource(FileSource([*files, files[3]], tmp_path), BANDS[:2])


def test_scenes_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    for b in BANDS:
        band(tmp_path / f"{b}.tif")
    images = source(tmp_path)
    band(tmp_path / "B08.tif", size=(10, 12))
    with pytest.raises(ImageError, match=r"B08.tif: size 12x10, but 24x20 in .*B02.tif"):
        images.read(0)
    band(tmp_path / "B08.tif", dtype="uint8")
    with pytest.raises(ImageError, match=r"B08.tif: type uint8, but uint16 in .*B02.tif"):
        images.read(0)
    Image.new("RGB", (24, 20)).save(tmp_path / "B08.tif")
    with pytest.raises(ImageError, match=r"B08.tif: 3 channels in the file of one band"):
        images.read(0)
    (tmp_path / "B08.tif").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"B08.tif: not a readable image"):
        images.read(0)
    band(tmp_path / "B08.png")
    with pytest.raises(ImageError, match=r"B08.tif and .*B08.png are both B08"):
        source(tmp_path)


def test_a_configuration_names_the_bands(tmp_path: Path) -> None:
    for domain in "AB":
        for i in range(2):
            for b in BANDS if domain == "A" else ["x"]:
                band(tmp_path / f"train{domain}" / f"s{i}_{b}.tif", size=(64, 64))
    config = {"data_root": str(tmp_path), "input_dim_a": 4, "bands_a": BANDS, "input_dim_b": 1}
    config |= {"new_size": 64, "crop_image_height": 64, "crop_image_width": 64}
    sources = open_sources(make_config(config))
    assert len(sources.train_a) == len(sources.train_b) == 2
    assert sources.train_a.image(0).shape == (64, 64, 4) and sources.train_b.image(0).shape == (64, 64, 1)
    with pytest.raises(ConfigError, match="bands_a: 3 different bands, but input_dim_a: 4 channels"):
        make_config(config | {"bands_a": [*BANDS[:3], "B02"]})
    with pytest.raises(ValueError, match="bands are different names"):
        source(tmp_path, [])
