"""Translators outside of their Python code, on a CPU: the published one as a baseline, and the files of munit-fast.

The baseline is what torch.onnx.export makes of the published networks for one size, in ONNX Runtime and OpenVINO. One
graph, from images and style codes to translations: the content code is computed once and decoded as a batch of all
styles. Decoding style by style in a second graph was not faster in either runtime (3 styles at 128², 10 at 256²).

The files of munit-fast are those of `munit_fast.export`: any size, any number of styles. Both run in the same sessions.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast.benchmarks.contenders import (
    EXPORTED,
    EXPORTED_ONNX,
    EXPORTED_OPENVINO,
    EXPORTED_PT2,
    ONNX_RUNTIME,
    OPENVINO,
    Unavailable,
)
from munit_fast.export import FORMATS
from munit_fast.export.formats import onnx_session, openvino_model, openvino_type, quiet_exporter
from munit_fast.export.graphs import Precision, adain, make_graphs
from munit_fast.models.munit import MUNIT
from munit_fast.reference.layers import AdaptiveInstanceNorm2d

# Images [N, C, H, W] and codes to translations: [N * S, style_dim] to [N * S, C', H, W] in the baseline's graph,
# [N, S, style_dim] to [N, S, C', H, W] in munit-fast's.
Run = Callable[[Tensor, Tensor], Tensor]

# What runs each contender; torch runs the rest.
PACKAGES = {
    ONNX_RUNTIME: "onnxruntime",
    OPENVINO: "openvino",
    EXPORTED_ONNX: "onnxruntime",
    EXPORTED_OPENVINO: "openvino",
}


class _Translation(nn.Module):
    """Images [N, C, H, W] and codes [N * S, style_dim], image by image, to translations [N * S, C', H, W].

    The two generators are taken apart: their AdaIN is changed to what ONNX can say.
    """

    def __init__(self, model: MUNIT, styles: int) -> None:
        super().__init__()
        self.source, self.target, self.styles = model.gen_a, model.gen_b, styles
        for module in self.target.modules():
            if isinstance(module, AdaptiveInstanceNorm2d):
                module.forward = partial(adain, module.eps)  # type: ignore[method-assign]

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        content = self.source.enc_content(x).repeat_interleave(self.styles, dim=0)
        return self.target.decode(content, codes[:, :, None, None])


def require(implementation: str, precision: str = "fp32") -> None:
    """Find out what a contender lacks here, before anything is exported for it.

    Args:
        implementation: A key of PACKAGES, or EXPORTED_PT2.
        precision: In which it is to compute.

    Raises:
        Unavailable: The first package that is not installed; or the CPU computes "fp16" in float32 or one by one.
    """
    packages = (PACKAGES[implementation], "onnx", "onnxscript") if implementation in PACKAGES else ()
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f'{package} is not installed (pip install "munit-fast[bench]")')
    computes_half, reason = _HALF[PACKAGES.get(implementation, "torch")]
    if precision == "fp16" and not computes_half():
        raise Unavailable(reason)


@cache
def _onnx_runtime_computes_half() -> bool:
    """Elsewhere it puts casts around what it computes in float32."""
    ort, parser = importlib.import_module("onnxruntime"), importlib.import_module("onnx.parser")
    onnx = importlib.import_module("onnx")
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "convolution (float16[1, 16, 8, 8] x, float16[16, 16, 3, 3] w) => (float16[1, 16, 6, 6] y) { y = Conv(x, w) }"
    )
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return all(node.op_type != "Cast" for node in onnx.load(options.optimized_model_filepath).graph.node)


def _openvino_computes_half() -> bool:
    capabilities = importlib.import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "FP16" in capabilities


def _torch_computes_half() -> bool:
    """Elsewhere its convolutions are loops of float16, thirty times as slow as float32's."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()


_HALF: dict[str, tuple[Callable[[], bool], str]] = {
    "onnxruntime": (_onnx_runtime_computes_half, "ONNX Runtime computes fp32 instead of fp16 on this CPU"),
    "openvino": (_openvino_computes_half, "OpenVINO does not compute fp16 on this CPU"),
    "torch": (_torch_computes_half, "torch has no fp16 convolutions of oneDNN on this CPU, only slow ones"),
}


def export(model: MUNIT, x: Tensor, codes: Tensor) -> bytes:
    """The published translation of images in some styles as an ONNX model of these sizes. Needs onnx and onnxscript.

    Args:
        model: of impl="reference" on the CPU; it stays as it is.
        x: images [N, C, H, W] like those to translate.
        codes: styles [S, style_dim] like those to come.
    """
    module = _Translation(copy.deepcopy(model), codes.shape[0]).eval()
    with torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(module, (x, codes.repeat(x.shape[0], 1)), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def write(model: MUNIT, implementation: str, precision: Precision, folder: Path) -> Path:
    """The translation a2b as one of the files that `munit-fast export` writes.

    Args:
        model: On the CPU; it stays as it is.
        implementation: A key of EXPORTED.
        precision: "fp32" or "fp16".
        folder: Where the file is put.
    """
    kind = FORMATS[EXPORTED[implementation]]
    path = folder / f"{kind.name}-{precision}-a2b{kind.suffix}"
    kind.write(make_graphs(model, ("a2b",), dtype=precision)[0], path)
    return path


def load(implementation: str, precision: str, source: bytes | Path, threads: int) -> Run:
    """A translator in a runtime on the CPU, tuned for one call at a time.

    Args:
        implementation: A key of PACKAGES, or EXPORTED_PT2.
        precision: "fp32"; "fp16" for a file of that; or "bf16" for OpenVINO, which decides by itself what is
            computed in it.
        source: What `export` gave, or the file that `write` wrote.
        threads: That it may use; torch uses its own.

    Raises:
        Unavailable: The CPU lacks the precision.
    """
    if implementation == EXPORTED_PT2:
        assert isinstance(source, Path)
        run = FORMATS["pt2"].load(source)
        return lambda x, codes: run({"image": x, "style": codes})
    package = PACKAGES[implementation]
    start = _onnx_runtime if package == "onnxruntime" else _openvino
    return start(importlib.import_module(package), precision, source, threads)


def _onnx_runtime(ort: Any, precision: str, source: bytes | Path, threads: int) -> Run:
    if precision == "bf16":
        raise Unavailable(f"ONNX Runtime does not compute {precision} on a CPU")
    session = onnx_session(source, ort, threads)
    images, styles = (node.name for node in session.get_inputs())

    def run(x: Tensor, codes: Tensor) -> Tensor:
        [y] = session.run(None, {images: x.numpy(), styles: codes.numpy()})
        return torch.from_numpy(y)

    return run


def _openvino(openvino: Any, precision: str, source: bytes | Path, threads: int) -> Run:
    compiled = openvino_model(source, openvino, threads, precision)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT")
    if taken != openvino_type(precision, openvino):
        raise Unavailable(f"OpenVINO computes {taken.get_type_name()} instead of {precision} on this CPU")
    request = compiled.create_infer_request()

    def run(x: Tensor, codes: Tensor) -> Tensor:
        # Neither inputs nor results are copied: the next call overwrites them.
        return torch.from_numpy(request.infer([x.numpy(), codes.numpy()], share_inputs=True, share_outputs=True)[0])

    return run
