"""Generators as one .safetensors file, and the bundled pretrained model."""

from __future__ import annotations

import builtins
import io
import json
import os
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import munit_fast as mf
from munit_fast import cli
from munit_fast.config import Config
from munit_fast.io import checkpoints, safetensors_file
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.models import portable, pretrained
from munit_fast.models.munit import MODELS, from_pretrained
from munit_fast.models.portable import read_portable, write_portable


@pytest.fixture
def config(small_config: dict[str, Any]) -> Config:
    return mf.make_config(small_config | {"input_dim_b": 1, "data_root": "/somewhere/private"})


def random_model(config: Config, trainer: str = "MUNIT", seed: int = 0) -> mf.MUNIT | mf.UNIT:
    torch.manual_seed(seed)
    return MODELS[trainer](config).eval()


@pytest.mark.parametrize("trainer", ["MUNIT", "UNIT"])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_round_trip(config: Config, tmp_path: Path, trainer: str, dtype: str) -> None:
    model = random_model(config, trainer)
    path = tmp_path / "model.safetensors"
    write_portable(path, model, dtype=dtype, about={"licence": "CC BY 4.0"})
    again = MODELS[trainer].from_pretrained(path)
    assert again.about == {"licence": "CC BY 4.0"}
    assert again.loaded == path
    assert not again.training
    for name, value in model.state_dict().items():
        expected = value.half().float() if dtype == "fp16" else value
        assert torch.equal(again.state_dict()[name], expected), name
        assert again.state_dict()[name].dtype == torch.float32
    x = torch.rand(1, 3, 33, 45) * 2 - 1
    styles = {} if trainer == "UNIT" else {"style": torch.ones(2, 3)}
    tolerance = 1e-6 if dtype == "fp32" else 2e-2
    assert torch.allclose(again.translate(x, **styles), model.translate(x, **styles), atol=tolerance)
    assert type(from_pretrained(path)) is type(model)
    loaded = MODELS[trainer](config).load(path)
    assert torch.equal(next(loaded.parameters()), next(again.parameters()))


