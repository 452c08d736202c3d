"""Traced and exported networks: they run where munit_fast is not installed, at other sizes, with the same results."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import munit_fast as mf
from helpers import published_layers as published

GEN = {"dim": 4, "style_dim": 3, "n_downsample": 1, "n_res": 1, "mlp_dim": 8}
SIZES = ((32, 48), (48, 36))  # where no plane of the first has a side of 1, which torch.export takes for a constant
CHILD = Path(published.__file__).with_name("run_exported.py")  # whose import would block munit_fast here


class Content(nn.Module):
    """Images to content codes."""

    def __init__(self, model: mf.MUNIT) -> None:
        super().__init__()
        self.encoder = model.gen_a.enc_content

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class Style(nn.Module):
    """Images to style codes [N, style_dim]."""

    def __init__(self, model: mf.MUNIT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode_style(x, "b")


class Decoder(nn.Module):
    """Content and style codes to images."""

    def __init__(self, model: mf.MUNIT) -> None:
        super().__init__()
        self.generator = model.gen_b

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        return self.generator.decode(content, style)


class InStyles(nn.Module):
    """The library's call: images in two styles."""

    def __init__(self, model: mf.MUNIT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.model.translate(x, style=style)


class Everything(nn.Module):
    """All parts of a translator at once: content, style and translation."""

    def __init__(self, model: mf.MUNIT) -> None:
        super().__init__()
        self.source, self.target = model.gen_a, model.gen_b

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        content, own = self.source.encode(x)
        return content, own, self.target.decode(content, style)


class Volumes(nn.Module):
    """A U-Net of volumes with one level."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = self.block(1, 4), self.block(4, 8), self.block(8, 4)
        self.up, self.head = nn.ConvTranspose3d(8, 4, 2, stride=2), nn.Conv3d(4, 2, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.1),
            nn.Conv3d(outputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = self.first(x)
        deep = self.inner(nn.functional.max_pool3d(wide, 2))
        return self.head(self.last(torch.cat([wide, self.up(deep)], 1)))


class Part(NamedTuple):
    """What is exported.

    Attributes:
        module: the network.
        inputs: its arguments for a number of samples, and height and width of the images.
        dynamic: of each argument, which axes vary: the batch, and multiples of a number.
    """

    module: nn.Module
    inputs: Callable[[int, int, int], tuple[Tensor, ...]]
    dynamic: tuple[dict[int, Any], ...]


def noise(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(sum(size))) * 2 - 1


def batch_and_sides(axes: int, multiple: int) -> dict[int, Any]:
    sides = {i: Dim(f"side_{i}", min=4, max=64) for i in range(2, 2 + axes)}
    return {0: Dim("batch", min=1, max=16)} | {i: multiple * d if multiple > 1 else d for i, d in sides.items()}


@pytest.fixture(scope="module")
def parts() -> dict[str, Part]:
    torch.manual_seed(0)
    model = mf.MUNIT({"gen": GEN}).eval()
    cyclegan, volumes = published.cyclegan().eval(), Volumes().eval()
    assert mf.accelerate(cyclegan).replaced and mf.accelerate(volumes).replaced

    images, codes = batch_and_sides(2, 2), batch_and_sides(2, 1)
    return {
        "everything": Part(
            Everything(model), lambda n, h, w: (noise(n, 3, h, w), noise(n, 3, 1, 1)), (images, {0: images[0]})
        ),
        "in styles": Part(InStyles(model), lambda n, h, w: (noise(n, 3, h, w), noise(2, 3)), (images, {})),
        "content": Part(Content(model), lambda n, h, w: (noise(n, 3, h, w),), (images,)),
        "style": Part(Style(model), lambda n, h, w: (noise(n, 3, h, w),), (images,)),
        "decoder": Part(
            Decoder(model), lambda n, h, w: (noise(n, 8, h // 2, w // 2), noise(n, 3, 1, 1)), (codes, {0: codes[0]})
        ),
        "cyclegan": Part(cyclegan, lambda n, h, w: (noise(n, 3, h, w),), (batch_and_sides(2, 4),)),
        "volumes": Part(volumes, lambda n, h, w: (noise(n, 1, 8, h, w),), (batch_and_sides(3, 2),)),
    }


@pytest.fixture
def quiet_exporter() -> Iterator[None]:
    """Without a note on torchvision, which is not installed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


def program_of(part: Part) -> torch.export.ExportedProgram:
    # Of two images: torch.export takes a size of 1 for a constant.
    return torch.export.export(part.module, part.inputs(2, *SIZES[0]), dynamic_shapes=part.dynamic)


def by_trace(part: Part, file: Path) -> None:
    traced = torch.jit.trace(part.module, part.inputs(1, *SIZES[0]), check_trace=False)
    torch.jit.save(traced, file)


def by_export(part: Part, file: Path) -> None:
    torch.export.save(program_of(part), file)


def by_onnx(part: Part, file: Path) -> None:
    torch.onnx.export(
        part.module, part.inputs(2, *SIZES[0]), file, dynamo=True, dynamic_shapes=part.dynamic, verbose=False
    )


def by_torchscript_onnx(part: Part, file: Path) -> None:
    names = [f"x{i}" for i in range(len(part.dynamic))]
    axes = {name: {axis: f"{name}_{axis}" for axis in d} for name, d in zip(names, part.dynamic)}
    inputs = part.inputs(1, *SIZES[0])
    torch.onnx.export(part.module, inputs, file, dynamo=False, input_names=names, dynamic_axes=axes)


def by_aoti(part: Part, file: Path) -> None:
    # Without optimisation: g++ takes most of the time.
    quick = {"aot_inductor.debug_compile": True}
    torch._inductor.aoti_compile_and_package(program_of(part), package_path=str(file), inductor_configs=quick)


def some(parts: dict[str, Part], *names: str) -> dict[str, Part]:
    return {name: parts[name] for name in names}


def check(parts: dict[str, Part], export: Callable[[Part, Path], None], suffix: str, folder: Path) -> None:
    """Export the parts, run them in a process without munit_fast, and compare their results."""
    wanted = {}
    for name, part in parts.items():
        file = folder / f"{name}{suffix}"
        export(part, file)
        calls = [part.inputs(n, *size) for n in (1, 3) for size in SIZES]
        arrays = {f"{i}_{j}": t.numpy() for i, call in enumerate(calls) for j, t in enumerate(call)}
        np.savez(f"{file}.inputs.npz", **arrays)
        with torch.no_grad():
            wanted[file] = [part.module(*call) for call in calls]
    done = subprocess.run([sys.executable, str(CHILD), *map(str, wanted)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file, results in wanted.items():
        with np.load(f"{file}.outputs.npz") as outputs:
            for i, want in enumerate(results):
                for j, y in enumerate(want if isinstance(want, tuple) else [want]):
                    found = torch.from_numpy(outputs[f"{i}_{j}"])
                    torch.testing.assert_close(
                        found,
                        y,
                        rtol=1e-4,
                        atol=2e-5,
                        check_stride=False,
                        msg=lambda m, at=(file.name, i, j): f"{at}: {m}",
                    )


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*deprecated:DeprecationWarning"
)
def test_traces(parts: dict[str, Part], tmp_path: Path) -> None:
    check(parts, by_trace, ".pt", tmp_path)


def test_exported_programs(parts: dict[str, Part], tmp_path: Path) -> None:
    check(parts, by_export, ".pt2", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning", "ignore:# The axis name:UserWarning"
)
def test_onnx(parts: dict[str, Part], tmp_path: Path, quiet_exporter: None) -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    check(some(parts, "everything", "decoder", "cyclegan", "volumes"), by_onnx, ".onnx", tmp_path)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
    "ignore:Constant folding:UserWarning",
    "ignore:ONNX export mode is set to TrainingMode.EVAL:UserWarning",
)
def test_onnx_by_torchscript(parts: dict[str, Part], tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    check(parts, by_torchscript_onnx, ".onnx", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
def test_packages_of_aotinductor(parts: dict[str, Part], tmp_path: Path) -> None:
    check(some(parts, "everything"), by_aoti, ".package.pt2", tmp_path)
