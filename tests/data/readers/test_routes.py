"""Turned photographs and hidden colours give the same on every way into a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from munit_fast import MUNIT, make_config
from munit_fast.data import decode_image, to_model_range
from munit_fast.data.configured import open_sources
from munit_fast.evaluate import open_test_set
from munit_fast.translate import TranslateOptions, translate_files


def upright() -> np.ndarray[Any, Any]:
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((32, 48), Image.Resampling.BICUBIC))


def write_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(upright())).save(path, exif=exif)


def write_hidden(path: Path) -> None:
    pixels = np.dstack([upright(), np.full((48, 32), 255, np.uint8)])
    pixels[:20, :, 3] = 0
    pixels[:20, :, :3] = (0, 200, 0)
    Image.fromarray(pixels).save(path)


@pytest.fixture(params=["turned", "hidden"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray[Any, Any]]:
    """A data set of one picture in each folder, and the pixels that are right."""
    write: Callable[[Path], None] = {"turned": write_turned, "hidden": write_hidden}[request.param]
    for split in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / "data" / split).mkdir(parents=True)
        write(tmp_path / "data" / split / "a.png")
    right = upright().copy()
    if request.param == "hidden":
        right[:20] = 255
    return tmp_path / "data", right


@pytest.fixture
def model(small_config: dict[str, Any], case: tuple[Path, Any]) -> MUNIT:
    torch.manual_seed(0)
    return MUNIT(make_config(small_config | {"data_root": str(case[0])})).eval()


def test_training_and_evaluation(model: MUNIT, case: tuple[Path, np.ndarray[Any, Any]]) -> None:
    sources = open_sources(model.config)
    for images in (sources.train_a, sources.train_b, sources.test_a, sources.test_b):
        assert images is not None and np.array_equal(images.image(0), case[1])
    middle = to_model_range(case[1][8:40])
    tests = open_test_set(model.config)
    assert all(torch.equal(pictures[0], middle) for pictures in (*tests.pictures.values(), *tests.train.values()))


def test_translation_styles_and_copies(model: MUNIT, case: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path) -> None:
    Image.fromarray(case[1]).save(tmp_path / "plain.png")
    given = case[0] / "testA" / "a.png"
    made = []
    for name, file in (("given", given), ("plain", tmp_path / "plain.png")):
        for style in (None, file):
            folder = tmp_path / f"{name}-{style is None}"
            translate_files(model, file, folder, TranslateOptions(num_style=1, style=style))
            assert np.array_equal(decode_image(folder / "input.png"), case[1])
            made.append(decode_image(folder / "output000.png"))
    assert np.array_equal(made[0], made[2]) and np.array_equal(made[1], made[3])
    assert not np.array_equal(made[0], made[1])


def test_pil_images(model: MUNIT, case: tuple[Path, np.ndarray[Any, Any]]) -> None:
    style = torch.zeros(1, 1, model.config.gen.style_dim)

    def translated(image: Any) -> Tensor:
        return torch.from_numpy(np.array(model.translate(image, "a2b", style=style)[0]))

    with Image.open(case[0] / "testA" / "a.png") as image:
        found, code = translated(image), model.encode_style(image, "b")
    assert found.shape == (48, 32, 3) and torch.equal(found, translated(Image.fromarray(case[1])))
    assert torch.equal(code, model.encode_style(Image.fromarray(case[1]), "b"))
