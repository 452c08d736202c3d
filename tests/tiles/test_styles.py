"""The average style of a folder, and the style of an image in tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import munit_fast as mf
from munit_fast.data import ImageError
from munit_fast.tiles import mean_style, slide_style

RNG = np.random.default_rng(0)


@pytest.fixture
def model(small_config: dict[str, Any]) -> mf.MUNIT:
    torch.manual_seed(0)
    return mf.MUNIT(mf.make_config(small_config)).eval()


def test_the_mean_style_of_a_folder(model: mf.MUNIT, tmp_path: Path) -> None:
    sizes = [(32, 32), (32, 40), (64, 64)]
    images = [Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    (tmp_path / "more").mkdir()
    for name, image in zip(("a.png", "b.png", "more/c.png"), images, strict=True):
        image.save(tmp_path / name)
    codes = model.encode_style([*images[:2], images[2].resize((32, 32), Image.Resampling.BILINEAR)], "b")
    style = mean_style(model, tmp_path, "b")
    assert style.shape == (1, 3) and torch.allclose(style[0], codes.mean(0), rtol=1e-6)
    native = mean_style(model, tmp_path, "b", native_size=True)
    assert torch.allclose(native[0], model.encode_style(images, "b").mean(0), rtol=1e-6)
    assert not torch.allclose(native, style)
    assert torch.equal(mean_style(model, tmp_path / "a.png", "b"), model.encode_style(images[0], "b"))
    assert not torch.allclose(mean_style(model, tmp_path, "a"), style)
    (tmp_path / "d.png").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"d\.png"):
        mean_style(model, tmp_path, "b")


@pytest.mark.parametrize("size", [(100, 70), (16, 33), (9, 200)])
@pytest.mark.parametrize("pad_type", ["reflect", "zero"])
def test_the_style_of_tiles_is_that_of_the_whole(size: tuple[int, int], pad_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    gen = {"dim": 4, "mlp_dim": 8, "style_dim": 3, "n_res": 1, "pad_type": pad_type}
    model = mf.MUNIT(mf.make_config({"gen": gen})).eval().double()
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5).double()
    wanted = model.encode_style(x, "a")
    for tile in (16, 32, 512):
        found = slide_style(model, tmp_path / "a.tif", "a", tile=tile)
        assert found.shape == (1, 3)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-12


def test_styles_need_munit(small_config: dict[str, Any], model: mf.MUNIT, tmp_path: Path) -> None:
    unit = mf.UNIT(mf.make_config(small_config))
    for function in (mean_style, slide_style):
        with pytest.raises(ValueError, match="UNIT"):
            function(unit, tmp_path, "a")
        with pytest.raises(ValueError, match="domain"):
            function(model, tmp_path, "c")  # type: ignore[arg-type]
