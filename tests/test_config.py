"""Configuration files: the published keys are taken as they are, mistakes get one clear line each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from munit_fast.config import (
    ConfigError,
    DiscriminatorConfig,
    GeneratorConfig,
    load_config,
    make_config,
    smallest_discriminator_size,
    smallest_generator_size,
)
from munit_fast.reference import AdaINGen, MsImageDis

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configurations_load(path: Path) -> None:
    load_config(path)


def test_there_are_shipped_configurations() -> None:
    assert len(CONFIGS) >= 3


def test_numbers_written_as_1e_4(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-4\nweight_decay: 1e-4\n")  # PyYAML reads both as strings
    assert load_config(path).lr == 1e-4


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        make_config(values, source="c.yaml")
    return str(error.value).splitlines()


def test_every_problem_gets_one_line_with_its_key() -> None:
    lines = problems({"lr": "fast", "batchsize": 2, "gen": {"dimension": 3, "activ": "gelu"}, "dim": 64})
    assert len(lines) == 5
    assert all(line.startswith("c.yaml: ") for line in lines)
    text = "\n".join(lines)
    assert re.search(r"batchsize: .*batch_size\?", text)
    assert re.search(r"gen\.dimension: .*gen\.dim\?", text)
    assert "lr: " in text
    assert "'fast'" in text
    assert "gen.activ: " in text
    assert "'gelu'" in text
    assert re.search(r" dim: .*(gen|dis):", text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crop_image_height": 250}, ["crop_image_height: 250", "gen.n_downsample", "248"]),
        ({"crop_image_width": 60, "new_size": 64}, ["crop_image_width: 60", "61"]),
        ({"new_size": 128}, ["new_size: 128", "256×256"]),
        ({"batch_size": 0}, ["batch_size: ", "1", "got 0"]),
        ({"input_dim_a": 0}, ["input_dim_a: ", "1", "got 0"]),
        ({"lr": float("nan")}, ["lr: "]),
        ({"batch_size": True}, ["batch_size: "]),
        ({"range_a": [0, 10**400]}, ["range_a: ", "low < high"]),
    ],
)
def test_impossible_values(values: dict[str, Any], words: list[str]) -> None:
    text = "\n".join(problems(values))
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- a\n- b\n", "key: value"),
        (b"lr: [1, 2\n", "YAML"),
        (b"\xff\xfe\x00\x01", "text file"),
        (b"lr: !!python/object/apply:os.system ['true']\n", "YAML"),
        (b"", "key: value"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_new_size_goes_before_new_size_a() -> None:
    cfg = make_config({"new_size": 300, "new_size_a": 400})
    assert (cfg.short_side("a"), cfg.short_side("b")) == (300, 300)
    cfg = make_config({"new_size_a": 400, "new_size_b": 500})
    assert (cfg.short_side("a"), cfg.short_side("b")) == (400, 500)
    assert make_config({}).short_side("a") == 256


def runs(net: torch.nn.Module, size: int) -> bool:
    try:
        net(torch.rand(1, 3, size, size))
    except (RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("pad_type", ["reflect", "zero", "replicate"])
@pytest.mark.parametrize(
    ("n_layer", "num_scales", "norm"), [(4, 3, "none"), (3, 2, "in"), (2, 1, "none"), (4, 2, "in")]
)
def test_smallest_discriminator_size(n_layer: int, num_scales: int, norm: str, pad_type: Any) -> None:
    cfg = DiscriminatorConfig(dim=2, n_layer=n_layer, num_scales=num_scales, norm=norm, pad_type=pad_type)  # type: ignore[arg-type]
    smallest = smallest_discriminator_size(cfg)
    net = MsImageDis(3, cfg.model_dump())
    assert runs(net, smallest)
    assert not runs(net, smallest - 1)


@pytest.mark.parametrize("pad_type", ["reflect", "zero", "replicate"])
@pytest.mark.parametrize("n_downsample", [0, 1, 2, 3, 4])
def test_smallest_generator_size(n_downsample: int, pad_type: Any) -> None:
    cfg = GeneratorConfig(dim=2, mlp_dim=4, n_res=1, n_downsample=n_downsample, pad_type=pad_type)
    smallest = smallest_generator_size(cfg)
    net = AdaINGen(3, cfg.model_dump())
    assert runs(net, smallest)
    assert not runs(net, smallest - 1)
