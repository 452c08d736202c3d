"""The published translator outside of PyTorch: exported to ONNX, run by ONNX Runtime and by OpenVINO on a CPU.

One graph, from images and style codes to translations: the content code is computed once and decoded as a batch of all
styles. Decoding style by style in a second graph was not faster in either runtime (3 styles at 128², 10 at 256²).
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast.benchmarks.contenders import ONNX_RUNTIME, OPENVINO, Unavailable
from munit_fast.models.munit import MUNIT
from munit_fast.reference.layers import AdaptiveInstanceNorm2d

Run = Callable[[Tensor, Tensor], Tensor]  # images [N, C, H, W] and codes [N * S, style_dim] to [N * S, C', H, W]

PACKAGES = {ONNX_RUNTIME: "onnxruntime", OPENVINO: "openvino"}


class _Translation(nn.Module):
    """Images [N, C, H, W] and codes [N * S, style_dim], image by image, to translations [N * S, C', H, W].

    The two generators are taken apart: their AdaIN is changed to what ONNX can say.
    """

    def __init__(self, model: MUNIT, styles: int) -> None:
        super().__init__()
        self.source, self.target, self.styles = model.gen_a, model.gen_b, styles
        for module in self.target.modules():
            if isinstance(module, AdaptiveInstanceNorm2d):
                module.forward = partial(_adain, module.eps)  # type: ignore[method-assign]

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        content = self.source.enc_content(x).repeat_interleave(self.styles, dim=0)
        return self.target.decode(content, codes[:, :, None, None])


def _adain(eps: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """AdaIN as one instance norm of N · C channels: ONNX has no batch norm that uses its batch's statistics."""
    n, c, h, w = x.shape
    y = F.instance_norm(x.reshape(1, n * c, h, w), weight=weight.reshape(-1), bias=bias.reshape(-1), eps=eps)
    return y.view(n, c, h, w)


def require(runtime: str) -> None:
    """Raises Unavailable, naming the first package that `runtime` needs and that is not installed."""
    for package in (PACKAGES[runtime], "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f'{package} is not installed (pip install "munit-fast[bench]")')


def export(model: MUNIT, x: Tensor, codes: Tensor) -> bytes:
    """The translation of images in some styles as an ONNX model. Needs onnx and onnxscript.

    Args:
        model: of impl="reference" on the CPU; it stays as it is.
        x: images [N, C, H, W] like those to translate.
        codes: styles [S, style_dim] like those to come.
    """
    module = _Translation(copy.deepcopy(model), codes.shape[0]).eval()
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(module, (x, codes.repeat(x.shape[0], 1)), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes: that torchvision is not there, that parts of it will go."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def load(runtime: str, precision: str, program: bytes, threads: int) -> Run:
    """`program` in a runtime on the CPU, tuned for one call at a time.

    Args:
        runtime: ONNX_RUNTIME or OPENVINO.
        precision: "fp32", or "bf16" for OpenVINO, which decides by itself what is computed in it.
        program: the ONNX model.
        threads: that it may use.

    Raises:
        Unavailable: the CPU lacks the precision.
    """
    package = importlib.import_module(PACKAGES[runtime])
    return (_onnx_runtime if runtime == ONNX_RUNTIME else _openvino)(package, precision, program, threads)


def _onnx_runtime(ort: Any, precision: str, program: bytes, threads: int) -> Run:
    if precision != "fp32":
        raise Unavailable(f"ONNX Runtime does not compute {precision} on a CPU")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Within a call its threads wait for each other by spinning; after it they must not take time from the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    images, styles = (node.name for node in session.get_inputs())

    def run(x: Tensor, codes: Tensor) -> Tensor:
        [y] = session.run(None, {images: x.numpy(), styles: codes.numpy()})
        return torch.from_numpy(y)

    return run


def _openvino(ov: Any, precision: str, program: bytes, threads: int) -> Run:
    core = ov.Core()  # which reads ONNX itself; openvino.convert_model has telemetry
    wanted = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}[precision]
    compiled = core.compile_model(
        core.read_model(io.BytesIO(program)),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": wanted,
        },
    )
    taken = compiled.get_property("INFERENCE_PRECISION_HINT")
    if taken != wanted:
        raise Unavailable(f"OpenVINO computes {taken.get_type_name()} instead of {precision} on this CPU")
    request = compiled.create_infer_request()

    def run(x: Tensor, codes: Tensor) -> Tensor:
        # Neither inputs nor results are copied: the next call overwrites them.
        return torch.from_numpy(request.infer([x.numpy(), codes.numpy()], share_inputs=True, share_outputs=True)[0])

    return run
