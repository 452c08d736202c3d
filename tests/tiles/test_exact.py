"""`exact` equals the untiled translation, whatever the networks, the sizes and what is kept on disk."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

import munit_fast as mf
from munit_fast.data import PixelFormat
from munit_fast.tiles import TileOptions, TileResult, networks, translate_slide
from munit_fast.tiles import run as tiles_run
from munit_fast.tiles.plan import Box, Planes, tiles_of, windows_of

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-11}
CASES = range(28)


def make_model(trainer: str = "MUNIT", dtype: torch.dtype = torch.float32, impl: str = "auto", **gen: Any) -> Any:
    torch.manual_seed(0)
    config = {"gen": {"dim": 4, "mlp_dim": 8, "style_dim": 3, **gen}, "crop_image_height": 64, "crop_image_width": 64}
    model = {"MUNIT": mf.MUNIT, "UNIT": mf.UNIT}[trainer](mf.make_config(config), impl=impl).eval().to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and scales that matter
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def tiled(
    model: Any, pixels: np.ndarray[Any, Any], options: TileOptions, style: Tensor | None, folder: Path
) -> tuple[Tensor, TileResult]:
    """The translation before it is rounded, [C, H, W], and the result."""
    tifffile.imwrite(folder / "in.tif", pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    tiles: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        rounded = tiles_run.to_values

        def keep(image: Tensor, *arguments: Any) -> Any:
            tiles.append(image.clone())
            return rounded(image, *arguments)

        patch.setattr(tiles_run, "to_values", keep)
        result = translate_slide(model, folder / "in.tif", folder / "out.tif", options, style=style)
    height, width = pixels.shape[:2]
    image = torch.zeros(tiles[0].shape[1], height, width, dtype=tiles[0].dtype)
    for box, tile in zip(tiles_of(1, height, width, options.tile), tiles, strict=True):
        image[:, box.top : box.bottom, box.left : box.right] = tile[0]
    written = tifffile.imread(folder / "out.tif").reshape(height, width, -1)
    assert np.array_equal(written, rounded(image[None], PixelFormat(image.shape[0]), np.uint8, folder))
    return image, result


def untiled(model: Any, pixels: np.ndarray[Any, Any], style: Tensor | None) -> Tensor:
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5)
    x = x.to(next(model.parameters()))
    return (model.translate(x) if style is None else model.translate(x, style=style[None]))[0, 0]


def difference(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max() / y.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_exact_equals_untiled(case: int, tmp_path: Path) -> None:
    draw = random.Random(case)
    gen = {
        "n_downsample": case % 4,
        "n_res": draw.choice([0, 1, 2]),
        "activ": draw.choice(["relu", "lrelu", "prelu", "selu", "tanh", "none"]),
        "pad_type": draw.choice(["reflect", "replicate", "zero"]),
    }
    trainer, dtype = draw.choice(["MUNIT", "MUNIT", "UNIT"]), draw.choice(list(LIMITS))
    model = make_model(trainer, dtype, draw.choice(["auto", "reference"]), **gen)
    size = (draw.randint(9, 90), draw.randint(17, 90), 3)  # some smaller than the networks take
    pixels = np.random.default_rng(case).integers(0, 256, size, dtype=np.uint8)
    style = torch.randn(3) if trainer == "MUNIT" else None
    disk = draw.choice([None, None, 0, 20_000, 100_000, 400_000])
    options = TileOptions(tile=draw.choice([16, 17, 24, 32, 50, 200]), statistics="exact", disk=disk)
    image, result = tiled(model, pixels, options, style, tmp_path)
    assert difference(image, untiled(model, pixels, style)) <= LIMITS[dtype]
    assert disk is None or result.disk <= disk


def test_both_directions_and_channels(tmp_path: Path) -> None:
    config = {"gen": {"dim": 4, "mlp_dim": 8, "style_dim": 3}, "input_dim_a": 1}
    model = mf.MUNIT(mf.make_config(config)).eval()
    for direction, channels in (("a2b", 1), ("b2a", 3)):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, channels), dtype=np.uint8)
        options = TileOptions(direction, tile=16, statistics="exact")  # type: ignore[arg-type]
        image, _ = tiled(model, pixels, options, torch.ones(3), tmp_path)
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5)
        wanted = model.translate(x, direction, style=torch.ones(1, 3))[0, 0]  # type: ignore[call-overload]
        assert image.shape[0] == 4 - channels and difference(image, wanted) <= 1e-5


def test_a_constant_image_and_a_far_mean(tmp_path: Path) -> None:
    # Large means beside small deviations: sums of squares would lose all digits.
    model = make_model(dtype=torch.float32, n_res=1)
    pixels = np.full((64, 64, 3), 250, np.uint8)
    pixels[20:30, 20:30] = 251
    image, _ = tiled(model, pixels, TileOptions(tile=16, statistics="exact"), torch.ones(3), tmp_path)
    assert difference(image.double(), untiled(model.double(), pixels, torch.ones(3).double())) <= 2e-3


def test_few_tiles_are_done_exactly(tmp_path: Path) -> None:
    model = make_model()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    image, result = tiled(model, pixels, TileOptions(tile=16, samples=16), torch.ones(3), tmp_path)
    assert result.statistics == "exact" and difference(image, untiled(model, pixels, torch.ones(3))) <= 1e-5


def test_sampled_is_near_and_has_no_seams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One texture everywhere, so that a sample knows it; whole tiles differ from it by chance only.
    model = make_model(n_res=1, n_downsample=1)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 130, 3), dtype=np.uint8)
    graphs: list[networks.Node] = []
    build = tiles_run._graph
    monkeypatch.setattr(tiles_run, "_graph", lambda *a: graphs.append(build(*a)) or graphs[-1])
    image, result = tiled(model, pixels, TileOptions(tile=32, samples=6), torch.ones(3), tmp_path)
    assert result.statistics == "sampled"
    exact = untiled(model, pixels, torch.ones(3))
    assert 1e-4 < difference(image, exact) < 0.2
    # The same statistics without tiles give the same picture: there is nothing at the edges of tiles. The slide is
    # closed by now, so its pixels come from here.
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5)
    node = graphs[-1]
    source = next(n for n in networks.ancestors(node, lambda _: False) if isinstance(n, networks.Image))
    source.read_image = lambda box: x[:, :, box.top : box.bottom, box.left : box.right]
    with torch.no_grad():
        whole = networks.Reader().tile(node, Box(0, 0, 160, 0, 130))[0]
    assert difference(image, whole) <= 1e-5


def test_statistics_per_tile_would_be_wrong(tmp_path: Path) -> None:
    model = make_model(n_res=1)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels[:, 32:] //= 8
    whole = untiled(model, pixels, torch.ones(3))
    assert difference(untiled(model, pixels[:, :32], torch.ones(3)), whole[:, :, :32]) > 0.03


def test_the_reach_of_the_receptive_field() -> None:
    model = make_model(n_res=2, n_downsample=2, dtype=torch.float64)
    planes = Planes.whole(256, 256)
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    source = networks.Image(3, planes, lambda box: x[:, :, box.top : box.bottom, box.left : box.right])
    moments: dict[str, Any] = {}
    code = networks.encoder_nodes(model.gen_a.enc_content, source, moments)
    last = networks.decoder_nodes(model.gen_b.dec, code, moments, [(torch.ones(1, 16), torch.ones(1, 16))] * 4)
    reach = networks.reach(last)
    read: list[Any] = []
    source.read_image = lambda box: read.append(box) or x[:, :, box.top : box.bottom, box.left : box.right]
    for node in networks.ancestors(last, lambda _: False):
        if isinstance(node, networks.Conv):
            channels = np.ones(node.channels)
            moments[node.name] = networks.Moments(2, channels, channels)
    widest = 0
    for place in range(124, 132):
        read.clear()
        with torch.no_grad():
            networks.Reader().tile(last, Box(0, place, place + 1, place, place + 1))
        widest = max(widest, place - read[0].top, read[0].bottom - place - 1)
    assert widest <= reach < widest + 4


@pytest.mark.parametrize(("height", "width", "side", "count"), [(64, 64, 16, 4), (400, 40, 32, 9), (32, 800, 64, 64)])
def test_windows_lie_evenly_inside(height: int, width: int, side: int, count: int) -> None:
    planes = windows_of(height, width, side, count, 4)
    assert 1 <= len(planes.offsets) <= count and len(set(planes.offsets)) == len(planes.offsets)
    assert planes.height == min(side, height) and planes.width == min(side, width)
    for top, left in planes.offsets:
        assert top % 4 == left % 4 == 0 and top + planes.height <= height and left + planes.width <= width
    for starts, length, part in zip(zip(*planes.offsets), (height, width), (planes.height, planes.width)):
        assert abs((min(starts) + max(starts) + part) / 2 - length / 2) <= 4  # as far from one edge as from the other
