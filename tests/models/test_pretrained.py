"""The scripts behind the model card's numbers."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import munit_fast as mf
from munit_fast.evaluate.metrics import kid

DOCS = Path(__file__).parents[2] / "docs" / "pretrained"


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


class _Seen:
    """In place of the network: an image's mean colour in sixteen places."""

    def __call__(self, x: torch.Tensor) -> Any:
        places = torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return SimpleNamespace(pooled=places, embedding=places)


def test_points_are_measured_against_the_training_pictures(
    drawing: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = runpy.run_path(str(DOCS / "reference_points.py"))["measure"]
    for name, value in (("FeatureExtractor", _Seen), ("RARE", 20), ("STYLES", 3)):
        monkeypatch.setitem(measure.__globals__, name, value)
    fill, generator = measure.__globals__["fill"], torch.Generator().manual_seed(2)
    for split, count in (("trainB", 5), ("testA", 4), ("testB", 4)):
        (tmp_path / split).mkdir()
        for i in range(count):
            colours = torch.rand(4, 3, generator=generator) * 0.8 + 0.1
            x = drawing if split == "testA" else fill(drawing, colours, True, generator)
            image = Image.fromarray((x.permute(1, 2, 0) * 255).round().byte().numpy())
            image.save(tmp_path / split / f"{i}.png")
    asked = set()

    def watched(x: torch.Tensor, colours: torch.Tensor, per_region: bool, *rest: Any) -> torch.Tensor:
        asked.add((len(colours), per_region, rest[1]))
        return fill(x, colours, per_region, *rest)

    monkeypatch.setitem(measure.__globals__, "fill", watched)
    found = measure(tmp_path)
    assert asked == {(1, False, 0), (2, True, 0), (200, True, 0), (2, True, 2)}
    load = measure.__globals__["load"]
    seen = {split: _Seen()(load(tmp_path / split) * 2 - 1).pooled for split in ("trainB", "testA", "testB")}
    assert found["the true pictures"]["kid_e3"] == round(1e3 * kid(seen["testB"], seen["trainB"]), 1)
    assert found["the line drawings, not coloured"]["kid_e3"] == round(1e3 * kid(seen["testA"], seen["trainB"]), 1)
    diversity = [v["diversity"] for v in found.values() if v["diversity"] is not None]
    assert len(diversity) == 5 and all(v > 0 for v in diversity)
    fills = [v["kid_e3"] for name, v in found.items() if "colour" in name and "true" not in name]
    assert len(set(fills)) == len(fills)


def test_verdicts_are_those_of_the_discriminator_of_colours(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    """Discriminators that average give even pictures back their own level."""
    verdicts = runpy.run_path(str(DOCS / "memorisation.py"))["verdicts"]
    levels = {"trainA": 0.1, "trainB": 0.2, "testA": 0.6, "testB": 0.8}
    for split, level in levels.items():
        for path in (picture_folders / split).iterdir():
            Image.new("RGB", (32, 32), (round((level + 1) * 127.5),) * 3).save(path)
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_config | {"data_root": str(picture_folders)}))
    torch.manual_seed(0)
    trainer = mf.MUNIT_Trainer(mf.load_config(config).hyperparameters())
    for domain, sign in (("a", -1), ("b", 1)):
        for parameter in trainer.get_submodule(f"dis_{domain}").parameters():
            parameter.data.fill_(0 if parameter.dim() == 1 else sign / parameter[0].numel())
    trainer.save(tmp_path, 6)
    checkpoint = tmp_path / "gen_00000007.pt"
    found = verdicts(config, checkpoint)
    scales = small_config["dis"]["num_scales"]
    assert found["training pictures"] == pytest.approx([0.2] * scales, abs=0.01)
    assert found["held-out pictures"] == pytest.approx([0.8] * scales, abs=0.01)
    model = mf.MUNIT(mf.load_config(config)).load(checkpoint, average=False).eval()
    torch.manual_seed(0)
    for split, name in (("trainA", "training"), ("testA", "held-out")):
        level = round((levels[split] + 1) * 127.5) / 127.5 - 1
        y = model.translate(torch.full((4, 3, 32, 32), level), "a2b", num_styles=1)[:, 0]
        with torch.no_grad():
            expected = [output.mean().item() for output in trainer.dis_b(y)]
        assert found[f"translations of {name} drawings"] == pytest.approx(expected, abs=0.002)


def test_verdicts_need_the_discriminators(small_config: dict[str, Any], tmp_path: Path) -> None:
    verdicts = runpy.run_path(str(DOCS / "memorisation.py"))["verdicts"]
    with pytest.raises(SystemExit, match=r"model\.safetensors.*gen_########\.pt"):
        verdicts(tmp_path / "small.yaml", tmp_path / "model.safetensors")


def test_ablation_has_the_error_over_seeds_or_of_the_only_one() -> None:
    table = runpy.run_path(str(DOCS.parent / "generate.py"))["ablation_table"]
    colours = {"kid_e3": 40.0, "diversity": 0.2, "distinct_hues": 0.1, "fill": 0.7}
    metrics = {f"lines_to_colour.{key}": value for key, value in colours.items()}
    metrics |= {"colour_to_lines.l1": 0.04, "colour_to_lines.line_f1": 0.97}
    row = {
        "option": "base",
        "iterations": 2000,
        "seconds": 300,
        "metrics": metrics,
        "errors": dict.fromkeys(metrics, 0.02) | {"lines_to_colour.kid_e3": 3.0},
        "ceilings": {"lines_to_colour.kid_e3": 100.0, "colour_to_lines.l1": 0.08},
    }
    others = [
        row | {"option": "R1", "metrics": metrics | {"lines_to_colour.kid_e3": kid}} for kid in (30.0, 36.0, 42.0)
    ]
    lines = table([row, *others]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:7] == ["base", "1", "2,000", "5.0", "40.0 ± 3.0", "40%", "0.500 ± 0.250"]
    assert cells[1][:6] == ["R1", "3", "2,000", "5.0", "36.0 ± 3.5", "36%"]  # 6 / √3
    assert len({len(row) for row in cells}) == 1
