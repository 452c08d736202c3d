"""Exported files: each runs in its own runtime, without munit_fast, and says what it is; a wrong one is not kept."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import munit_fast as mf
from munit_fast.export import FORMATS, ExportError, export_model, files
from munit_fast.export.metadata import parse
from munit_fast.io.atomic import FileWriteError

GEN = {"dim": 4, "style_dim": 3, "n_downsample": 1, "n_res": 1, "mlp_dim": 8}
CALLS = ((1, 1, 1, 1), (2, 3, 37, 50), (1, 2, 64, 64))
CHILD = Path(__file__).parents[1] / "helpers/run_exported.py"
SUFFIXES = {name: kind.suffix for name, kind in FORMATS.items()}


@pytest.fixture(params=FORMATS)
def kind(request: pytest.FixtureRequest) -> str:
    for package in (*FORMATS[request.param].writers, FORMATS[request.param].runtime):
        pytest.importorskip(package)
    return request.param


def model_of(trainer: str) -> Any:
    torch.manual_seed(3)
    return getattr(mf, trainer)({"gen": GEN, "input_dim_b": 1}).eval()


def metadata_of(path: Path) -> dict[str, str]:
    if path.suffix == ".onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    if path.suffix == ".xml":
        import openvino

        model = openvino.Core().read_model(path)
        return model.get_rt_info(["munit_fast"]).value
    extra = {"munit_fast.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["munit_fast.json"])


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["MUNIT", "UNIT"])
def test_files_run_where_munit_fast_is_not(kind: str, trainer: str, tmp_path: Path) -> None:
    model = model_of(trainer)
    model.about = {"licence": "CC0"}
    directions = ("a2b",) if trainer == "MUNIT" else ("b2a",)
    done = export_model(
        model,
        tmp_path / f"a.b{SUFFIXES[kind]}",
        format=kind,
        directions=directions,
        notes={"attribution": "me"},
    )
    names = ["a2b", "style-b"] if trainer == "MUNIT" else ["b2a"]
    assert [file.graph for file in done] == names
    assert {p.name for p in tmp_path.iterdir()} == {path.name for file in done for path in file.paths}
    wanted = {}
    for file in done:
        assert file.path.name == f"a.b-{file.graph}{SUFFIXES[kind]}"
        assert file.difference is not None and file.mean_difference is not None
        assert 0 <= file.mean_difference <= file.difference < 1e-4
        metadata = metadata_of(file.path)
        found = parse(file.path.name, metadata)
        assert dict(found.about) == {"licence": "CC0", "attribution": "me"} and metadata["dtype"] == "fp32"
        assert found.config.gen == model.config.gen and found.place == file.graph.removeprefix("style-")
        for path in file.paths:
            assert str(Path(mf.__file__).parent).encode() not in path.read_bytes()
        arrays, results = {}, []
        for i, (n, styles, height, width) in enumerate(CALLS):
            noise = torch.Generator().manual_seed(i)
            source = file.graph[0] if file.graph in ("a2b", "b2a") else file.graph[-1]
            x = torch.rand(n, 3 if source == "a" else 1, height, width, generator=noise) * 2 - 1
            arrays[f"{i}_0"] = x.numpy()
            if "style" in file.graph:
                results.append(model.encode_style(x, file.graph[-1]))
            elif trainer == "UNIT":
                results.append(model.translate(x, file.graph))
            else:
                z = torch.randn(n, styles, 3, generator=noise)
                arrays[f"{i}_1"] = z.numpy()
                results.append(model.translate(x, file.graph, style=z))
        np.savez(f"{file.path}.inputs.npz", **arrays)
        wanted[file.path] = results
    child = subprocess.run([sys.executable, str(CHILD), *map(str, wanted)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    for path, results in wanted.items():
        with np.load(f"{path}.outputs.npz") as outputs:
            for i, want in enumerate(results):
                np.testing.assert_allclose(outputs[f"{i}_0"], want.numpy(), rtol=1e-4, atol=2e-5)


def test_both_directions_if_nothing_else_is_said(tmp_path: Path) -> None:
    done = export_model(model_of("UNIT"), tmp_path / "x.pt2", format="pt2", verify=False)
    assert [file.graph for file in done] == ["a2b", "b2a"]


@pytest.mark.slow
def test_half_precision_makes_files_smaller(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mf.MUNIT({"gen": GEN | {"dim": 32}}).eval()
    sizes = {}
    for dtype in ("fp32", "fp16"):
        [file, _] = export_model(
            model, tmp_path / f"{dtype}{SUFFIXES[kind]}", format=kind, directions=("a2b",), dtype=dtype
        )
        sizes[dtype] = sum(path.stat().st_size for path in file.paths)
    assert sizes["fp16"] < 0.7 * sizes["fp32"]
    assert metadata_of(file.path)["dtype"] == "fp16"


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [("onnx", "other weights"), ("openvino", "not finite"), ("openvino", "cannot be opened"), ("pt2", "other weights")],
)
def test_a_file_that_differs_is_not_left_behind(
    spoil: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two files is wrong: neither stands, and what stood there before stays."""
    format = FORMATS[kind]
    for package in (*format.writers, format.runtime):
        pytest.importorskip(package)

    def write(graph: Any, path: Path) -> None:
        if graph.name == "b2a":
            weight = graph.module.decoder.model[-1].conv.weight
            weight.data[0, 0, 3, 3] = float("nan") if spoil == "not finite" else weight[0, 0, 3, 3] + 0.5
        format.write(graph, path)
        if graph.name == "b2a" and spoil == "cannot be opened":
            path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setitem(FORMATS, kind, dataclasses.replace(format, write=write))
    before = tmp_path / f"x-a2b{SUFFIXES[kind]}"
    before.write_text("before")
    with pytest.raises(ExportError, match=r"x-b2a.*kept"):
        export_model(model_of("UNIT"), tmp_path / f"x{SUFFIXES[kind]}", format=kind)
    assert [p.name for p in tmp_path.iterdir()] == [before.name] and before.read_text() == "before"


