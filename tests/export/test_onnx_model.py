"""An exported .onnx file as a translator, and .onnx files from elsewhere, which are refused before they are run."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import munit_fast as mf
from munit_fast.cli import main
from munit_fast.export import OnnxModel, export_model
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.models import networks
from munit_fast.models.portable import write_portable

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

GEN = {"dim": 4, "style_dim": 3, "n_downsample": 1, "n_res": 1, "mlp_dim": 8}
CONFIG = {"gen": GEN, "new_size": 32, "crop_image_height": 32, "crop_image_width": 32, "dis": {"num_scales": 1}}


def model_of(trainer: str) -> Any:
    torch.manual_seed(3)
    model = getattr(mf, trainer)({**CONFIG, "background": 90}).eval()
    model.about = {"licence": "CC0"}
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """munit-a2b.onnx, munit-style-b.onnx, unit-b2a.onnx and the portable files of both models."""
    folder = tmp_path_factory.mktemp("exported")
    for trainer, direction in (("MUNIT", "a2b"), ("UNIT", "b2a")):
        model, name = model_of(trainer), folder / trainer.lower()
        export_model(model, name.with_suffix(".onnx"), format="onnx", directions=(direction,), verify=False)
        write_portable(name.with_suffix(".safetensors"), model, dtype="fp32", about=model.about)
    return folder


@pytest.fixture
def no_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever builds a network of torch's fails."""

    def refuse(*args: object) -> None:
        raise AssertionError("a network of torch's was built")

    for name in ("AdaINGen", "VAEGen"):
        monkeypatch.setattr(getattr(networks, name), "__init__", refuse)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["munit-fast", *map(str, arguments)])
    with contextlib.suppress(SystemExit):
        main()


def test_it_is_the_model(exported: Path, no_networks: None) -> None:
    found = OnnxModel(exported / "munit-a2b.onnx")
    about = (found.trainer, found.direction, found.config.background, found.about["licence"])
    assert about == ("MUNIT", "a2b", 90, "CC0")
    assert found.config.gen.style_dim == 3 and found.config.new_size == 32