@pytest.mark.parametrize("how", ["module", "class", "load", "command"])
def test_a_file_is_read_once_and_checked_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = tmp_path / "model.safetensors"
    write_portable(path, random_model(config))
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    calls: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counted(*arguments: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return real(*arguments, **keywords)

        monkeypatch.setattr(module, name, counted)

    count(safetensors_file, "safe_open")
    count(portable, "describe_network")
    count(checkpoints, "check_fit")
    opened: list[str] = []
    for holder, name in ((builtins, "open"), (os, "open"), (io, "open")):
        real = getattr(holder, name)
        monkeypatch.setattr(
            holder,
            name,
            lambda file, *rest, real=real, **more: (opened.append(str(file)), real(file, *rest, **more))[1],
        )
    if how == "module":
        from_pretrained(path)
    elif how == "class":
        mf.MUNIT.from_pretrained(path)
    elif how == "load":
        mf.MUNIT(config).load(path)
    else:
        arguments = [
            "translate",
            "--pretrained",
            path,
            "--input",
            tmp_path / "x.png",
            "--output_folder",
            tmp_path / "y",
        ]
        monkeypatch.setattr(sys, "argv", ["munit-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert calls == {"safe_open": 1, "describe_network": 2, "check_fit": 2}  # one check a generator
    assert str(path) not in opened


def test_the_file_tells_what_it_is_and_not_where_it_was_made(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_portable(path, random_model(config))
    assert b"private" not in path.read_bytes()
    found = read_portable(path)
    assert found.config == config.model_copy(update={"data_root": None})
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["trainer"] == "MUNIT"
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    # Half of the float32 numbers and a header.
    count = sum(p.numel() for p in random_model(config).parameters())
    assert 2 * count < path.stat().st_size < 2 * count + 20_000


def test_wrong_arguments(config: Config, tmp_path: Path) -> None:
    model = random_model(config)
    with pytest.raises(ValueError, match=r"model\.pt.*\.safetensors"):
        write_portable(tmp_path / "model.pt", model)
    with pytest.raises(ValueError, match=r"dtype .*fp16, fp32.*'bf16'"):
        write_portable(tmp_path / "model.safetensors", model, dtype="bf16")
    with pytest.raises(ValueError, match="about: config"):
        write_portable(tmp_path / "model.safetensors", model, about={"config": "x"})
    with torch.no_grad():
        next(model.gen_b.parameters())[0] = 1e6
    with pytest.raises(ValueError, match=r"b\..*fp16.*fp32"):
        write_portable(tmp_path / "model.safetensors", model)
    with pytest.raises(ValueError, match="nowhere"):
        write_portable(tmp_path / "nowhere" / "model.safetensors", model, dtype="fp32")
    with pytest.raises(ValueError, match=r"about.*int"):
        write_portable(tmp_path / "model.safetensors", model, dtype="fp32", about={"licence": 3})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_used(config: Config, small_config: dict[str, Any], tmp_path: Path) -> None:
    path, good = tmp_path / "bad.safetensors", tmp_path / "good.safetensors"
    write_portable(good, random_model(config))
    content, tensors = good.read_bytes(), load_file(good)
    with safe_open(good, framework="pt") as file:
        metadata = file.metadata()

    def refused(words: str, read: Any = mf.MUNIT.from_pretrained) -> None:
        with pytest.raises(CheckpointError, match=words) as error:
            read(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)

    refused("no such file")
    for damaged in (b"", content[:100], content[:-10], b"\xff" * 200, struct.pack("<Q", 2**40) + content[8:]):
        path.write_bytes(damaged)
        refused("safetensors file")
    save_file(tensors, path)
    refused("munit-fast export")
    save_file(tensors, path, metadata | {"trainer": "os.system"})
    refused("trainer .*MUNIT or UNIT.*'os.system'")
    save_file(tensors, path, metadata | {"config": "gen: {dimm: 3}"})
    refused(r"gen\.dimm.*gen\.dim\?")
    save_file(tensors | {"c.weight": torch.zeros(1)}, path, metadata)
    refused(r"'c\.weight'")
    save_file({k: v for k, v in tensors.items() if k != "a.mlp.model.0.fc.bias"}, path, metadata)
    refused(r"mlp\.model\.0\.fc\.bias")
    write_portable(path, random_model(config, "UNIT"))
    refused(r"UNIT\.from_pretrained")
    other = mf.MUNIT(small_config | {"input_dim_b": 1, "gen": {"dim": 8, "mlp_dim": 8, "style_dim": 3, "n_res": 1}})
    write_portable(path, other)
    model = random_model(config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    refused(r"gen\.dim is 8 .* 4 ", model.load)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_notes_with_control_characters(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_portable(path, random_model(config))
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata | {"licence": "\x1b[2Jfree\nmunit-fast: a lie", "attribution": "x" * 10**6})
    about = read_portable(path).about
    assert about["licence"] == "\\x1b[2Jfree munit-fast: a lie"
    assert len(about["attribution"]) == 2000


@pytest.mark.parametrize("value", [torch.tensor([float("nan")]), torch.tensor([1]), torch.zeros(1).double()])
def test_weights_that_are_not_finite_floats(config: Config, tmp_path: Path, value: torch.Tensor) -> None:
    path = tmp_path / "model.safetensors"
    write_portable(path, random_model(config))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    name = "a.mlp.model.0.fc.bias"
    tensors = load_file(path)
    save_file(tensors | {name: value.expand_as(tensors[name]).contiguous()}, path, metadata)
    with pytest.raises(CheckpointError, match=rf"{name} .*fp16 or fp32.*{value.dtype}"):
        read_portable(path)


def test_a_class_of_ones_own(config: Config, tmp_path: Path) -> None:
    class Mine(mf.MUNIT):
        pass

    write_portable(tmp_path / "model.safetensors", Mine(config))
    assert isinstance(Mine.from_pretrained(tmp_path / "model.safetensors"), Mine)


def test_a_header_that_lies_about_sizes(config: Config, tmp_path: Path) -> None:
    """Terabytes in the header, bytes in the file."""
    path = tmp_path / "model.safetensors"
    header = json.dumps({"a.x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(CheckpointError, match="safetensors file"):
        read_portable(path)


def test_a_header_that_asks_for_other_networks(config: Config, tmp_path: Path) -> None:
    """Refused before anything of that size is built."""
    path = tmp_path / "model.safetensors"
    write_portable(path, random_model(config))
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for name, value in (("dim", 10**9), ("n_res", 10**9), ("n_downsample", 8), ("mlp_dim", 10**9)):
        asked = yaml.safe_load(metadata["config"])
        asked["gen"][name] = value
        if name == "n_downsample":
            asked |= {"crop_image_height": 512, "crop_image_width": 512, "new_size": 512}
        save_file(tensors, path, metadata | {"config": yaml.safe_dump(asked)})
        with pytest.raises(CheckpointError, match=rf"gen\.{name} is {value} "):
            mf.MUNIT.from_pretrained(path)


def test_names() -> None:
    with pytest.raises(ValueError, match=r"'openmoji'.*openmoji-lines2color.*\.safetensors"):
        mf.MUNIT.from_pretrained("openmoji")


class TestBundled:
    name = "openmoji-lines2color"

    def test_small_and_described(self) -> None:
        path = pretrained.locate(self.name)
        assert path.stat().st_size <= 8_000_000
        about = read_portable(path).about
        assert "CC BY-SA 4.0" in about["licence"]
        assert "OpenMoji" in about["attribution"]
        card = path.with_suffix(".md").read_text("utf-8")
        assert "CC BY-SA 4.0" in card and about["attribution"] in card

    def test_every_way_of_translation(self) -> None:
        model = mf.MUNIT.from_pretrained(self.name)
        x = torch.ones(1, 3, 61, 90)
        x[:, :, 20:40, 30:32] = -1
        random = model.translate(x, num_styles=3, generator=torch.Generator().manual_seed(0))
        assert random.shape == (1, 3, 3, 61, 90)
        assert random.std(dim=1).mean() > 0.01  # the styles differ
        guided = model.translate(x, style=torch.zeros(2, 3, 50, 70))
        assert guided.shape == (1, 2, 3, 61, 90)
        lines = model.translate(random[:, 0], "b2a")
        assert lines.shape == (1, 1, 3, 61, 90)
        assert all(bool(y.isfinite().all()) and y.abs().max() <= 1 for y in (random, guided, lines))