def test_without_verification_no_runtime_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model = model_of("UNIT")
    with pytest.raises(ImportError, match=r"munit-fast\[onnx\]"):
        export_model(model, tmp_path / "x.onnx", format="onnx")
    assert not list(tmp_path.iterdir())
    [file] = export_model(model, tmp_path / "x.onnx", format="onnx", directions=("a2b",), verify=False)
    assert file.difference is None and file.path.is_file()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "openvino"])
def test_missing_packages_are_named_with_their_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} .*munit-fast\[openvino\]"):
        export_model(model_of("UNIT"), tmp_path / "x.xml", format="openvino")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "tflite"}, "format must be one of"),
        ({"output": "x.pt"}, r"must end in \.pt2"),
        ({"output": "no/x.pt2"}, "no folder"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"directions": ()}, "directions"),
        ({"directions": ("a2a",)}, "directions"),
        ({"directions": ("a2b", "a2b")}, "directions"),
    ],
)
def test_arguments(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"output": "x.pt2", "format": "pt2"} | change
    with pytest.raises(ValueError, match=message):
        export_model(model_of("UNIT"), tmp_path / arguments.pop("output"), **arguments)


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "x-b2a.pt2").mkdir()
    with pytest.raises(FileWriteError, match="it is a folder"):
        export_model(model_of("UNIT"), tmp_path / "x.pt2", format="pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["x-b2a.pt2"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_style_encoder_that_ignores_its_image(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes of an untrained encoder differ little from image to image."""

    class Blind(torch.nn.Module):
        def __init__(self, encoder: Any) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.encoder(image * 0)

    def write(graph: Any, path: Path) -> None:
        blind = dataclasses.replace(graph, module=Blind(graph.module)) if graph.name == "style-b" else graph
        FORMATS["pt2"].write(blind, path)

    format = dataclasses.replace(FORMATS["pt2"], write=write)
    monkeypatch.setattr(files, "FORMATS", {"pt2": format})
    with pytest.raises(ExportError, match=r"x-style-b\.pt2: differs"):
        export_model(model_of("MUNIT"), tmp_path / "x.pt2", format="pt2", directions=("a2b",), dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_all_files_get_their_names_or_none(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("UNIT")
    export_model(model, tmp_path / "x.pt2", format="pt2", verify=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "x-b2a.pt2" and Path(source).parent.name != "earlier":
            raise error
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises((FileWriteError, KeyboardInterrupt), match=r"x-b2a\.pt2|^$"):
        export_model(model_of("UNIT"), tmp_path / "x.pt2", format="pt2", dtype="fp16", verify=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


SIGNAL_AFTER_MODELS = """
import os, signal, sys
import openvino
from munit_fast.export.formats import openvino_model

signal.signal(signal.SIGALRM, lambda *_: print("handled", flush=True))
first, second = (openvino_model(open(sys.argv[1], "rb").read(), openvino, 1) for _ in range(2))
del first
del second
os.kill(os.getpid(), signal.SIGALRM)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="a signal of POSIX")
def test_signals_after_models_of_openvino(tmp_path: Path) -> None:
    for package in ("openvino", "onnxscript"):
        pytest.importorskip(package)
    [file] = export_model(model_of("UNIT"), tmp_path / "x.onnx", format="onnx", directions=("a2b",), verify=False)
    child = subprocess.run([sys.executable, "-c", SIGNAL_AFTER_MODELS, file.path], capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "handled\n"), child.stderr
