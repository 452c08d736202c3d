"""Files that an earlier version of this package wrote: each is read, and computes what it computed then."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import munit_fast as mf
from munit_fast import reference
from munit_fast.models.munit import from_pretrained
from munit_fast.train import TrainOptions, train

ARCHIVE = Path(__file__).parents[1] / "golden" / "files" / "earlier.tar.xz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(earlier: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(earlier / "expected.pt", weights_only=True)
    return content


def check(model: mf.MUNIT | mf.UNIT, expected: dict[str, Any], name: str) -> None:
    styles = {} if isinstance(model, mf.UNIT) else {"style": expected["style"]}
    y = model.translate(expected["x"], **styles)[..., ::3, ::3]
    torch.testing.assert_close(y.double(), expected[name], rtol=0, atol=1e-5)
    y = model.double().translate(expected["x"].double(), **styles)[..., ::3, ::3]
    torch.testing.assert_close(y, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["munit", "unit"])
def test_portable_files(earlier: Path, expected: dict[str, Any], name: str) -> None:
    model = from_pretrained(earlier / f"{name}.safetensors")
    assert type(model) is {"munit": mf.MUNIT, "unit": mf.UNIT}[name]
    assert model.about == ({"licence": "CC0"} if name == "munit" else {})
    check(model, expected, name)
    check(type(model)(mf.load_config(earlier / "config.yaml")).load(earlier / f"{name}.safetensors"), expected, name)


@pytest.mark.parametrize(("average", "name"), [(False, "gen"), (True, "ema")])
def test_checkpoints_translate(earlier: Path, expected: dict[str, Any], average: bool, name: str) -> None:
    model = mf.MUNIT(mf.load_config(earlier / "config.yaml")).load(earlier / "gen_00000002.pt", average=average).eval()
    assert model.loaded == earlier / f"{name}_00000002.pt"
    check(model, expected, name)


@pytest.mark.parametrize("trainer", [mf.MUNIT_Trainer, reference.MUNIT_Trainer])
def test_checkpoints_resume(earlier: Path, tmp_path: Path, trainer: type[Any]) -> None:
    hp = mf.load_config(earlier / "config.yaml").hyperparameters()
    resumed = trainer(hp)
    assert resumed.resume(earlier, hp) == 2
    resumed.save(tmp_path, 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"gen_00000002.pt", "dis_00000002.pt", "optimizer.pt"}
    for name in names:
        new, old = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, earlier))
        torch.testing.assert_close(new, old, rtol=0, atol=0)


@pytest.mark.parametrize(
    "names", [["resume_00000002.pt"], ["gen", "dis", "ema", "optimizer"]], ids=["state", "published"]
)
def test_a_run_goes_on(
    earlier: Path, expected: dict[str, Any], picture_folders: Path, tmp_path: Path, names: list[str]
) -> None:
    checkpoints = tmp_path / "outputs" / "small" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in names:
        for path in earlier.glob(f"{name}*"):
            shutil.copy(path, checkpoints)
    values = yaml.safe_load((earlier / "config.yaml").read_text()) | {"max_iter": 4, "data_root": str(picture_folders)}
    options = TrainOptions("small", tmp_path, seed=1, amp="off", resume=True)
    result = train(mf.make_config(values), options, config_text=yaml.safe_dump(values), console=Console(quiet=True))
    assert result.finished and result.iterations == 4
    lines = (tmp_path / "logs" / "small" / "losses.jsonl").read_text().splitlines()
    found = [{name: value for name, value in json.loads(line).items() if name != "run"} for line in lines]
    assert [row.pop("iteration") for row in found] == [3, 4]
    for new, old in zip(found, expected["losses"], strict=True):
        assert new == pytest.approx(old, rel=1e-4, abs=1e-5)
