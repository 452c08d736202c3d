"""`translate` returns what it is said to return: mypy checks this file in `make types`, and the test runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import assert_type

import munit_fast as mf

if TYPE_CHECKING:
    from munit_fast.models.pictures import AnyPicture

SMALL: dict[str, Any] = {"gen": {"dim": 4, "mlp_dim": 8, "style_dim": 3, "n_res": 1}}


def test_munit() -> None:
    model = mf.MUNIT(SMALL).eval()
    tensor, image = torch.zeros(1, 3, 16, 16), Image.new("RGB", (16, 16))
    pixels: npt.NDArray[np.uint8] = np.zeros((16, 16, 3), np.uint8)
    values: npt.NDArray[np.float32] = np.zeros((16, 16, 3), np.float32)
    mixed: list[AnyPicture] = [tensor[0], image, pixels]

    assert isinstance(assert_type(model.translate(tensor), Tensor), Tensor)
    assert isinstance(assert_type(model.translate(image, "b2a"), list[Image.Image])[0], Image.Image)
    assert assert_type(model.translate(pixels, num_styles=2), npt.NDArray[np.uint8]).dtype == np.uint8
    assert assert_type(model.translate(values), npt.NDArray[np.float32]).dtype == np.float32
    assert isinstance(assert_type(model.translate([tensor[0]]), list[Tensor])[0], Tensor)
    assert isinstance(assert_type(model.translate([image]), list[list[Image.Image]])[0][0], Image.Image)
    assert assert_type(model.translate((pixels,)), list[npt.NDArray[np.uint8]])[0].dtype == np.uint8
    assert len(assert_type(model.translate(mixed), list[Any])) == 3

    for style in (tensor, torch.zeros(1, 3), image, pixels, [image, image], mixed):
        assert isinstance(assert_type(model.translate(tensor, style=style), Tensor), Tensor)
    assert isinstance(assert_type(model.encode_style([image], "b"), Tensor), Tensor)


def test_unit() -> None:
    model = mf.UNIT(SMALL).eval()
    tensor, image = torch.zeros(1, 3, 16, 16), Image.new("RGB", (16, 16))
    pixels: npt.NDArray[np.uint8] = np.zeros((16, 16, 3), np.uint8)

    assert isinstance(assert_type(model.translate(tensor), Tensor), Tensor)
    assert isinstance(assert_type(model.translate(image), list[Image.Image])[0], Image.Image)
    assert assert_type(model.translate(pixels), npt.NDArray[np.uint8]).dtype == np.uint8
    assert isinstance(assert_type(model.translate([tensor[0]]), list[Tensor])[0], Tensor)
    assert isinstance(assert_type(model.translate([image]), list[list[Image.Image]])[0][0], Image.Image)
    assert assert_type(model.translate([pixels]), list[npt.NDArray[np.uint8]])[0].dtype == np.uint8