def test_it_computes_what_the_model_does(exported: Path) -> None:
    model, found = model_of("MUNIT"), OnnxModel(exported / "munit-a2b.onnx")
    x, z = torch.rand(2, 3, 37, 20) * 2 - 1, torch.randn(2, 3, 3)
    y = found.translate(x, "a2b", style=z)
    torch.testing.assert_close(y, model.translate(x, "a2b", style=z), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.encode_style(x, "b"), model.encode_style(x, "b"), rtol=1e-4, atol=2e-5)
    unit, found = model_of("UNIT"), OnnxModel(exported / "unit-b2a.onnx")
    torch.testing.assert_close(found.translate(x), unit.translate(x, "b2a"), rtol=1e-4, atol=2e-5)
    with pytest.raises(ValueError, match="translates b2a"):
        found.translate(x, "a2b")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("munit-a2b", ["--num_style", "2", "--native_size"]),
        ("munit-a2b", ["--style", "STYLE"]),
        ("unit-b2a", []),
    ],
)
def test_the_command(
    name: str, options: list[str], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    """The same pictures as by the networks, up to one grey level, and on the background that the file names."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate(((40, 33), (64, 50))):
        Image.fromarray(rng.integers(0, 256, (*size, 4), dtype=np.uint8), "RGBA").save(folder / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "style.png")
    arguments = ["--input", folder, *(str(tmp_path / "style.png") if o == "STYLE" else o for o in options)]
    trainer = name.partition("-")[0]
    a2b = ["--a2b", "0"] if name.endswith("b2a") else []
    portable = exported / f"{trainer}.safetensors"
    run(
        monkeypatch,
        *(
            "translate",
            "--pretrained",
            portable,
            *a2b,
            "--amp",
            "off",
            "--output_folder",
            tmp_path / "torch",
            *arguments,
        ),
    )
    request.getfixturevalue("no_networks")
    run(
        monkeypatch,
        *("translate", "--model", exported / f"{name}.onnx", "--output_folder", tmp_path / "onnx", *arguments),
    )
    files = sorted(p.name for p in (tmp_path / "torch").glob("*.*g"))
    assert files and files == sorted(p.name for p in (tmp_path / "onnx").glob("*.*g"))
    for file in files:
        one, other = (np.asarray(Image.open(tmp_path / kind / file)).astype(int) for kind in ("torch", "onnx"))
        assert one.shape == other.shape and np.abs(one - other).max() <= 1, file
    assert len(files) == 2 * (3 if "--num_style" in options else 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--a2b", "0"], "translates a2b"),
        (["--pretrained", "openmoji-lines2color"], "whole model"),
        (["--amp", "bf16"], "--amp"),
        (["--impl", "reference"], "--impl"),
        (["--device", "tpu"], "device must be cpu or cuda"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], message: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    arguments = ["translate", "--model", exported / "munit-a2b.onnx", "--input", tmp_path / "x.png"]
    run(monkeypatch, *arguments, "--output_folder", tmp_path / "out", *options)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def spoiled(exported: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    proto = onnx.load(exported / "munit-a2b.onnx")
    change(proto)
    path = folder / "munit-a2b.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def outside(proto: Any) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def outside_in_a_branch(proto: Any) -> None:
    inner = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [0.0])
    outside(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [inner])))
    outside_graph = onnx.helper.make_graph([], "g", [], [], [inner])
    inner = outside_graph.initializer[0]
    inner.data_location = onnx.TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="/etc/passwd")
    node = proto.graph.node.add(op_type="If", name="branch")
    node.attribute.append(onnx.helper.make_attribute("then_branch", outside_graph))


def set_metadata(proto: Any, **values: str) -> None:
    for entry in proto.metadata_props:
        if entry.key in values:
            entry.value = values[entry.key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, "from another file"),
        (outside_in_a_branch, "from another file"),
        (lambda p: setattr(p.graph.node[0], "domain", "com.evil\x1b[2J"), r"com\.evil.*not ONNX's own"),
        (lambda p: p.functions.add(name="f"), "functions"),
        (lambda p: p.metadata_props.add(key="x" * 300_000, value=""), "more metadata"),
        (lambda p: p.ClearField("metadata_props"), "not made by"),
        (lambda p: set_metadata(p, trainer="GAN"), "no graph of munit-fast"),
        (lambda p: set_metadata(p, weights=""), "no checksum"),
        (lambda p: set_metadata(p, direction="c2d"), "direction must be a2b or b2a"),
        (lambda p: set_metadata(p, config="gen: {dim: [1"), "configuration inside"),
        (lambda p: set_metadata(p, config="input_dim_a: 1"), "inputs and outputs"),
        (lambda p: setattr(p.graph.node[0], "op_type", "NoSuchOperator"), "onnxruntime cannot open"),
    ],
)
def test_hostile_files(change: Callable[[Any], None], message: str, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        OnnxModel(spoiled(exported, tmp_path, change))
    assert str(caught.value).isprintable()


def test_files_that_are_none(exported: Path, tmp_path: Path) -> None:
    whole = (exported / "munit-a2b.onnx").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"no model at all\n" * 99)):
        path = tmp_path / f"{name}-a2b.onnx"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            OnnxModel(path)
    with pytest.raises(CheckpointError, match="no such file"):
        OnnxModel(tmp_path / "none.onnx")
    with pytest.raises(CheckpointError, match="is a folder"):
        OnnxModel(tmp_path)
    with pytest.raises(CheckpointError, match="is a style graph"):
        OnnxModel(exported / "munit-style-b.onnx")


def test_the_style_encoder_is_found_and_checked(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "m-a2b.onnx").write_bytes((exported / "munit-a2b.onnx").read_bytes())
    model, x = OnnxModel(tmp_path / "m-a2b.onnx"), torch.zeros(1, 3, 20, 20)
    with pytest.raises(CheckpointError, match=r"m-style-b\.onnx: no such file"):
        model.encode_style(x, "b")
    with pytest.raises(ValueError, match="styles of domain b"):
        model.encode_style(x, "a")
    torch.manual_seed(4)
    other = mf.MUNIT(CONFIG)  # of the same configuration
    export_model(other, tmp_path / "m.onnx", format="onnx", directions=("a2b",), verify=False)
    (tmp_path / "m-a2b.onnx").write_bytes((exported / "munit-a2b.onnx").read_bytes())
    with pytest.raises(CheckpointError, match="not the style encoder of"):
        model.encode_style(x, "b")


def double_the_styles(proto: Any) -> None:
    node = proto.graph.node[-1]
    node.output[0] = "once"
    proto.graph.node.add(op_type="Concat", input=["once", "once"], output=["translation"]).attribute.append(
        onnx.helper.make_attribute("axis", 1)
    )


def make_it_nan(proto: Any) -> None:
    node = proto.graph.node[-1]
    node.output[0] = "once"
    proto.graph.node.add(op_type="Log", input=["once"], output=["translation"])


def ask_for_a_terabyte(proto: Any) -> None:
    node = proto.graph.node[-1]
    node.output[0] = "once"
    shape = onnx.helper.make_tensor("much", onnx.TensorProto.INT64, [1], [2**38])
    proto.graph.initializer.append(shape)
    proto.graph.node.add(op_type="ConstantOfShape", input=["much"], output=["zeros"])
    proto.graph.node.add(op_type="ReduceMax", input=["zeros"], output=["zero"]).attribute.append(
        onnx.helper.make_attribute("keepdims", 0)
    )
    proto.graph.node.add(op_type="Add", input=["once", "zero"], output=["translation"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (double_the_styles, r"gives \[1, 4, 3, 40, 40\] instead of finite numbers \[1, 2, 3, 40, 40\]"),
        (make_it_nan, "instead of finite numbers"),
        (ask_for_a_terabyte, "onnxruntime cannot run it on 1 images of 40×40"),
    ],
)
def test_what_a_file_gives_is_checked(
    change: Callable[[Any], None],
    message: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Before anything is written: more translations than were asked for would take the names of other files."""
    path = spoiled(exported, tmp_path, change)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.effect_noise((40, 40), 50).convert("RGB").save(folder / "output002.png")
    before = (folder / "output002.png").read_bytes()
    arguments = ["--input", folder / "output002.png", "--output_folder", folder, "--num_style", "2", "--native_size"]
    run(monkeypatch, "translate", "--model", path, *arguments)
    error = [line for line in capfd.readouterr().err.splitlines() if line and not line.startswith("licence:")]
    assert len(error) == 1 and re.search(message, error[0]), error
    assert [p.name for p in folder.iterdir()] == ["output002.png"] and (folder / "output002.png").read_bytes() == before


@pytest.mark.parametrize(
    ("x", "style", "message"),
    [
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3), r"x must be images \[N, 3, H, W\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 3), "floating point"),
        (np.zeros((1, 3, 8, 8), np.float32), torch.zeros(1, 1, 3), "got ndarray"),
        (torch.zeros(1, 3, 8, 8), None, r"style must be codes \[1, S, 3\]; got NoneType"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(1, 1, 3), r"style must be codes \[2, S, 3\]; got \[1, 1, 3\]"),
    ],
)
def test_arguments(x: Any, style: Any, message: str, exported: Path) -> None:
    with pytest.raises(ValueError, match=message):
        OnnxModel(exported / "munit-a2b.onnx").translate(x, style=style)


def test_any_floating_tensor(exported: Path) -> None:
    model = OnnxModel(exported / "munit-a2b.onnx")
    x, z = torch.rand(1, 3, 16, 16), torch.randn(1, 1, 3)
    wanted = model.translate(x, style=z)
    assert torch.equal(model.translate(x.double().requires_grad_(), style=z.double()), wanted)
    with pytest.raises(ValueError, match="UNIT has no style"):
        OnnxModel(exported / "unit-b2a.onnx").translate(x, style=z)
    with pytest.raises(ValueError, match="threads"):
        OnnxModel(exported / "munit-a2b.onnx", threads=-1)


def test_onnxruntime_is_asked_for(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"munit-fast\[onnx\]"):
        OnnxModel(exported / "munit-a2b.onnx")
