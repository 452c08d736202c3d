"""The scripts behind the model card's numbers."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import munit_fast as mf

DOCS = Path(__file__).parents[1] / "docs" / "pretrained"


@pytest.fixture(scope="module")
def points() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "reference_points.py"))


@pytest.fixture
def drawing() -> torch.Tensor:
    """[3, 32, 32] in [0, 1]: a box with a wall in it, and an open angle beside it."""
    x = torch.ones(32, 32)
    x[4, 4:20] = x[19, 4:20] = x[4:20, 4] = x[4:20, 19] = x[4:20, 10] = 0
    x[24, 4:20] = x[24:30, 4] = 0
    return x.expand(3, -1, -1).clone()


def test_regions_are_what_lines_enclose(points: dict[str, Any], drawing: torch.Tensor) -> None:
    label = points["regions"](drawing)
    left, right = label[10, 7], label[10, 15]
    assert left != 0 and right != 0 and left != right
    assert label[5:19, 5:10].eq(left).all() and label[5:19, 11:19].eq(right).all()
    assert label.ne(0).sum() == 14 * 5 + 14 * 8  # neither the ink, nor outside, nor the open angle


@pytest.mark.parametrize("per_region", [False, True])
def test_fill(points: dict[str, Any], drawing: torch.Tensor, per_region: bool) -> None:
    colours = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    y = points["fill"](drawing, colours, per_region, torch.Generator().manual_seed(0))
    assert y[:, drawing[0] == 0].eq(0).all()
    label = points["regions"](drawing)
    assert y[:, (label == 0) & (drawing[0] == 1)].eq(1).all()
    left, right = (y[:, label == label[10, at]] for at in (7, 15))
    for area in (left, right):
        assert area.eq(area[:, :1]).all()
        assert (colours == area[:, 0]).all(1).any()
    assert left[:, 0].equal(right[:, 0]) != per_region


def test_palette_leaves_out_paper_ink_and_rare_colours(points: dict[str, Any]) -> None:
    x = torch.ones(1, 3, 100, 100)
    x[0, :, :30] = torch.tensor([252, 234, 43.0]).div(255).view(3, 1, 1)
    x[0, :, 30:60] = 0
    x[0, :, 60, :50] = 0.5
    colours, counts = points["palette"](x)
    assert colours.mul(255).round().tolist() == [[252, 234, 43]] and counts.tolist() == [3000]


def test_soften_keeps_the_mean(points: dict[str, Any]) -> None:
    x = torch.zeros(1, 3, 33, 33)
    x[:, :, 16, 16] = 1
    y = points["soften"](x, 2.0)
    torch.testing.assert_close(y.sum((2, 3)), torch.ones(1, 3))
    assert y.amax() == y[0, 0, 16, 16] < 0.05
    torch.testing.assert_close(y, y.mT)


def test_verdicts_are_those_of_the_discriminator_of_colours(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    verdicts = runpy.run_path(str(DOCS / "memorisation.py"))["verdicts"]
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_config | {"data_root": str(picture_folders)}))
    trainer = mf.MUNIT_Trainer(mf.load_config(config).hyperparameters())
    for domain, verdict in (("a", 0.25), ("b", 0.75)):
        for name, parameter in trainer.get_submodule(f"dis_{domain}").named_parameters():
            parameter.data.fill_(verdict if name.endswith("bias") else 0)
    trainer.save(tmp_path, 6)
    found = verdicts(config, tmp_path / "gen_00000007.pt")
    assert len(found) == 4
    scales = small_config["dis"]["num_scales"]
    assert all(values == [0.75] * scales for values in found.values())
